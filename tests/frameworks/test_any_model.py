"""The smallest models of `benchmarks/zoo`, one property each, are quantized in full."""

import jax
import pytest

from benchmarks.zoo import quantized, smallest
from benchmarks.zoo.case import pure
from benchmarks.zoo.macs import products
from benchmarks.zoo.others import CASES as OTHERS

PLAIN = ("x @ w", "a list of matrices, scanned", "statistics as an argument")
CASES = {**smallest.CASES, **{name: OTHERS[name] for name in PLAIN}}


def trial(name):
    case = CASES[name]()
    call, params, arrays = pure(case)
    return quantized.Trial(case, products(jax.make_jaxpr(call)(params, arrays).jaxpr))


@pytest.mark.parametrize("name", CASES)
def test_a_small_model_of_any_kind_is_read_in_full_and_stays_itself(name):
    small = trial(name)
    read = quantized.sites(small)
    # Patches are taken by a convolution with constants, which is counted as work.
    assert read["reached"] == pytest.approx(0.3077 if name == "ConvLocal" else 1.0, abs=1e-4)
    assert read["counted alike"] == "yes"
    assert quantized.floats(small) == {"tree kept": "yes", "equal to float": "yes"}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_small_model_of_any_kind_learns_its_bits(name):
    small = trial(name)
    learned = quantized.gradients(small)
    assert learned["lost"] == learned["nan"] == []
    assert learned["quantized"] == quantized.sites(small)["sites"]
    assert set(quantized.tools(small).values()) == {"ok"}
