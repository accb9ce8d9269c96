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
# # Bit planes under a rate
#
# The bitwise bottleneck ([Zhou et al., 2020](https://arxiv.org/abs/2006.05210)) treats an
# activation as a stack of bit planes, and keeps only the planes that are worth their bit. It needs
# no training: one pass over a few batches counts the activations, and the rest is arithmetic. This
# notebook looks at planes, selects them, gives every layer its rate, and compares the result with
# what rate-distortion theory allows.

# %%
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import nnls

import bitjax as bj
from bitjax.bottleneck.measures import moments, sample
from bitjax.data import load
from bitjax.methods import full_precision
from bitjax.models import SmallCNN
from bitjax.quantizers.bounds import half_normal_bound
from bitjax.report import plots
from bitjax.solvers.lasso_path import lasso_path
from bitjax.solvers.lloyd_max import lloyd_max
from bitjax.solvers.plane_selection import select_planes
from bitjax.training.runner import run
from bitjax.training.settings import Settings
from bitjax.training.work import make_work

# %%
net, digits = SmallCNN(width=8), load("digits")
method = full_precision(steps=300, learning_rate=0.05)
work = make_work(method, net, digits, settings=Settings(batch_size=64))
result, trained = run(work, show=False)
print(f"float: {result['accuracy']:.2%}")

# %% [markdown]
# ## The planes of an activation
#
# `bj.tap` gives what a layer reads. Here is one channel that the second convolution reads for
# nine digits, as an 8-bit code between 0 and the largest activation. The high planes hold the
# drawing. The low planes look like noise, and each costs as many bits as a high plane.

# %%
batch = work.calibration_batch()
x = np.asarray(bj.tap(net, trained, batch, layers="conv2")["conv2"].input)
step = x.max() / 255
codes = np.floor(x / step).astype(int)
channel = np.argmax(codes.std(axis=(0, 1, 2)))  # the one that shows most
nine = codes[:9, ..., channel].reshape(3, 3, 8, 8).swapaxes(1, 2).reshape(24, 24)
_, panels = plt.subplots(1, 9, figsize=(13, 1.9), layout="constrained")
panels[0].imshow(nine, cmap="gray")
panels[0].set(title="the code", xticks=[], yticks=[])
shown = plots.planes(nine, bits=8, axes=panels[1:])

# %% [markdown]
# ## Which planes, with which coefficients?
#
# Let $u = x / \text{step}$ and $b_i(u)$ its planes. Keeping a set $S$ of planes with real
# coefficients $\alpha_i \ge 0$ costs
#
# $$\min_{\alpha \ge 0} E\,\left(u - \sum_{i \in S} \alpha_i\, b_i(u)\right)^2.$$
#
# The paper finds $S$ by LASSO. With 8 planes there are only 255 sets, and the 8 x 8 Gram matrix of
# the planes gives what each set costs. `select_planes` tries all sets, for every number of planes
# at once. The cell below compares it with brute force: non-negative least squares on the data, for
# every set.

# %%
u = x[:64].ravel() / step
planes_Tx8 = (np.floor(u).astype(int)[:, None] >> np.arange(8) & 1).astype(float)
gram_8x8, cross_8 = planes_Tx8.T @ planes_Tx8 / u.size, planes_Tx8.T @ u / u.size
energy = np.mean(u**2)
exact = select_planes(gram_8x8, cross_8, energy)
lasso = lasso_path(gram_8x8, cross_8, energy, mean=float(np.mean(u)))


def brute_force(count):
    sets = [list(chosen) for chosen in combinations(range(8), count)]
    return min(nnls(planes_Tx8[:, chosen], u)[1] ** 2 / u.size for chosen in sets)


print("kept   planes              error: exact   brute force     LASSO   (shares of the energy)")
for k in range(1, 8):
    kept = " ".join(str(i) for i in np.flatnonzero(exact.value.mask[k])[::-1])
    errors = exact.objective[k], brute_force(k), lasso.objective[k]
    shares = "".join(f"{error / energy:14.5f}" for error in errors)
    print(f"{k:4d}   {kept:15s}{shares}")

# %% [markdown]
# The exact search and brute force agree. LASSO has a larger error, for two reasons. It shrinks the
# coefficients, and, as in the authors' program, it fits an intercept and drops it. Its path also
# need not visit the best set.
#
# ## Round first, then take planes
#
# Cutting low planes off a finished code always rounds down. Cutting high planes off wraps around.
# `bj.bitplane` therefore rounds at the lowest plane it keeps and saturates at the highest. This is
# a uniform grid whose scale is chosen for least error. The next cell measures what that is worth,
# in decibels of signal over quantization noise (6 dB are a bit).

# %%
batches = list(work.batches(8, False))
sites = "(conv2|conv3|head)/input"
seen = bj.site_histograms(net, trained, batches, sites=sites)
rates = np.arange(1, 7)


def sqnr(grid):
    curves = bj.rate_curves(seen, grid=grid, max_bits=6)
    return [10 * np.log10(moments(seen[s]).energy / curves[s].distortion) for s in seen]


def lloyd_max_sqnr(histogram):
    points = sample(histogram, per_bin=2)
    errors = lloyd_max(points.values, points.weights, 2**6).stats["by_levels"]
    return 10 * np.log10(moments(histogram).energy / (errors[2**rates - 1] + points.within))


axes = plots.distortion_rate(
    rates.tolist(),
    {
        "planes of the rounded value (bitjax)": sqnr("free"),
        "planes of the finished code (the authors' program)": sqnr("truncated"),
        "any levels (Lloyd-Max)": [lloyd_max_sqnr(histogram) for histogram in seen.values()],
    },
    {"limit for a half-normal": [-10 * np.log10(half_normal_bound(float(k))) for k in rates]},
)

# %% [markdown]
# Points are the sites, and lines their medians. No code of a half-normal source can beat the line
# on top, with blocks of any length. Activations are not half-normal, so the line is only a
# yardstick. Rounding first gains most of a bit over the planes of a finished code. At few bits,
# levels placed freely gain little more.
#
# ## A rate for every layer
#
# Layers are not equally sensitive. `bj.allocate` measures what an error at each site costs the loss
# (its Fisher information). It gives each site its planes so that the predicted loss is least at a
# given average. The average need not be a whole number: the allocation decides which sites get one
# more.

# %%
rules = [
    bj.rule(".*/kernel", bj.uniform(bits=8, granularity="per_channel")),
    bj.rule(sites, bj.bitplane(bits=8)),
]
model = bj.Quantized(net, rules)
attached = bj.attach(model, trained, batch)
evaluate = work.evaluator(model)

print(f"{'rate':>5s} {'top-1':>7s} {'loss':>7s}   planes of {', '.join(seen)}")
for rate in (2, 2 + 1 / 3, 2 + 2 / 3, 3):
    variables = bj.allocate(model, attached, lambda: batches, rate=rate, min_bits=1)
    figures = evaluate(variables)
    bits = bj.bits_of(variables)
    planes = "  ".join(f"{float(bits[site]):.0f}" for site in seen)
    print(f"{rate:5.2f} {figures['accuracy']:7.2%} {figures['loss']:7.4f}   {planes}")
print(f"float {result['accuracy']:7.2%}")

# %% [markdown]
# None of this took a step of training. This network is small and even, so equal shares are right at
# whole rates. The sites of ResNet-20 differ; `python -m experiments.rate_distortion` prints what an
# allocation saves there. The config `digits/bottleneck` adds fine-tuning.
#
# Next: [codes first, weights second](04_two_step.ipynb).
