"""What a quantizer does to a tensor, in figures checked by hand."""

import jax
import jax.numpy as jnp
import pytest

from bitjax.diagnostics.vitals import vitals
from bitjax.quantizers.base import Axes, Codes, Quantizer, identity
from bitjax.quantizers.bitlength import bitlength
from bitjax.quantizers.learned_ranges import lsq, pact
from bitjax.quantizers.uniform import uniform

NORMAL = jax.random.normal(jax.random.key(0), (4096,))


def look(quantizer, x, **params):
    start, stats = quantizer.init(x, Axes())
    return vitals(quantizer, {**start, **params}, stats, x)


@pytest.mark.parametrize(
    "quantizer", [uniform(bits=8), uniform(bits=3, granularity="per_channel"), lsq(bits=4)]
)
def test_a_range_that_fits_has_nothing_to_report(quantizer):
    found = look(quantizer, NORMAL.reshape(512, 8))
    assert (float(found.saturated), float(found.cut), bool(found.half_used)) == (0.0, 0.0, False)
    assert float(found.zeros) < 0.5


def test_the_best_range_at_two_bits_does_not_saturate():
    params, stats = lsq(bits=2).init(NORMAL, Axes())
    half = float(params["scale"]) / 2
    highest = float(params["scale"])
    assert float(jnp.mean(NORMAL > highest + half)) > 0.05  # by the share alone it would
    assert float(look(lsq(bits=2), NORMAL).saturated) == 0.0


def test_saturation_counts_from_half_a_step_beyond_the_last_level():
    x = jnp.array([0.0, 1.0, 3.4, 3.6, -0.4, 50.0, 60.0, 2.0])
    found = look(pact(bits=2, init_clip=3.0), x)
    assert float(found.saturated) == 3 / 8
    assert float(found.cut) == 1 / 8


def test_a_range_for_few_bits_is_right_to_clip_while_bits_are_learned():
    learned = {"range": "learned", "clip_bits": 2.0, "min_bits": 2.0}
    params, stats = bitlength(8.0, **learned).init(NORMAL, Axes())
    clip = float(jnp.exp(params["log_clip_max"]))
    assert float(jnp.mean(jnp.abs(NORMAL) > 1.01 * clip)) > 0.05  # at 8 bits it would saturate
    held = bitlength(8.0, **learned, mode="fixed")
    assert float(vitals(held, params, stats, NORMAL).saturated) > 0.05
    assert float(vitals(bitlength(8.0, **learned), params, stats, NORMAL).saturated) == 0.0
    narrow = {**params, "log_clip_max": params["log_clip_max"] - jnp.log(10.0)}
    assert float(vitals(bitlength(8.0, **learned), narrow, stats, NORMAL).saturated) > 0.5


def test_zeros_of_the_tensor_itself_do_not_count():
    x = jnp.array([0.0, 0.0, 0.2, 3.0])
    assert float(look(pact(bits=2, init_clip=3.0), x).zeros) == 0.5
    assert float(look(lsq(bits=4), jnp.zeros(4)).zeros) == 0.0
    assert float(look(lsq(bits=4), x, scale=jnp.float32(99.0)).zeros) == 1.0


def test_half_the_codes_are_wasted_where_no_element_is_negative():
    positive = jnp.abs(NORMAL)
    assert bool(look(lsq(bits=4), positive).half_used)
    assert bool(look(uniform(bits=4, range="absmax"), positive).half_used)
    assert not bool(look(lsq(bits=4, signed=False), positive).half_used)
    assert not bool(look(uniform(bits=4), positive).half_used)
    assert not bool(look(lsq(bits=4), jnp.zeros(4)).half_used)


def test_a_quantizer_that_clips_nothing_has_no_ends():
    rounding = Quantizer(
        init=lambda x, axes: ({"bits": jnp.float32(8.0)}, {}),
        apply=lambda params, stats, x, **options: jnp.round(x * 64.0) / 64.0,
        encode=lambda params, stats, x: Codes(jnp.round(x * 64.0).astype(jnp.int32)),
        decode=lambda params, stats, codes: codes.codes / 64.0,
    )
    for quantizer in (rounding, identity()):
        found = look(quantizer, jnp.abs(NORMAL))
        assert (float(found.saturated), bool(found.half_used)) == (0.0, False)
