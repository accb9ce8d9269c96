"""Checks a quantized model and summarises it."""
