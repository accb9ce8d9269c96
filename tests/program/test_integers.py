"""Evaluation of products on integers: their sums are those of int32, whatever the product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bitjax as bj
from bitjax.program import run

RNG = np.random.default_rng(0)
IMAGES = ("NHWC", "HWIO", "NHWC")


def conv(strides=(1, 1), padding="SAME", groups=1, spread=(1, 1)):
    def product(w, x):
        return lax.conv_general_dilated(
            x, w, strides, padding,
            lhs_dilation=spread, dimension_numbers=IMAGES, feature_group_count=groups,
        )  # fmt: skip

    return product


def dense(w, x):
    return x @ w


def heads(w, x):
    return jnp.einsum("nd,dhk->nhk", x, w)


def transposed(w, x):
    w = w.transpose(0, 1, 3, 2)
    return lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=IMAGES, transpose_kernel=True)


def attend(queries, keys):
    return jnp.einsum("bqhd,bkhd->bhqk", queries, keys)


# By name the product, the shapes of kernel and input, their bits, and the axes of filters that have
# a scale each.
FORMS = {
    "dense": (dense, (6, 5), (3, 6), 8, 8, (1,)),
    "heads": (heads, (6, 2, 3), (3, 6), 4, 4, (1, 2)),
    "conv": (conv(), (3, 3, 2, 4), (2, 5, 5, 2), 4, 8, (3,)),
    "strided": (conv((2, 1), "VALID"), (3, 2, 2, 4), (2, 5, 5, 2), 8, 4, ()),
    "grouped": (conv(groups=2), (3, 3, 2, 4), (2, 4, 4, 4), 4, 4, ()),
    "depthwise": (conv(groups=3), (3, 3, 1, 3), (2, 4, 4, 3), 8, 8, (3,)),
    "dilated": (
        conv(padding=((2, 1), (1, 2)), spread=(2, 2)),
        (3, 3, 2, 3),
        (1, 3, 3, 2),
        4,
        4,
        (),
    ),
    "transposed": (transposed, (3, 3, 2, 3), (1, 3, 3, 2), 4, 4, (3,)),
    "wide": (dense, (40, 5), (3, 40), 16, 11, ()),
    "wide conv": (conv(), (3, 3, 2, 4), (2, 5, 5, 2), 11, 15, ()),
    "wide kernel": (dense, (300, 4), (2, 300), 16, 9, ()),
}
WIDE = ("wide", "wide conv", "wide kernel")  # past 2^24, not past 2^31


def normal(shape):
    return RNG.normal(size=shape).astype(np.float32)


PARAMS = {name: {"w": normal(shape)} for name, (_, shape, *_) in FORMS.items()}
DATA = {name: normal(shape) for name, (_, _, shape, *_) in FORMS.items()}
QUERIES, KEYS = normal((2, 3, 2, 4)), normal((2, 5, 2, 4))  # batch, places, heads, features


def everything(params, data, queries, keys):
    outs = {name: form[0](params[name]["w"], data[name]) for name, form in FORMS.items()}
    return {**outs, "attention": attend(queries, keys)}


EIGHT = bj.lsq(8)
MODEL = bj.Function(everything, [bj.rule(".*", EIGHT)])


def leaves(x, bits, filters=()):
    """Leaves of `lsq`, whose range cuts the largest elements off."""
    inner = tuple(axis for axis in range(x.ndim) if axis not in filters)
    most = np.abs(x).max(inner, keepdims=True) if filters else np.abs(x).max()
    return {"bits": jnp.float32(bits), "scale": jnp.asarray(0.9 * most / 2.0 ** (bits - 1))}


def site(w, kernel, x, data, filters=()):
    return {"kernel": leaves(w, kernel, filters), "input": leaves(x, data)}


QUANT = {
    name: site(PARAMS[name]["w"], kernel, DATA[name], data, filters)
    for name, (*_, kernel, data, filters) in FORMS.items()
}
QUANT["product0"] = {"left": leaves(QUERIES, 8), "right": leaves(KEYS, 8)}


def numbers(site, x):
    """The integers of a tensor, as int32, and the scale."""
    whole = np.asarray(EIGHT.integers(site, {}, x))
    return whole.astype(np.int32), np.asarray(EIGHT.numbers(site, {}).scale)


@pytest.fixture(scope="module")
def evaluated():
    out = jax.jit(lambda *args: MODEL.apply(*args)[0])
    return jax.tree.map(np.asarray, out(PARAMS, {"quant": QUANT}, DATA, QUERIES, KEYS))


@pytest.fixture(scope="module")
def expected():
    """By name the sums that the same function gives of int32, and their scales."""
    kernels = {n: numbers(QUANT[n]["kernel"], w["w"]) for n, w in PARAMS.items()}
    data = {n: numbers(QUANT[n]["input"], x) for n, x in DATA.items()}
    queries = numbers(QUANT["product0"]["left"], QUERIES)
    keys = numbers(QUANT["product0"]["right"], KEYS)
    sums = jax.jit(everything)(
        {name: {"w": whole} for name, (whole, _) in kernels.items()},
        {name: whole for name, (whole, _) in data.items()},
        queries[0],
        keys[0],
    )
    # The filters are a result's last axes.
    scales = {n: s.reshape([s.shape[a] for a in FORMS[n][-1]]) for n, (_, s) in kernels.items()}
    scales = {**{n: data[n][1] * s for n, s in scales.items()}, "attention": queries[1] * keys[1]}
    return {name: (np.asarray(total), scales[name]) for name, total in sums.items()}


@pytest.mark.parametrize("name", [*FORMS, "attention"])
def test_a_product_is_its_sum_of_int32_times_the_scales(name, evaluated, expected):
    total, scale = expected[name]
    assert total.dtype == np.int32 and np.ptp(total) > 0
    assert (np.abs(total).max() > 2**24) == (name in WIDE)
    np.testing.assert_array_equal(evaluated[name], np.float32(total) * scale)


LAYER = bj.Function(lambda params, x: x @ params["w"], [bj.rule(".*", EIGHT)])
W, X = np.abs(normal((64, 2))), np.abs(normal((3, 64)))
BITS = (4, 12, 16)  # their sums are floats, pass 2^24, pass 2^31
SITES = [site(W, bits, X, bits) for bits in BITS]


@pytest.fixture(scope="module")
def rows():
    """The layer at each of the bits, as rows of one program."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *SITES)
    return jax.jit(jax.vmap(lambda q: LAYER.apply({"w": W}, {"quant": q}, X)[0]))(stacked)


