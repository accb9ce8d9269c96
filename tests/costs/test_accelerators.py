"""The cost rules of Stripes, Loom and Bit Fusion, against layers worked out by hand."""

import math

import pytest

from bitjax.costs.accelerators import RULES, LayerBits, bit_fusion, loom, speedup, stripes

# A convolution of 3 x 3 over 16 channels to 32 filters on 4 x 4 positions:
#   MACs 3*3*16*32*16 = 73,728, weights 3*3*16*32 = 4,608.
CONV = LayerBits(macs=73728, weights=4608, weight_bits=3, input_bits=5)
# 256 inputs to 10 classes: each weight is used once.
DENSE = LayerBits(macs=2560, weights=2560, weight_bits=3, input_bits=5)


@pytest.mark.parametrize(
    ("rule", "layer", "speed"),
    [
        (stripes, CONV, 16 / 5),  # inputs bit by bit: 5 cycles instead of 16
        (stripes, DENSE, 1.0),  # no windows that share weights
        (loom, CONV, 256 / 15),  # both bit by bit: 3 * 5 cycles instead of 16 * 16
        (loom, DENSE, 16 / 3),  # of a dense layer only weights
        (bit_fusion, CONV, 256 / 32),  # 3 -> 4 and 5 -> 8 bits: 32 of 256
        (bit_fusion, DENSE, 256 / 32),
    ],
)
def test_a_layer_runs_as_fast_as_worked_out_by_hand(rule, layer, speed):
    assert speedup(rule, [layer]) == pytest.approx(speed, rel=1e-12)


def test_a_networks_layers_follow_each_other():
    # Stripes: 73,728 * 5/16 = 23,040 and 2,560; together 25,600 of 76,288.
    assert speedup(stripes, [CONV, DENSE]) == pytest.approx(76288 / 25600, rel=1e-12)
    # Loom: 73,728 * 15/256 = 4,320 and 2,560 * 3/16 = 480; together 4,800.
    assert speedup(loom, [CONV, DENSE]) == pytest.approx(76288 / 4800, rel=1e-12)
    # Bit Fusion: 76,288 * 32/256.
    assert speedup(bit_fusion, [CONV, DENSE]) == pytest.approx(8.0, rel=1e-12)


@pytest.mark.parametrize("rule", RULES.values())
@pytest.mark.parametrize("bits", [16, 17, 32])
def test_float_counts_as_the_16_bits_that_the_accelerators_compare_with(rule, bits):
    assert rule(CONV._replace(weight_bits=bits, input_bits=bits)) == 1.0


@pytest.mark.parametrize(("bits", "width"), [(1, 2), (2, 2), (2.5, 4), (4, 4), (8, 8), (9, 16)])
def test_bit_fusion_rounds_widths_up_to_what_it_can_fuse(bits, width):
    assert bit_fusion(CONV._replace(weight_bits=bits, input_bits=16)) == width / 16


@pytest.mark.parametrize("rule", RULES.values())
def test_a_layer_without_bits_takes_no_time(rule):
    gone = CONV._replace(weight_bits=0)
    assert rule(gone) == 0.0
    assert speedup(rule, [gone]) == math.inf and speedup(rule, []) == 1.0
    assert speedup(rule, [gone, CONV._replace(weight_bits=16, input_bits=16)]) == 2.0


@pytest.mark.parametrize("bad", [-1, math.nan])
def test_negative_bits_are_refused(bad):
    with pytest.raises(ValueError, match="`input_bits` must be 0 or more"):
        stripes(CONV._replace(input_bits=bad))
