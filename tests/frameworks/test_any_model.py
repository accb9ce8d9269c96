"""The smallest models of `benchmarks/zoo`, one property each, are quantized in full."""

import jax
import pytest

from benchmarks.zoo import quantized, smallest
from benchmarks.zoo.case import pure
from benchmarks.zoo.macs import products
from benchmarks.zoo.others import CASES as OTHERS

PLAIN = ("x @ w", "a list of matrices, scanned", "statistics as an argument")
CASES = {**smallest.CASES, **{name: OTHERS[name] for name in PLAIN}}


@pytest.mark.parametrize("name", CASES)
def test_a_small_model_of_any_kind_is_quantized_in_full(name):
    case = CASES[name]()
    call, params, arrays = pure(case)
    found = products(jax.make_jaxpr(call)(params, arrays).jaxpr)

    read = quantized.sites(case, found)
    # Patches are taken by a convolution with constants, which is counted as work.
    assert read["reached"] == pytest.approx(0.3077 if name == "ConvLocal" else 1.0, abs=1e-4)
    assert read["counted alike"] == "yes"

    kept = quantized.floats(case, found)
    assert kept == {"tree kept": "yes", "equal to float": "yes"}

    learned = quantized.gradients(case, found)
    assert learned["lost"] == learned["nan"] == []
    assert learned["quantized"] == read["sites"]
