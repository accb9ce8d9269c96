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
# # Learn the bitlengths
#
# BitPruning ([Nikolić et al., 2020](https://arxiv.org/abs/2002.03090)) makes the number of bits of
# every tensor a real number. It learns this number by gradient descent beside the weights, and
# rounds it at the end. This notebook shows the quantizer that makes bits differentiable, watches
# bits fall in training, and compares ways to round them.

# %%
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import bitjax as bj
from bitjax.data import load
from bitjax.methods import bitpruning, full_precision
from bitjax.methods.labels import bit_limits
from bitjax.models import SmallCNN
from bitjax.report import plots
from bitjax.runs.rows import read_rows
from bitjax.training.runner import run
from bitjax.training.settings import Settings
from bitjax.training.work import make_work

# %% [markdown]
# ## Between two integer grids
#
# At $n$ bits, with $b = \lfloor n \rfloor$ and $a = n - b$, the output is the blend
#
# $$Q(x, n) = (1 - a)\, Q(x, b) + a\, Q(x, b + 1).$$
#
# At whole $n$ the blend is the integer grid itself, bit for bit. In between it is a staircase with
# the steps of both grids, so it moves continuously from one grid to the next. Its slope in $n$ says
# what another bit is worth.

# %%
x = jnp.linspace(-1.0, 1.0, 801)
quantizer = bj.bitlength(init=3.0)
params, stats = quantizer.init(x, bj.Axes())


def quantized(n):
    return quantizer.apply({**params, "bits": jnp.float32(n)}, stats, x)


_, panels = plt.subplots(1, 4, figsize=(12, 3.2), sharey=True, layout="constrained")
for n, axes in zip((3.0, 3.3, 3.7, 4.0), panels, strict=True):
    axes.plot(x, quantized(3.0), color="C0", lw=0.8, alpha=0.7, label="3 bits")
    axes.plot(x, quantized(4.0), color="C2", lw=0.8, alpha=0.7, label="4 bits")
    axes.plot(x, quantized(n), color="black", lw=1.6, label=f"{n} bits")
    axes.set(title=f"$n = {n}$", xlabel="x", xlim=(-0.5, 0.5), ylim=(-0.55, 0.55))
    axes.legend(frameon=False, fontsize=8)
label = panels[0].set_ylabel("Q(x, n)")

# %% [markdown]
# The next picture shows the error of a Gaussian tensor against $n$. The error falls about fourfold
# with each bit. Between integers it is no higher than the mix of the neighbours' errors. Averaging
# two grids even cancels part of their errors, so the curve dips in front of a whole number. A
# fractional bitlength therefore looks a little better than it will be once it is rounded.

# %%
normal = jax.random.normal(jax.random.key(0), (4096,))
own, observed = quantizer.init(normal, bj.Axes())
lengths = np.arange(1.0, 6.01, 0.05)
errors = [
    bj.distortion(normal, quantizer.apply({**own, "bits": jnp.float32(n)}, observed, normal))
    for n in lengths
]
_, axes = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
axes.semilogy(lengths, errors)
whole = np.isclose(lengths, np.rint(lengths))
axes.semilogy(lengths[whole], np.array(errors)[whole], "o", color="C0")
axes.set(xlabel="bits", ylabel="mean squared error")
axes.grid(alpha=0.3)

# %% [markdown]
# ## A network whose bits fall
#
# A float network is trained first. Then every kernel and every input gets a bitlength of its own,
# starting at 8. The budget is in bit operations (BOPs, multiply-adds times bits of weights times
# bits of inputs). It allows as many as 3 bits everywhere would cost. Training decides which site
# gets how many bits. No strength has to be tuned: the budget is reached by the middle of the stage,
# and sites then trade bits at equal cost.

# %%
digits = load("digits")
settings = Settings(batch_size=64)
float_work = make_work(full_precision(steps=200), SmallCNN(width=8), digits, settings=settings)
float_result, float_variables = run(float_work, show=False)
print(f"float: {float_result['accuracy']:.2%}")

