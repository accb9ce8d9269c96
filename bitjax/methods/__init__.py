"""Methods: lists of stages. Their names in configs are in bitjax/launch/registry.py."""

from bitjax.methods.base import Context as Context
from bitjax.methods.base import Method as Method
from bitjax.methods.base import Stage as Stage
from bitjax.methods.bitpruning import bitpruning as bitpruning
from bitjax.methods.bottleneck import bottleneck as bottleneck
from bitjax.methods.fixed_bits import hwgq as hwgq
from bitjax.methods.fixed_bits import lsq as lsq
from bitjax.methods.fixed_bits import pact as pact
from bitjax.methods.fixed_bits import twn as twn
from bitjax.methods.fixed_bits import uniform as uniform
from bitjax.methods.full_precision import full_precision as full_precision
from bitjax.methods.measured import measured as measured
from bitjax.methods.recipe import Recipe as Recipe
from bitjax.methods.solved import solved as solved
from bitjax.methods.tsq import tsq as tsq
