# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own quantizer
#
# A quantizer is a value: a tuple of pure functions on arrays. It knows nothing of Flax, layers or
# training, so that a new one is a page of arithmetic. This notebook writes one whose levels are
# powers of two (a multiplier becomes a shift), asks it the laws of the contract, puts it into a
# network by rules, and trains that.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import bitjax as bj
from bitjax.data import load
from bitjax.methods import bitpruning, full_precision, lsq
from bitjax.models import SmallCNN
from bitjax.quantizers import blocks
from bitjax.report import plots
from bitjax.training.runner import run
from bitjax.training.settings import Settings
from bitjax.training.work import make_work

# %% [markdown]
# ## The arithmetic
#
# With $n$ bits there are $M = 2^{n-1} - 1$ magnitudes beside 0, each half of the next:
#
# $$\hat x = \operatorname{sign}(x)\, s\, 2^{l - M}, \quad l \in \{1, \ldots, M\}, \qquad \hat x = 0
# \text{ for } l = 0.$$
#
# `nearest` finds $l$ without a logarithm, whose last digit may differ between two programs: `frexp`
# splits a float exactly. `level` is the one expression that both `apply` and `decode` evaluate.
# They must agree to the last bit, because that is what makes integers in a file mean what was
# trained.


# %%
def magnitudes(bits):
    """M, the number of levels above 0."""
    return jnp.exp2(jnp.rint(bits) - 1).astype(jnp.int32) - 1


def nearest(u, count):
    """The l in 0 .. M whose level is nearest to |u|, where the largest level is 1."""
    mantissa, exponent = jnp.frexp(jnp.abs(u))  # |u| = mantissa * 2^exponent, mantissa in [1/2, 1)
    power = exponent - (mantissa < 0.75)  # 3/4 lies in the middle between 1/2 and 1
    smallest = jnp.ldexp(jnp.float32(1.0), 1 - count)
    return jnp.where(jnp.abs(u) < smallest / 2, 0, jnp.clip(power + count, 1, count))


def level(sign, index, count, scale):
    """What a code stands for."""
    return jnp.where(index > 0, sign * jnp.ldexp(scale, index - count), 0.0)


# %% [markdown]
# ## The quantizer
#
# - `init` fits the parameters to a tensor: the bits, and a scale per filter, the largest magnitude.
# - `apply` is differentiable. The level is not, so that a surrogate stands in: the value is the
#   level, the gradient that of `clip(x / scale, -1, 1)` times the scale.
# - `encode` gives integers in $[0, 2^n)$: $l$ for positive numbers, $l + M + 1$ for negative ones.
# - `decode` gives the levels back.


# %%
def power_of_two(bits: int = 4) -> bj.Quantizer:
    """Levels of 0 and plus and minus scale / 2^k, a scale per filter; 2 to 6 bits."""
    if bits not in range(2, 7):
        raise ValueError(f"`bits` must be in [2, 6], got {bits}.")

    def init(x, axes):
        block = blocks.block_shape(x.shape, axes, "per_channel")
        cut, inner = blocks.split(jnp.abs(x), block)
        largest = jnp.max(cut, axis=inner).reshape(block).astype(jnp.float32)
        return {"bits": jnp.float32(bits), "scale": jnp.where(largest > 0, largest, 1.0)}, {}

    def wide(x):
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def apply(params, stats, x, *, train=False, key=None):
        scale, count = params["scale"], magnitudes(params["bits"])
        u = jnp.clip(wide(x) / scale, -1.0, 1.0)
        value = level(jnp.sign(u), nearest(u, count), count, scale)
        surrogate = u * scale
        # What is added to the value is exactly 0, so that it stays a level.
        value = jax.lax.stop_gradient(value) + (surrogate - jax.lax.stop_gradient(surrogate))
        return value.astype(x.dtype)

    def encode(params, stats, x):
        count = magnitudes(params["bits"])
        u = wide(x) / params["scale"]
        index = nearest(u, count)
        below = (u < 0) & (index > 0)
        return bj.Codes(jnp.where(below, index + count + 1, index).astype(jnp.int32))

    def decode(params, stats, codes):
        count = magnitudes(params["bits"])
        negative = codes.codes > count
        index = jnp.where(negative, codes.codes - count - 1, codes.codes)
        return level(jnp.where(negative, -1.0, 1.0), index, count, params["scale"])

    return bj.Quantizer(init, apply, encode, decode, name="power_of_two", form={"bits": bits})


