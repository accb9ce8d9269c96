"""The gradients of learned scales: those of the mean over examples, whatever the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj

RULES = [bj.rule(".*", bj.lsq(bits=3))]


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def slopes(function, params, x, batches):
    """By batch the gradients of a mean over examples; and the leaves, which start from x."""
    model = bj.Function(function, RULES)
    quant = model.init(params, x)["quant"]

    @jax.jit
    def pull(quant, x):
        def loss(quant):
            return jnp.mean(model.apply(params, {"quant": quant}, x)[0])

        return jax.grad(loss)(quant)

    return [pull(quant, batch) for batch in batches], quant


def conv(w, x):
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=axes) ** 2


MATRIX = normal(6, 5, seed=1)
MODELS = {
    "positions": (lambda w, x: (x @ w) ** 2, MATRIX, normal(4, 3, 6), 0),
    "columns": (lambda w, x: (w.T @ x) ** 2, MATRIX, normal(6, 4), 1),
    "flattened": (lambda w, x: (x.reshape(len(x), -1) @ w) ** 2, MATRIX, normal(4, 2, 3), 0),
    "convolution": (conv, normal(3, 3, 2, 3), normal(4, 5, 5, 2), 0),
    "attention": (
        lambda w, x: jnp.einsum("btf,bsf->bts", x, x @ w) ** 2, normal(6, 6), normal(4, 3, 6), 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_each_example_twice_has_the_same_gradients(name):
    function, params, x, axis = MODELS[name]
    (once, twice), _ = slopes(function, params, x, (x, jnp.concatenate([x, x], axis)))
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(once))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), twice, once)


def test_the_gradient_is_divided_by_the_root_of_an_examples_features():
    """Esser et al., arXiv 1902.08153, section 2.2, of a mean over 4 examples of 6 features."""
    x = normal(4, 6)
    (found,), start = slopes(lambda w, x: x @ w, MATRIX, x, [x])
    v = x / start["input"]["scale"]
    kernel = bj.lsq(bits=3).apply(start["kernel"], {}, MATRIX)
    to_scale = np.where(v < -4, -4, np.where(v > 3, 3, np.rint(v) - v))
    wanted = np.mean(to_scale @ kernel) / np.sqrt(6 * 3)
    np.testing.assert_allclose(found["input"]["scale"], wanted, rtol=1e-4)


def test_parameters_that_are_a_products_input_have_no_examples():
    params = {"queries": normal(3, 6), "layer": {"kernel": MATRIX}}
    model = bj.Function(lambda p, x: x + p["queries"] @ p["layer"]["kernel"])
    program = model.ask({"params": params}, (jnp.ones((2, 3, 5)),), {}).call.program
    sites = {site.role: site.axes.example for site in program.sites.values()}
    assert sites == {"kernel": None, "input": None}
