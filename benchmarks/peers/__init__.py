"""The training step of one network as other libraries quantize it, each in its own environment."""
