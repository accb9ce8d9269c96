"""What a layer's output must be right for, read off its kernel's and its reader's quantizers."""

import jax.numpy as jnp
import pytest

import bitjax as bj
from bitjax.frameworks.targets import OutputLevels, is_stored, levels_of


def test_only_a_stored_scale_can_be_solved_for():
    assert is_stored(bj.ternary(fit="stored"))
    assert not is_stored(bj.ternary()) and not is_stored(None)


@pytest.mark.parametrize("bits, found", [(2, OutputLevels(0.5, 0.25, 3)), (5, None)])
def test_levels_are_those_of_at_most_15_codes_above_0(bits, found):
    quant = {"input": {"bits": jnp.float32(bits), "scale": jnp.float32(0.5)}}
    rules = [bj.rule("input", bj.lsq(bits=bits, signed=False))]
    assert levels_of(rules, {"quant": quant}, "input") == found
    assert levels_of([], {"quant": quant}, "input") is None