# %% [markdown]
# Many levels near zero, few far out:

# %%
x = jax.random.normal(jax.random.key(0), (20_000, 1))
_, panels = plt.subplots(1, 2, figsize=(9, 3), sharey=True, layout="constrained")
for bits, axes in zip((3, 4), panels, strict=True):
    quantizer = power_of_two(bits)
    params, stats = quantizer.init(x, bj.Axes())
    x_hat = quantizer.apply(params, stats, x)
    plots.tensor_histogram(x, x_hat, axes=axes)
    axes.set_title(f"{bits} bits, SQNR {float(bj.sqnr(x, x_hat)):.1f} dB")

# %% [markdown]
# ## Ask it the laws
#
# Training, costs and export rely on a handful of laws: shape and dtype are kept, decoding the codes
# gives what `apply` gives bit for bit, gradients are finite, nothing compiles twice, and so on.
# `check_quantizer` asks them all. What not every quantizer can hold is claimed: this one has 2 to 6
# bits, and its codes do not rise in equal steps.

# %%
claims = bj.Claims(bits=range(2, 7), ordered=False)
bj.check_quantizer(power_of_two(4), claims)
print("all laws are kept")

# %% [markdown]
# A mistake that is easily made, and hard to see in a training curve: rounding $\log_2 |u|$, in
# `apply` alone. That puts the border below every level at 0.71 of it, where `encode` has it at 0.75
# between two levels, and at 0.5 between the smallest one and 0: what is exported is not what was
# trained. One line names the law and the place; here it is a weight that `encode` gave the only
# level of 2 bits, and `apply` 0.


# %%
def careless(bits=4):
    sound = power_of_two(bits)

    def apply(params, stats, x, *, train=False, key=None):
        scale, count = params["scale"], magnitudes(params["bits"])
        u = jnp.clip(x / scale, -1.0, 1.0)
        logarithm = jnp.log2(jnp.maximum(jnp.abs(u), 1e-30))
        index = jnp.clip(jnp.rint(logarithm).astype(jnp.int32) + count, 0, count)
        return level(jnp.sign(u), index, count, scale).astype(x.dtype)

    return sound._replace(apply=apply, name="careless")


try:
    bj.check_quantizer(careless(), claims)
except AssertionError as error:
    print(error)

# %% [markdown]
# ## Train with it
#
# Rules take it like any other. Its scale is a leaf of the collection `quant`, which the method
# `lsq` trains beside the weights because of the leaf's name. For comparison, a learned uniform grid
# of as many bits.

# %%
digits, settings = load("digits"), Settings(batch_size=64)
float_method = full_precision(steps=200, learning_rate=0.05)
float_work = make_work(float_method, SmallCNN(width=8), digits, settings=settings)
float_result, float_variables = run(float_work, show=False)
print(f"float: {float_result['accuracy']:.2%}")


def work_with(kernels):
    rules = [
        bj.rule(".*/kernel", kernels),
        bj.rule("conv1/input", bj.uniform(bits=8)),
        bj.rule(".*/input", bj.lsq(bits=4, signed=False)),
    ]
    method = lsq(rules, steps=100, learning_rate=0.02)
    return make_work(method, SmallCNN(width=8), digits, float_variables, settings)


