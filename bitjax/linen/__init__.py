"""Flax Linen: quantizes, measures and reads the tensors inside a model."""
