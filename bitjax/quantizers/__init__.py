"""Quantizers: arithmetic on arrays."""

from bitjax.quantizers.base import Axes as Axes
from bitjax.quantizers.base import Batch as Batch
from bitjax.quantizers.base import Codes as Codes
from bitjax.quantizers.base import Planes as Planes
from bitjax.quantizers.base import Quantizer as Quantizer
from bitjax.quantizers.base import Traits as Traits
from bitjax.quantizers.base import identity as identity
from bitjax.quantizers.base import reduce_batch as reduce_batch
from bitjax.quantizers.bitlength import bitlength as bitlength
from bitjax.quantizers.bitplane import bitplane as bitplane
from bitjax.quantizers.halfwave import halfwave as halfwave
from bitjax.quantizers.halfwave import hwgq as hwgq
from bitjax.quantizers.learned_ranges import lsq as lsq
from bitjax.quantizers.learned_ranges import pact as pact
from bitjax.quantizers.measure import distortion as distortion
from bitjax.quantizers.measure import entropy as entropy
from bitjax.quantizers.measure import rate as rate
from bitjax.quantizers.measure import sqnr as sqnr
from bitjax.quantizers.ternary import binary as binary
from bitjax.quantizers.ternary import low_bit as low_bit
from bitjax.quantizers.ternary import ternary as ternary
from bitjax.quantizers.uniform import uniform as uniform
