"""Training: state, steps, parallelism, checkpoints, metrics and the runner of stages."""
