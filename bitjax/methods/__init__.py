"""Methods: lists of stages. One file each; the registry is bitjax/launch/build.py."""

from bitjax.methods.base import Context as Context
from bitjax.methods.base import Method as Method
from bitjax.methods.base import Stage as Stage
from bitjax.methods.bitpruning import bitpruning as bitpruning
from bitjax.methods.bottleneck import bottleneck as bottleneck
from bitjax.methods.full_precision import full_precision as full_precision
from bitjax.methods.hwgq import hwgq as hwgq
from bitjax.methods.lsq import lsq as lsq
from bitjax.methods.pact import pact as pact
from bitjax.methods.tsq import tsq as tsq
from bitjax.methods.twn import twn as twn
from bitjax.methods.uniform import uniform as uniform
