"""A bitlength by another author, of whom bitjax knows nothing but what the contract says."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.data import load
from bitjax.launch.build import build_work
from bitjax.launch.registry import QUANTIZERS
from bitjax.methods import bitpruning
from bitjax.models import MLP
from bitjax.training.runner import run
from bitjax.training.settings import Settings
from bitjax.training.work import Work, make_work
from configs.digits.bitpruning import get_config


def soft_bits(bits: float = 6.0, *, signed: bool = True, learn: bool = True) -> bj.Quantizer:
    """A blend of two grids over [-c, c) or [0, c], written with `bj` and jax alone."""

    def power(n):
        return jnp.ldexp(jnp.float32(1.0), n.astype(jnp.int32))  # exp2 is not exact everywhere

    def width(params):
        return (2.0 if signed else 1.0) * jnp.exp(params["log_clip_max"])

    def grid(x, params, n):
        """In widths: the level nearest to x among 2^n, and where these begin and end."""
        count = power(n) - 1.0
        first = -0.5 * power(n) if signed else jnp.float32(0.0)
        code = jnp.clip(jnp.rint(x * (count / width(params))), first, first + count)
        unit = 1.0 / count  # a product is the same in every program, a quotient not
        return code * unit, first * unit, first * unit + 1.0

    def init(x, axes):
        if not x.size:
            raise ValueError(f"x must have at least one element, got shape {x.shape}.")
        largest = jnp.max(jnp.abs(x) if signed else x).astype(jnp.float32)
        clip = jnp.where(largest > 0, largest, 1.0)
        return {"bits": jnp.float32(bits), "log_clip_max": jnp.log(clip)}, {}

    def apply(params, stats, x, *, train=False, key=None):
        wide, n = x.astype(jnp.float32), params["bits"]
        n = n if learn else jax.lax.stop_gradient(jnp.rint(n))
        share = n - jnp.floor(n)
        below, above = (
            jax.lax.stop_gradient(grid(wide, params, jnp.floor(n) + i)) for i in (0.0, 1.0)
        )
        ratio, first, last = (
            (1.0 - share) * a + share * b for a, b in zip(below, above, strict=True)
        )
        at = wide / width(params)
        inside = (at > first - 1e-6) & (at < last + 1e-6)
        straight = jnp.where(inside, at - jax.lax.stop_gradient(at), 0.0)  # 0, but for its gradient
        return (width(params) * (ratio + straight)).astype(x.dtype)

    def encode(params, stats, x):
        n = jnp.rint(params["bits"])
        ratio, first, _ = grid(x.astype(jnp.float32), params, n)
        return bj.Codes(jnp.rint((ratio - first) * (power(n) - 1.0)).astype(jnp.int32))

    def decode(params, stats, codes):
        n = jnp.rint(params["bits"])
        first = -0.5 * power(n) if signed else jnp.float32(0.0)
        return width(params) * ((codes.codes + first) * (1.0 / (power(n) - 1.0)))

    traits = bj.Traits(
        learns_bits=(2.0, 12.0) if learn else None, numbers="signed" if signed else "unsigned"
    )
    frozen = (lambda: soft_bits(bits, signed=signed, learn=False)) if learn else None
    return bj.Quantizer(init, apply, encode, decode, name="soft_bits", traits=traits, frozen=frozen)


def known_bits(*, signed: bool = True) -> bj.Quantizer:
    """`bj.bitlength` with the same formulas, from the same start."""
    bounds = {"min_bits": 2.0, "max_bits": 12.0}
    known = bj.bitlength(6.0, range="learned", signed=signed, zero_on_grid=True, **bounds)
    return known._replace(init=soft_bits(signed=signed).init)


DATA = load("digits", limit=512)
BUDGET = bj.budget("bits", 3.5)


def work_with(make) -> Work:
    rules = (
        bj.rule(".*/kernel|dense1/input", make(signed=True)),
        bj.rule(".*/input", make(signed=False)),
    )
    method = bitpruning(
        rules, steps=60, learning_rate=0.05, bits_learning_rate=0.1, settle=0.0, budgets=(BUDGET,)
    )
    settings = Settings(batch_size=64, eval_batch_size=512, calibration_size=64)
    return make_work(method, MLP(features=(16,)), DATA, settings=settings)


@pytest.mark.parametrize("signed", [True, False])
def test_the_other_authors_bitlength_keeps_the_laws(signed):
    claims = bj.Claims(bits=range(2, 13), constant=None, fractional=True)
    bj.check_quantizer(soft_bits(signed=signed), claims)


@pytest.mark.slow
def test_the_other_authors_bitlength_trains_freezes_and_is_rounded_and_reported_like_ours():
    work = work_with(soft_bits)
    found, variables = run(work, show=False)
    wanted, known = run(work_with(known_bits), show=False)
    assert [s["name"] for s in found["stages"]] == ["learn_bits", "freeze_bits"]
    assert found["accuracy"] == wanted["accuracy"] > 0.8
    # Without `numbers` a site leaves the table of its levels.
    assert found["cost"].pop("model_bytes") > wanted["cost"].pop("model_bytes")
    assert found["cost"] == wanted["cost"]
    for name, part in wanted["bits"].items():
        assert found["bits"][name]["integer"] == part["integer"]
        assert found["bits"][name]["fractional"] == pytest.approx(part["fractional"], abs=1e-3)
    assert found["bits"]["all"]["integer"] == 3.5 and found["bits"]["all"]["fractional"] < 5.0
    # Rounded alike, site by site, and held by what the last stage computes with.
    bits = bj.bits_of(variables)
    jax.tree.map(np.testing.assert_array_equal, bits, bj.bits_of(known))
    assert all(float(n) == round(float(n)) for n in bits.values())
    assert all(r.quantizer.traits.learns_bits is None for r in work.method.stages[-1].rules)


def test_the_other_authors_bitlength_is_seen_by_the_doctor_and_the_summary():
    work = work_with(soft_bits)
    model, x = work.wrap(work.method.stages[0]), work.calibration_batch()
    variables = bj.with_bits(bj.attach(model, work.start, x), {"head/kernel": 12.0})
    found = [f.message for f in bj.doctor(model, variables, x) if f.site == "head/kernel"]
    assert any("has its bitlength at max_bits=12" in message for message in found)
    assert "soft_bits" in bj.summary(model, variables, x, file=io.StringIO())


@pytest.mark.slow
def test_the_other_authors_bitlength_reaches_the_result_of_the_digits_config(monkeypatch):
    results = {}
    for name, make in (("soft_bits", soft_bits), ("known_bits", known_bits)):
        monkeypatch.setitem(QUANTIZERS, name, make)
        config = get_config()
        config.rules = (
            (".*/kernel|conv1/input", {"name": name}),
            (".*/input", {"name": name, "signed": False}),  # after a ReLU
        )
        results[name] = run(build_work(config), show=False).result
    bits = [result["bits"]["all"]["integer"] for result in results.values()]
    assert bits == [3.0, 3.0], "both meet the config's budget, with no bit to spare"
    # 1200 steps part what rounding has parted once: a few of the 360 images may differ.
    theirs, known = (result["accuracy"] for result in results.values())
    assert abs(theirs - known) <= 0.015 and theirs > 0.97
