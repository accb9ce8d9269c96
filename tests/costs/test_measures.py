"""Bits, bytes and bit operations of small models, by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitjax import Quantized, bitlength, lsq, rule, uniform
from bitjax.costs.bits import bits_of, with_bits
from bitjax.costs.measures import (
    activation_bytes,
    average_bits,
    bops,
    inner_sites,
    kernel_bytes,
    layer_pairs,
    macs,
    site_bits,
)
from bitjax.costs.site import SiteCost
from bitjax.costs.sizes import model_bytes
from bitjax.frameworks.costs import site_costs


def layer(name, macs, kernel, given, source=None, count=1):
    kernel_site, input_site = f"{name}/kernel", f"{name}/input"
    return {
        input_site: SiteCost(macs, given, 8, source or input_site, name, "input", count),
        kernel_site: SiteCost(macs, kernel, 8, kernel_site, name, "kernel", count),
    }


COSTS = {
    **layer("stem", 1000, 64, 16),
    **layer("left", 2000, 128, 40),
    **layer("right", 3000, 256, 40, source="left/input"),
    **layer("head", 80, 80, 8),
}
BITS = {
    "stem/kernel": 8.0,
    "left/kernel": jnp.array([[2.0, 4.0]]),  # per channel: 3 on average
    "left/input": 4.0,
    "right/kernel": 1.5,
    "right/input": 6.0,
}


def test_the_average_is_over_sites_and_a_float_site_counts_thirty_two_bits():
    expected = (8 + 32 + 3 + 4 + 1.5 + 6 + 32 + 32) / 8
    assert float(average_bits(BITS, COSTS)) == expected
    assert float(average_bits(BITS, COSTS, ["left/kernel", "left/input"])) == 3.5
    assert float(average_bits({}, COSTS)) == 32.0


def test_inner_sites_are_those_of_all_layers_but_the_first_and_the_last():
    assert inner_sites(COSTS) == ["left/input", "left/kernel", "right/input", "right/kernel"]
    assert float(average_bits(BITS, COSTS, inner_sites(COSTS))) == (3 + 4 + 1.5 + 6) / 4


def test_kernel_bytes_are_elements_times_bits():
    expected = (64 * 8 + 128 * 3 + 256 * 1.5 + 80 * 32) / 8
    assert float(kernel_bytes(BITS, COSTS)) == expected
    assert float(kernel_bytes(BITS, COSTS, ["stem/kernel", "stem/input"])) == 64


def test_a_tensor_that_two_layers_read_is_stored_once_at_its_widest():
    assert float(activation_bytes(BITS, COSTS)) == (16 * 32 + 40 * 6 + 8 * 32) / 8
    assert float(activation_bytes({**BITS, "left/input": 7.0}, COSTS)) == (512 + 280 + 256) / 8
    float_reader = {k: v for k, v in BITS.items() if k != "left/input"}
    assert float(activation_bytes(float_reader, COSTS)) == (512 + 40 * 32 + 256) / 8


def test_bit_operations_are_multiply_adds_times_both_bits():
    expected = 1000 * 8 * 32 + 2000 * 3 * 4 + 3000 * 1.5 * 6 + 80 * 32 * 32
    assert float(bops(BITS, COSTS)) == expected
    assert float(bops(BITS, COSTS, ["right/kernel"])) == 27_000
    assert macs(COSTS) == 6080


def test_no_bits_cost_nothing():
    none = {site: 0.0 for site in COSTS}
    for metric in (average_bits, kernel_bytes, activation_bytes, bops):
        assert float(metric(none, COSTS)) == 0.0


def test_a_scanned_site_counts_as_its_layers():
    costs = {**layer("one", 10, 8, 4), **layer("stack", 300, 24, 12, count=3)}
    bits = {
        "one/kernel": 2.0,
        "one/input": 2.0,
        "stack/kernel": jnp.array([1.0, 2.0, 6.0]),
        "stack/input": jnp.array([2.0, 3.0, 1.0]),
    }
    assert site_bits(bits, costs)["stack/kernel"].tolist() == [1, 2, 6]
    assert float(average_bits(bits, costs)) == (2 + 2 + 9 + 6) / 8
    assert float(kernel_bytes(bits, costs)) == (8 * 2 + 8 * 9) / 8
    # Each layer of the stack has a third of the multiply-adds and its own two bits.
    assert float(bops(bits, costs)) == pytest.approx(10 * 4 + 100 * (2 + 6 + 6))
    per_channel = {**bits, "stack/kernel": jnp.array([[1.0, 3.0], [2.0, 2.0], [6.0, 8.0]])}
    assert site_bits(per_channel, costs)["stack/kernel"].tolist() == [2, 2, 7]


def test_costs_are_differentiable_in_the_bits_and_do_not_recompile():
    traced = []

    @jax.jit
    def slope(bits):
        traced.append(1)
        return jax.grad(lambda bits: bops(bits, COSTS))(bits)

    for value in (2.0, 3.0):
        found = slope({"left/kernel": jnp.float32(value), "left/input": jnp.float32(4.0)})
        assert float(found["left/kernel"]) == 2000 * 4
    assert len(traced) == 1


class Small(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), name="conv")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dense(2, name="head")(x.mean((1, 2)))


def test_bits_are_read_by_site_and_layers_pair_their_sites():
    rules = [
        rule("head/input", None),
        rule(".*/kernel", bitlength(3.0, granularity="per_channel")),
        rule(".*/input", uniform(5)),
    ]
    x = jnp.ones((2, 6, 6, 3))
    variables = jax.eval_shape(Quantized(Small(), rules).init, jax.random.key(0), x)
    bits = bits_of(variables)
    assert set(bits) == {"conv/kernel", "conv/input", "head/kernel"}
    assert bits["conv/kernel"].shape == (1, 1, 1, 4)
    assert layer_pairs(site_costs(Small(), x))["head"] == ("head/kernel", "head/input")
    assert bits_of(variables["quant"]).keys() == bits.keys()


def test_bits_that_are_set_are_the_only_leaves_that_change():
    x = jnp.ones((2, 3))
    rules = [rule("kernel", uniform(4, granularity="per_channel")), rule("input", bitlength(5.0))]
    model = Quantized(nn.Dense(4), rules)
    variables = model.init(jax.random.key(0), x)
    changed = with_bits(variables, {"kernel": 2, "input": np.float32(2.5)}, rules)
    assert {site: float(n) for site, n in bits_of(changed).items()} == {"kernel": 2, "input": 2.5}
    back = with_bits(changed, bits_of(variables))
    assert jax.tree.map(str, back) == jax.tree.map(str, dict(variables))
    with pytest.raises(ValueError, match="'other/kernel', which has no bits. Sites that have: "):
        with_bits(variables, {"other/kernel": 2})


@pytest.mark.parametrize(
    "rules", [None, [rule("kernel", uniform(4)), rule("input", bitlength(5.0))]]
)
def test_bits_that_a_quantizer_does_not_take_are_refused(rules):
    variables = {"quant": {role: {"bits": jnp.float32(4.0)} for role in ("kernel", "input")}}
    for site in ("kernel", "input"):
        for bits in (-3, float("nan"), float("inf"), 17, [4, -1]):
            with pytest.raises(ValueError, match=rf"`bits\['{site}'\]` must be"):
                with_bits(variables, {site: np.asarray(bits)}, rules)
    hint = "its bits are not learned" if rules else r"with_bits\(variables, bits, model.rules\)"
    with pytest.raises(ValueError, match=rf"`bits\['kernel'\]` must be .* got 2.5; .*{hint}"):
        with_bits(variables, {"kernel": 2.5}, rules)
    with pytest.raises(ValueError, match="`bits` must be a mapping"):
        with_bits(variables, {"kernel": "4"}, rules)


OTHER = {"elsewhere/kernel": SiteCost(8, 8, 2, "", "elsewhere", "kernel")}


@pytest.mark.parametrize("metric", [average_bits, kernel_bytes, activation_bytes, bops])
def test_bits_and_costs_of_two_models_and_sites_of_none_are_refused(metric):
    own = {"kernel": SiteCost(8, 8, 2, "", "", "kernel")}
    with pytest.raises(ValueError, match="must be of one model, got bits of kernel and costs of e"):
        metric({"kernel": 4.0}, OTHER)
    with pytest.raises(ValueError, match="`sites` has 'elsewhere/kernel', which is no site"):
        metric({"kernel": 4.0}, own, list(OTHER))
    with pytest.raises(ValueError, match="`sites` must be a list of names of sites, or None"):
        metric({"kernel": 4.0}, own, "kernel")


def test_a_kernel_of_fewer_parameters_counts_its_own_bytes():
    # The product of two factors, of 8 and 8 numbers, is a kernel of 64: runs of it must end.
    costs = {"a/kernel": SiteCost(64, 64, 8, "", "a", "kernel")}
    factors = {"a": jnp.ones((8, 1)), "b": jnp.ones((1, 8))}
    assert model_bytes({"params": factors}, costs) == 4 * 64
    quant = {"a": {"kernel": {"bits": jnp.array(4.0)}}}
    assert model_bytes({"params": factors, "quant": quant}, costs) == 64 / 2 + 1


def test_bytes_of_a_packed_model_by_hand():
    rules = [
        rule("conv/kernel", lsq(4, granularity="per_channel")),
        rule("head/kernel", bitlength(2.0, granularity="per_channel")),
        rule("conv/input", uniform(8)),
    ]
    x = jnp.ones((2, 6, 6, 3))
    variables = jax.jit(Quantized(Small(), rules).init)(jax.random.key(0), x)
    codes = (9 * 3 * 4 * 4 + 4 * 2 * 2) / 8
    floats = 4 * (4 + 2 + 4 * 4)  # two biases; scale, bias, mean and variance of the normalisation
    tables = 1 + 2 + 1  # bits: of the tensor, of two channels, of the tensor
    scales = 4 * (4 + 2 * 2 + 1)  # four scales; two pairs of ends; the end of a range from 0
    costs = site_costs(Small(), x)
    assert model_bytes(variables, costs) == codes + floats + tables + scales
    alone = model_bytes({k: variables[k] for k in ("params", "batch_stats")}, costs)
    assert alone == 4 * (9 * 3 * 4 + 4 * 2) + floats


def test_a_symmetric_range_is_one_number_as_a_scale_is():
    x = jnp.linspace(-1.0, 2.0, 12).reshape(4, 3)

    def counted(kernel):
        variables = Quantized(nn.Dense(2), [rule("kernel", kernel)]).init(jax.random.key(0), x)
        return model_bytes(variables, site_costs(nn.Dense(2), x))

    scale = counted(lsq(4, granularity="per_channel"))
    assert counted(uniform(4, signed=True, granularity="per_channel")) == scale
    assert counted(uniform(4, granularity="per_channel")) == scale + 2 * 4


@pytest.mark.parametrize("bits", [1.0, 3.7, 16.0])
def test_a_mean_over_channels_of_equal_bits_is_those_bits(bits):
    table = jnp.full((1, 1, 7), bits)
    np.testing.assert_allclose(site_bits({"stem/kernel": table}, COSTS)["stem/kernel"], [bits])
