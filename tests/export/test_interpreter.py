"""The interpreter's primitives are JAX's, on arrays that show their corners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bitjax as bj
from bitjax.export.graph import graph_of
from bitjax.export.interpreter import interpret

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 6, 4)).astype(np.float32)
W = RNG.normal(size=(3, 2, 2, 4)).astype(np.float32)
DN = ("NHWC", "HWIO", "NHWC")


def window(reduce, start, padding="SAME", dilation=(1, 1, 1, 1)):
    def run(x):
        return lax.reduce_window(
            x, start, reduce, (1, 3, 2, 1), (1, 2, 1, 1), padding, window_dilation=dilation
        )

    return run


CASES = {
    "convolution": lambda x: lax.conv_general_dilated(
        x, W, (2, 1), ((1, 0), (0, 2)), rhs_dilation=(1, 2), dimension_numbers=DN,
        feature_group_count=2,
    ),
    "transposed convolution": lambda x: lax.conv_general_dilated(
        x, W, (1, 1), ((2, 2), (1, 1)), lhs_dilation=(2, 3), dimension_numbers=DN,
        feature_group_count=2,
    ),
    "batched product": lambda x: jnp.einsum("nhwc,nhvc->nhwv", x, x[:, :, :3]),
    "product": lambda x: jnp.einsum("nhwc,wcd->dnh", x, jnp.ones((6, 4, 3))),
    "max pooling": window(lax.max, -jnp.inf),
    "min pooling": window(lax.min, jnp.inf, "VALID", (1, 1, 2, 1)),
    "sum pooling": window(lax.add, 0.0),
    "padding": lambda x: lax.pad(x, 2.0, ((0, 0, 0), (-1, 2, 1), (1, -2, 0), (0, 0, 2))),
    "slices": lambda x: lax.slice(x, (0, 1, 0, 1), (2, 5, 6, 3), (1, 2, 3, 1))[:, ::-1],
    "shapes": lambda x: jnp.concatenate([x.transpose(0, 3, 1, 2).reshape(2, -1)] * 2, axis=1),
    "means": lambda x: x.mean((1, 2)) / x.var(axis=3)[:, :1, 0] + x.max((1, 2)) - x.min((1, 2)),
    "choices": lambda x: jnp.where(x > 0, x, jnp.clip(x, -0.5, 3.0) * 2) ** 2,
    "softmax": lambda x: jax.nn.softmax(x, axis=-1) + jax.nn.sigmoid(x) + jax.nn.silu(x),
    "gelu": lambda x: jax.nn.gelu(x) + jax.nn.gelu(x, approximate=False),
    "norm": lambda x: (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5),
    "table": lambda x: jnp.arange(12.0).reshape(6, 2)[(x > 0).astype(int)[:, 0, 0]],
    "fill": lambda x: jnp.arange(4.0).at[jnp.argmax(x, -1) * 2].get(mode="fill", fill_value=-1.0),
    "count": lambda x: jnp.cumsum(x, axis=1) + jnp.arange(4) + jnp.floor(x) * jnp.sign(x),
    "casts": lambda x: x.astype(jnp.int32).astype(jnp.float32) + lax.stop_gradient(x),
}  # fmt: skip


@pytest.fixture(scope="module")
def both():
    def run(params, x):
        return {name: case(x) for name, case in CASES.items()}

    found = interpret(graph_of(bj.Deployed(bj.Function(run), {"params": {}}), X), X)
    return found.out, jax.jit(run)({}, X)


@pytest.mark.parametrize("name", CASES)
def test_primitives_are_those_of_jax(both, name):
    own, jaxs = (out[name] for out in both)
    assert own.shape == jaxs.shape and own.dtype == jaxs.dtype and own.size
    np.testing.assert_allclose(own, jaxs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (lambda params, x: jnp.sort(x), "the model computes 'sort', which the interpreter"),
        (
            lambda params, x: lax.fori_loop(0, x.shape[1], lambda i, y: y * 2, x),
            "computes 'scan', which the interpreter",
        ),
    ],
    ids=["sort", "loop"],
)
def test_what_it_does_not_know_is_named_in_one_line(fn, said):
    graph = graph_of(bj.Deployed(bj.Function(fn), {"params": {}}), X)
    with pytest.raises(ValueError) as caught:
        interpret(graph, X)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    # What NumPy does not know runs in JAX.
    fixed = bj.Deployed(bj.Function(fn), {"params": {}})
    np.testing.assert_array_equal(bj.integer_model(fixed, X)(X), fn({}, X))
