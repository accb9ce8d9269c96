"""bitjax: find out how few bits a neural network needs. This file is the table of contents."""

from bitjax.bottleneck.allocate import allocate as allocate
from bitjax.bottleneck.coefficients import solve_coefficients as solve_coefficients
from bitjax.bottleneck.curves import rate_curves as rate_curves
from bitjax.bottleneck.of_sites import site_histograms as site_histograms
from bitjax.bottleneck.rates import allocate_rates as allocate_rates
from bitjax.bottleneck.sensitivity import fisher as fisher
from bitjax.costs.budget import Budget as Budget
from bitjax.costs.budget import budget as budget
from bitjax.costs.budget import penalty as penalty
from bitjax.costs.measures import activation_bytes as activation_bytes
from bitjax.costs.measures import average_bits as average_bits
from bitjax.costs.measures import bits_of as bits_of
from bitjax.costs.measures import bops as bops
from bitjax.costs.measures import inner_sites as inner_sites
from bitjax.costs.measures import kernel_bytes as kernel_bytes
from bitjax.costs.measures import macs as macs
from bitjax.costs.measures import model_bytes as model_bytes
from bitjax.costs.measures import with_bits as with_bits
from bitjax.costs.rounding import round_bits as round_bits
from bitjax.costs.site import SiteCost as SiteCost
from bitjax.diagnostics.doctor import Finding as Finding
from bitjax.diagnostics.doctor import doctor as doctor

# Public; `report` alone would be hidden by the package of that name once it is imported.
from bitjax.diagnostics.doctor import report as doctor_report  # noqa: F401
from bitjax.diagnostics.summary import summary as summary
from bitjax.linen.attach import attach as attach
from bitjax.linen.calibrate import calibrate as calibrate
from bitjax.linen.calibrate import reestimate_batch_stats as reestimate_batch_stats
from bitjax.linen.quantized import Quantized as Quantized
from bitjax.linen.sites import site_costs as site_costs
from bitjax.linen.sites import total_macs as total_macs
from bitjax.linen.tap import tap as tap
from bitjax.quantizers.base import Axes as Axes
from bitjax.quantizers.base import Batch as Batch
from bitjax.quantizers.base import Codes as Codes
from bitjax.quantizers.base import Quantizer as Quantizer
from bitjax.quantizers.base import identity as identity
from bitjax.quantizers.bitlength import bitlength as bitlength
from bitjax.quantizers.bitlength import freeze as freeze
from bitjax.quantizers.bitplane import bitplane as bitplane
from bitjax.quantizers.bitplane import keep_planes as keep_planes
from bitjax.quantizers.halfwave import halfwave as halfwave
from bitjax.quantizers.halfwave import hwgq as hwgq
from bitjax.quantizers.halfwave_fit import gaussian_levels as gaussian_levels
from bitjax.quantizers.halfwave_fit import gaussian_step as gaussian_step
from bitjax.quantizers.laws import Claims as Claims
from bitjax.quantizers.laws import check_quantizer as check_quantizer
from bitjax.quantizers.measure import distortion as distortion
from bitjax.quantizers.measure import entropy as entropy
from bitjax.quantizers.measure import rate as rate
from bitjax.quantizers.measure import sqnr as sqnr
from bitjax.quantizers.ternary import binary as binary
from bitjax.quantizers.ternary import low_bit as low_bit
from bitjax.quantizers.ternary import ternary as ternary
from bitjax.quantizers.uniform import lsq as lsq
from bitjax.quantizers.uniform import pact as pact
from bitjax.quantizers.uniform import uniform as uniform
from bitjax.quantizers.weight_codes import binary_codes as binary_codes
from bitjax.quantizers.weight_codes import otwn_codes as otwn_codes
from bitjax.quantizers.weight_codes import rounded_codes as rounded_codes
from bitjax.quantizers.weight_codes import twn_codes as twn_codes
from bitjax.rules import Rule as Rule
from bitjax.rules import rule as rule
from bitjax.two_step.solve import solve_layers as solve_layers

__version__ = "0.1.0"
