"""An element that is exactly 0 stays 0 at all bits and ranges, or the traits say it does not."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.quantizers.base import Axes

GRANULARITIES = {
    "per_tensor": {},
    "per_channel": {"granularity": "per_channel"},
    "per_group": {"granularity": "per_group", "group_size": 4},
}
MODES = ("blend", "sample", "ste")
RANGES = ("minmax", None), ("minmax", True), ("absmax", None), ("percentile", None), ("mse", None)
# (quantizer of a granularity's arguments, the fewest bits)
BY_GRANULARITY = {
    **{f"uniform {r} {s}": (lambda a, r=r, s=s: bj.uniform(8, range=r, signed=s, **a), 1)
       for r, s in RANGES},
    "uniform off zero": (lambda a: bj.uniform(8, zero_on_grid=False, **a), 1),
    "lsq": (lambda a: bj.lsq(8, **a), 1),
    "pact": (lambda a: bj.pact(8, signed=True, **a), 1),
    **{f"bitlength {r} {m}": (lambda a, r=r, m=m: bj.bitlength(
        8.0, range=r, mode=m, zero_on_grid=True, **a), 0)
       for r in ("minmax", "learned") for m in MODES},
    "bitlength off zero": (lambda a: bj.bitlength(8.0, **a), 0),
    "bitlength learned off zero": (lambda a: bj.bitlength(8.0, range="learned", **a), 0),
}  # fmt: skip
ALONE = {
    **{f"bitplane {s} {c}": (bj.bitplane(8, signed=True, scale=s, coefficients=c), 2)
       for s in ("learned", "observed") for c in ("power_of_two", "free")},
    "bitplane faithful": (bj.bitplane(8, signed=True, mode="faithful", dither=True), 2),
    "halfwave": (bj.halfwave(8), 1),
    "hwgq": (bj.hwgq(8), 1),
    "ternary": (bj.ternary(), 2),
    "ternary twn": (bj.ternary("twn"), 2),
    "ternary stored": (bj.ternary("stored"), 2),
    "low_bit": (bj.low_bit(8), 2),
    "low_bit stored": (bj.low_bit(8, fit="stored"), 2),
    "binary": (bj.binary(), 1),
    "binary stored": (bj.binary("stored"), 1),
}  # fmt: skip
CASES = [
    *(pytest.param(make(arguments), least, id=f"{name} {granularity}")
      for (name, (make, least)), (granularity, arguments)
      in itertools.product(BY_GRANULARITY.items(), GRANULARITIES.items())),
    *(pytest.param(quantizer, least, id=name) for name, (quantizer, least) in ALONE.items()),
]  # fmt: skip
ZEROS = np.random.default_rng(1).random((8, 4)) < 0.4
NORMAL = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
# Around 0, far to both sides of it, tiny, and huge with an outlier.
KERNELS = [np.where(ZEROS, 0.0, k).astype(np.float32) for k in (
    NORMAL, np.abs(NORMAL) + 1.0, -1e4 * (np.abs(NORMAL) + 0.5), 1e-6 * NORMAL - 3e-6,
    np.where(NORMAL > 1.5, 1e6, NORMAL))]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("quantizer", "least"), CASES)
def test_zeros_stay_zeros_at_all_bits_and_ranges_or_the_traits_say_so(quantizer, least):
    halves = 2 if quantizer.traits.learns_bits else 1
    bits = jnp.arange(least * halves, 16 * halves + 1, dtype=jnp.float32) / halves

    def both(x, bits):
        params, stats = quantizer.init(x, Axes((-1,), 0))
        if quantizer.measure is not None:
            stats = quantizer.update(stats, quantizer.measure(params, stats, x))
        params = {**params, "bits": jnp.full_like(params["bits"], bits)}
        key = jax.random.key(0)
        return [quantizer.apply(params, stats, x, train=train, key=key) for train in (False, True)]

    found = jax.jit(jax.vmap(jax.vmap(both, (None, 0)), (0, None)))(jnp.stack(KERNELS), bits)
    kept = all(
        bool(np.all(np.asarray(x_hat)[k][:, zeros] == 0.0))
        for x_hat in found
        for k, zeros in enumerate(np.asarray(KERNELS) == 0.0)
    )
    assert kept == quantizer.traits.zero_is_code