@pytest.mark.parametrize("row", range(len(BITS)))
def test_rows_of_a_program_add_as_their_own_integers_need(row, rows):
    (kernel, by), (data, to) = (numbers(SITES[row][r], x) for r, x in (("kernel", W), ("input", X)))
    total = np.int64(data) @ np.int64(kernel)
    assert [total.max() >= most for most in (2**24, 2**31)] == [row > 0, row > 1]
    # Floats add what int32 does not hold.
    rtol = 1e-5 if row == 2 else 0.0
    np.testing.assert_allclose(rows[row], np.float32(total) * (to * by), rtol)


@pytest.mark.parametrize(
    "quantizer",
    [
        bj.lsq(4, granularity="per_group", group_size=16),
        bj.uniform(4, zero_on_grid=False),
        bj.bitlength(3.5, zero_on_grid=True),
    ],
    ids=["per group", "off zero", "between bits"],
)
def test_levels_without_a_scale_before_the_sum_are_multiplied(quantizer):
    model = LAYER.with_rules([bj.rule("kernel", quantizer), bj.rule("input", EIGHT)])
    state = model.init({"w": W}, X)
    quant, stats = state["quant"], state.get("quant_stats", {}).get("kernel", {})
    levels = quantizer.apply(quant["kernel"], stats, jnp.asarray(W))
    x_hat = EIGHT.apply(quant["input"], {}, jnp.asarray(X))
    out, _ = model.apply({"w": W}, state, X)
    np.testing.assert_array_equal(out, x_hat @ levels)


def small(params, x, queries, keys):
    outs = [FORMS[name][0](params[name]["w"], x) for name in ("conv", "strided")]
    return [*outs, attend(queries, keys)]


def test_derivatives_are_those_of_levels(monkeypatch):
    model = bj.Function(small, [bj.rule(".*", EIGHT)])
    params = {name: PARAMS[name] for name in ("conv", "strided")}
    quant = {name: QUANT[name] for name in (*params, "product0")}

    def found():
        def scored(params, quant, *data):
            outs = model.apply(params, {"quant": quant}, *data)[0]
            return sum(jnp.sum(jnp.cos(jnp.arange(y.size)) * y.ravel()) for y in outs)

        return jax.jit(jax.grad(scored, (0, 1, 2, 3, 4)))(
            params, quant, DATA["conv"], QUERIES, KEYS
        )

    of_integers = found()
    monkeypatch.setattr(run, "EXACT", ())
    scales = [leaf["scale"] for pair in of_integers[1].values() for leaf in pair.values()]
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves((of_integers[0], scales)))
    jax.tree.map(np.testing.assert_array_equal, of_integers, found())
