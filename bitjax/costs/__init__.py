"""Costs of bits, as pure functions of sites and bits; no Flax."""