# %%
costs = float_work.costs
budgets = [bj.budget("bops", 3 * 3 * bj.macs(costs))]
learned = {"init": 8.0, "range": "learned", "zero_on_grid": True}
rules = [
    bj.rule("conv1/input", bj.bitlength(signed=True, **learned)),  # the normalised image
    bj.rule(".*/kernel", bj.bitlength(min_bits=2.0, **learned)),
    bj.rule(".*/input", bj.bitlength(signed=False, **learned)),  # after a ReLU
]
method = bitpruning(rules, steps=500, learning_rate=0.02, bits_learning_rate=0.05, budgets=budgets)
print("stages:", [(stage.name, stage.steps) for stage in method.stages])

# %% [markdown]
# A method is a list of stages. The first stage learns the bits. It is run by itself here, to show
# the fractional bits before the second stage rounds them.

# %%
folder = Path(tempfile.mkdtemp())
first_stage = method._replace(stages=method.stages[:1])
learning = make_work(first_stage, SmallCNN(width=8), digits, float_variables, settings)
learning_result, learned_variables = run(learning, folder, show=False)
bits = bj.bits_of(learned_variables)
for site in costs:
    print(f"{site:13s} {float(bits[site]):.2f}")
print(f"accuracy with these bits: {learning_result['accuracy']:.2%}")

# %%
panels = plots.curves(read_rows(folder / "metrics.jsonl"), ("loss", "bits"))

# %% [markdown]
# The ranges get a few steps to settle. Then the bits fall to the budget, by the middle of the
# stage. From then on, a bit that one site takes is a bit that another site gives.
#
# ## Round them
#
# Hardware has whole bits. Three policies are compared, without any further training:
#
# - `ceil`, the paper's policy as recalled, never takes a bit away, and so misses the budget;
# - `nearest` moves every bitlength least, and lands on either side of the budget;
# - `budget` chooses for all sites together, so that the integer network meets the budget and no
#   single further bit would fit into it.

# %%
limits = bit_limits(rules, costs)
frozen = [bj.rule(r.pattern, bj.freeze(r.quantizer)) for r in rules if r.quantizer]
model = bj.Quantized(SmallCNN(width=8), frozen)
evaluate = learning.evaluator(model)
batch = learning.calibration_batch()
print(f"{'policy':8s} {'average bits':>12s} {'BOPs / budget':>13s} {'top-1':>7s}")
for policy in ("ceil", "nearest", "budget"):
    whole = bj.round_bits(
        jax.device_get(bits), costs, limits, policy, budgets if policy == "budget" else ()
    )
    variables = bj.with_bits(learned_variables, whole)
    accuracy = evaluate(bj.attach(model, variables, batch))["accuracy"]
    average, spent = bj.average_bits(whole, costs), bj.bops(whole, costs) / budgets[0].limit
    print(f"{policy:8s} {average:12.2f} {spent:13.2f} {accuracy:7.2%}")

# %% [markdown]
# ## Fine-tune
#
# The second stage rounds the bits under the budget, freezes them, and goes on training the weights.
# Tables report the network that comes out.

# %%
second_stage = method._replace(stages=method.stages[1:])
tuning = make_work(second_stage, SmallCNN(width=8), digits, learned_variables, settings)
result, tuned_variables = run(tuning, show=False)
print(f"accuracy with whole bits: {result['accuracy']:.2%}, float: {float_result['accuracy']:.2%}")
sizes = result["cost"]
print(f"{sizes['float_model_bytes'] / sizes['model_bytes']:.1f} times smaller than float")

# %%
axes = plots.bits_per_layer(bj.bits_of(tuned_variables), learned=bits)

# %% [markdown]
# Bars are the final bits, and marks the learned bits. Layers with many multiply-adds had to give up
# more.
#
# ## What you take away
#
# The network in one file of its true size, each kernel at the bits that it has learned.

# %%
fixed = bj.deploy(tuning.wrap(second_stage.stages[-1]), tuned_variables, batch)
size = bj.save_packed(folder / "digits.safetensors", fixed, batch)
print(f"digits.safetensors: {size.payload:,} bytes, and {size.header:,} that say what they are")

# %% [markdown]
# `bitjax train digits/bitpruning --workdir runs/d` is this experiment as a config, with a budget on
# the average bits. Next: [bit planes under a rate](03_bitwise_bottleneck.ipynb).
