"""Low-bit kernels solved layer by layer."""