work = work_with(power_of_two(3))
result, variables = run(work, show=False)
print(f"3-bit powers of two: {result['accuracy']:.2%}")
uniform = work_with(bj.lsq(bits=3, granularity="per_channel"))
print(f"3-bit uniform grids: {run(uniform, show=False).result['accuracy']:.2%}")

# %%
model = work.wrap(work.method.stages[-1])
batch = work.calibration_batch()
print(bj.doctor_report(bj.doctor(model, variables, batch)))

kernel = variables["params"]["conv3"]["kernel"]
leaves = variables["quant"]["conv3"]["kernel"]
quantizer = power_of_two(3)
ratios = quantizer.apply(leaves, {}, kernel) / leaves["scale"]
axes = plots.tensor_histogram(kernel / leaves["scale"], ratios)
label = axes.set_xlabel("weight / scale of its filter")

# %% [markdown]
# ## What it says of itself
#
# Methods cannot look into a function. What they must know of a quantizer it says in its `traits`;
# `name` and `form` are for tables. `power_of_two` says nothing, and every default is safe: its bits
# are fixed.

# %%
print(power_of_two(3).traits)

# %% [markdown]
# A second one, whose bits are to be learned. Between two numbers of bits it gives a mix, so that
# the bits have a slope. Two fields tell the rest: `traits.learns_bits` the bounds, and `frozen` the
# quantizer that takes its place once the bits are whole numbers, on the same leaves. The laws ask
# both.


# %%
def learned_power_of_two(bits: float = 4.0) -> bj.Quantizer:
    """Mixes the levels of two neighbouring numbers of bits, 2 to 6."""
    whole = power_of_two(4)

    def init(x, axes):
        params, stats = whole.init(x, axes)
        return {**params, "bits": jnp.float32(bits)}, stats

    def apply(params, stats, x, *, train=False, key=None):
        below = jax.lax.stop_gradient(jnp.floor(params["bits"]))
        low, high = (whole.apply({**params, "bits": below + i}, stats, x) for i in (0.0, 1.0))
        return low + ((params["bits"] - below) * (high - low)).astype(x.dtype)

    return whole._replace(
        init=init,
        apply=apply,
        name="learned_power_of_two",
        traits=bj.Traits(learns_bits=(2.0, 6.0)),
        frozen=lambda: power_of_two(4),
    )


bj.check_quantizer(learned_power_of_two(), claims)
print("all laws are kept, those of its traits among them")

# %% [markdown]
# That is all that `bitpruning` needs to learn, round and freeze them under a budget, here of 3.25
# bits on average over the kernels.

# %%
rules = [
    bj.rule(".*/kernel", learned_power_of_two()),
    bj.rule("conv1/input", bj.uniform(bits=8)),
    bj.rule(".*/input", bj.lsq(bits=4, signed=False)),
]
method = bitpruning(
    rules,
    steps=200,
    learning_rate=0.02,
    bits_learning_rate=0.05,
    budgets=[bj.budget("bits", 3.25, ".*/kernel")],
)
work = make_work(method, SmallCNN(width=8), digits, float_variables, settings)
result, variables = run(work, show=False)
print(f"powers of two of learned bits: {result['accuracy']:.2%}")
for site, bits in bj.bits_of(variables).items():
    print(f"  {site:13} {float(bits):.0f} bits")

# %% [markdown]
# ## Use it in configs
#
# Put the function into a module of yours, and a config names it by its import path:
#
# ```python
# config.rules = ((".*/kernel", {"name": "my_package.grids:power_of_two", "bits": 3}),)
# ```
#
# Its arguments are checked like any other's. `CONTRIBUTING.md` says what a new quantizer of bitjax
# itself needs: a file in `bitjax/quantizers/`, and a row in the table of the contract test.
#
# ## What you take away
#
# A grid of your own, and the bits that each kernel chose on it.

# %%
axes = plots.bits_per_layer(bj.bits_of(variables))
title = axes.set_title("powers of two: bits of kernels, and of inputs at fixed bits")
