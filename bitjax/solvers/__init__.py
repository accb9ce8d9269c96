"""Optimisation on arrays: what the methods solve between, rather than during, training steps."""

from bitjax.solvers.allocation import allocate as allocate
from bitjax.solvers.base import Solution as Solution
