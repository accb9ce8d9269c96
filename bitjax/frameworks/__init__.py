"""Adapters of frameworks: each hands a model to `bitjax.program` as a function of its variables."""
