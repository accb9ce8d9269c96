"""The codes of a model's kernels are those that evaluation multiplies, at every moment."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bitjax as bj

X = jax.random.normal(jax.random.key(0), (32, 8))
Y = jnp.argmax(X[:, :4], axis=1)
# One layer for each: the programs of a net compile once.
QUANTIZERS = (
    bj.uniform(bits=4),
    bj.uniform(bits=3, range="mse", granularity="per_channel"),
    bj.uniform(bits=4, zero_on_grid=False, granularity="per_group", group_size=4),
    bj.lsq(bits=3),
    bj.pact(bits=4, signed=True),
    bj.bitlength(init=4.0),
    bj.bitlength(init=3.0, range="learned", mode="ste"),
    bj.bitplane(bits=4, signed=True),
    bj.bitplane(bits=4, signed=True, scale="observed"),
    bj.bitplane(bits=4, signed=True, mode="faithful"),
    bj.halfwave(bits=2, fit="measured"),
    bj.ternary(),
    bj.ternary(fit="twn"),
    bj.ternary(fit="stored"),
    bj.binary(),
    bj.low_bit(bits=3),
)


class Wide(nn.Module):
    layers: int

    @nn.compact
    def __call__(self, x):
        return sum(nn.Dense(4, name=f"layer{i}")(x) for i in range(self.layers))


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        body = nn.scan(
            lambda module, x, _: (nn.tanh(nn.Dense(8, name="dense")(x)), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        return body(self, x, None)[0]


def trained(model, steps):
    """The variables of a loop of one's own, in which statistics move with every step."""
    variables = model.init(jax.random.key(1), X)

    @jax.jit
    def step(variables):
        def loss(params):
            out, moved = model.apply({**variables, "params": params}, X, mutable=["quant_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(out, Y).mean(), moved

        grads, moved = jax.grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - 0.5 * g, variables["params"], grads)
        return {**variables, **moved, "params": params}

    for _ in range(steps):
        variables = step(variables)
    return variables


def wide(quantizers):
    rules = [bj.rule(f"layer{i}/kernel", q) for i, q in enumerate(quantizers)]
    return bj.Quantized(Wide(len(quantizers)), rules)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(wide(QUANTIZERS), id="every quantizer", marks=pytest.mark.slow),
        bj.Quantized(Scanned(), [bj.rule(".*/kernel", bj.uniform(bits=4))]),
    ],
    ids=lambda model: "scanned",
)
def test_codes_after_training_decode_to_what_evaluation_multiplies(model):
    variables = trained(model, 3)
    used = jax.jit(lambda v: bj.tap(model, v, X))(variables)
    found = bj.codes_of(model, variables, X)
    assert set(found) == {f"{layer}/kernel" for layer in used}
    for site, coded in found.items():
        kernel = np.asarray(used[site.removesuffix("/kernel")].kernel)
        decode, leaves = coded.quantizer.decode, (coded.params, coded.stats)
        assert coded.codes.dtype == jnp.int32 and coded.codes.shape == kernel.shape
        if kernel.ndim == 3:  # a scanned layer's steps are in front
            decode = jax.vmap(decode)
        levels = jax.jit(decode)(*leaves, bj.Codes(coded.codes, coded.side))
        np.testing.assert_array_equal(coded.levels, kernel, site)
        np.testing.assert_array_equal(levels, kernel, site)


def test_a_kernel_that_lies_on_no_grid_has_no_codes():
    model = bj.Quantized(nn.Dense(2), [bj.rule("kernel", bj.bitlength(init=3.5))])
    with pytest.raises(ValueError, match="'kernel' has 3.5 bits, which lie between two grids"):
        bj.codes_of(model, model.init(jax.random.key(0), X), X)
    with pytest.raises(ValueError, match="the rules quantize no kernel.* Kernels: kernel"):
        bj.codes_of(nn.Dense(2), nn.Dense(2).init(jax.random.key(0), X), X)
