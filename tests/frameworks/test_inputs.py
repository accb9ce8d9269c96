"""Every tool takes batches with keyword arguments of their own, by `bitjax.Inputs`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj

KEY = jax.random.key(0)


class Masked(nn.Module):
    """A layer of what a mask leaves, with a shift beside it."""

    @nn.compact
    def __call__(self, x, shift, *, mask):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(4, name="first")(x * mask))
        x = nn.relu(x + shift)
        return nn.Dense(3, name="second")(x)


X, SHIFT, MASK = (
    jax.random.normal(KEY, (8, 5)),
    jnp.full((8, 4), 0.5),
    jnp.ones((8, 5)).at[:, 2:].set(0),
)
NAMED = bj.Inputs((X, SHIFT), {"mask": MASK})
RULES = [
    bj.rule(".*/kernel", bj.ternary(fit="stored")),
    bj.rule("second/input", bj.bitplane(bits=3, coefficients="solved")),
]
MODEL = bj.Quantized(Masked(), RULES)
VARIABLES = MODEL.init(KEY, X, SHIFT, mask=MASK)

# Each takes one batch, and the keyword arguments of all batches.
TOOLS = {
    "calibrate": lambda batch, **kw: bj.calibrate(MODEL, VARIABLES, [batch], **kw)["quant_stats"],
    "reestimate": lambda batch, **kw: bj.reestimate_batch_stats(MODEL, VARIABLES, [batch], **kw),
    "histograms": lambda batch, **kw: bj.site_histograms(MODEL, VARIABLES, [batch], **kw),
    "fisher": lambda batch, **kw: bj.fisher(MODEL, VARIABLES, [batch], **kw),
    "solve": lambda batch, **kw: bj.solve_layers(
        MODEL, VARIABLES, [batch], **({"kwargs": kw} if kw else {})
    ),
    "doctor": lambda batch, **kw: bj.doctor(MODEL, VARIABLES, batch, **kw),
}


SLOW = {"solve", "doctor"}


@pytest.mark.parametrize(
    "tool", [pytest.param(t, marks=[pytest.mark.slow] if t in SLOW else []) for t in TOOLS]
)
def test_a_mask_of_a_batch_is_as_one_of_the_call(tool):
    own, shared = TOOLS[tool](NAMED), TOOLS[tool]((X, SHIFT), mask=MASK)
    for one, other in zip(jax.tree.leaves(own), jax.tree.leaves(shared), strict=True):
        np.testing.assert_array_equal(one, other)


def test_allocation_counts_what_a_batchs_mask_leaves():
    with_mask = bj.allocate(MODEL, VARIABLES, lambda: [NAMED], rate=2, min_bits=2, max_bits=2)
    whole = NAMED._replace(kwargs={"mask": jnp.ones_like(X)})
    without = bj.allocate(MODEL, VARIABLES, lambda: [whole], rate=2, min_bits=2, max_bits=2)
    scales = [found["quant"]["second"]["input"]["scale"] for found in (with_mask, without)]
    assert scales[0] != scales[1]
