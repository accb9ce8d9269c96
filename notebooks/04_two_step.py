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
# # Codes first, weights second
#
# Two-step quantization (Wang et al., CVPR 2018) divides the hard problem. The first step trains a
# network whose *activations* have few bits and whose weights are float. It finds good codes. The
# second step finds low-bit *weights* that make each layer give the same codes, layer by layer and
# without gradients. This notebook does both on a small network, and looks into one layer on the
# way.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import bitjax as bj
from bitjax.data import load
from bitjax.methods import tsq
from bitjax.models import SmallCNN
from bitjax.quantizers.weight_codes import MATRIX
from bitjax.report import plots
from bitjax.solvers.code_descent import fit_codes
from bitjax.training.runner import run
from bitjax.training.settings import Settings
from bitjax.training.work import make_work

# %% [markdown]
# ## The first step: codes
#
# Activations behind a ReLU become one of four levels, 2 bits. `bj.halfwave` takes the levels that
# are best for a Gaussian in front of the ReLU, as a batch normalisation gives it. `bj.lsq` learns
# the distance of the levels. Both let the gradient through where they round, and stop it where they
# saturate.

# %%
x = jnp.linspace(-1.5, 3.5, 600)
normal = jax.random.normal(jax.random.key(0), (20_000,))
halfwave = bj.halfwave(bits=2)
params, stats = halfwave.init(normal, bj.Axes())
_, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
left.plot(x, jnp.maximum(x, 0), color="black", lw=0.8, label="ReLU")
left.plot(x, halfwave.apply(params, stats, x), label="halfwave, 2 bits")
left.set(xlabel="x", ylabel="Q(x)")
left.legend(frameon=False)
levels = np.unique(halfwave.apply(params, stats, normal))
axes = plots.tensor_histogram(normal, levels, axes=right)

# %% [markdown]
# The next cell trains from scratch with learned levels. The kernels of the inner layers will become
# ternary with a stored scale, but the first stage of the method leaves them float.

# %%
net, digits = SmallCNN(width=8), load("digits")
rules = [
    bj.rule("conv1/input", bj.uniform(bits=8)),  # the normalised image
    bj.rule("(conv1|head)/kernel", bj.uniform(bits=8, granularity="per_channel")),
    bj.rule(".*/kernel", bj.ternary(fit="stored")),
    bj.rule(".*/input", bj.lsq(bits=2, signed=False)),
]
method = tsq(rules, code_steps=300, learning_rate=0.05, weight_decay=5e-4, warmup=20)
print("stages:", [stage.name for stage in method.stages])
first_stage = method._replace(stages=method.stages[:1])
first_step = make_work(first_stage, net, digits, settings=Settings(batch_size=64))
result, trained = run(first_step, show=False)
print(f"2-bit activations, float inner kernels: {result['accuracy']:.2%}")

# %% [markdown]
# ## One layer by itself
#
# Take the third convolution as a matrix: a patch of its (quantized) input times the kernel gives an
# output. We want ternary codes $c$ and a scale $a$ for every filter with
#
# $$\min_{a \ge 0,\; c \in \{-1, 0, 1\}^N} E\,(w^T x - a\, c^T x - b)^2,$$
#
# This is the error of the layer's *output*, not of its weights. Rounding the weights (TWN by a
# threshold, OTWN by the best threshold) does not look at the inputs. Coordinate descent does. It
# visits one weight after the other and gives it the code that is best for the output, with the
# scale that is then best in closed form. It needs only the second moments of the patches.

# %%
batch = first_step.calibration_batch()
codes_model = first_step.wrap(method.stages[0])
tapped = bj.tap(codes_model, trained, batch, layers="conv3")["conv3"]
patches = jax.lax.conv_general_dilated_patches(
    jnp.asarray(tapped.input),
    filter_shape=(3, 3),
    window_strides=(2, 2),
    padding=[(1, 1), (1, 1)],
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
)
x_TxN = np.asarray(patches, np.float64).reshape(-1, patches.shape[-1])
w_MxN = np.asarray(tapped.kernel, np.float64).transpose(3, 2, 0, 1).reshape(-1, x_TxN.shape[1])
z_TxM = x_TxN @ w_MxN.T
assert np.allclose(z_TxM, np.asarray(tapped.output).reshape(z_TxM.shape), atol=1e-3)
x_mean, z_mean = x_TxN.mean(axis=0), z_TxM.mean(axis=0)
gram_NxN = np.cov(x_TxN.T, bias=True)
cross_MxN = w_MxN @ gram_NxN
energy_M = z_TxM.var(axis=0)


def error_of(codes_MxN, scale_M):
    v_TxM = x_TxN @ (scale_M[:, None] * codes_MxN).T
    return float(np.mean((v_TxM - v_TxM.mean(axis=0) - z_TxM + z_mean) ** 2) / np.mean(energy_M))


weights = jnp.asarray(w_MxN)
twn_codes, twn_scale = (np.asarray(a) for a in bj.twn_codes(weights, MATRIX))
otwn_codes, otwn_scale = (np.asarray(a) for a in bj.otwn_codes(weights, MATRIX))
squares = np.einsum("mn,nk,mk->m", otwn_codes, gram_NxN, otwn_codes)
best_scale = np.sum(cross_MxN * otwn_codes, axis=1) / squares
problem = (gram_NxN, cross_MxN, energy_M, np.array([-1.0, 0.0, 1.0]), otwn_codes)
means = {"mean_N": x_mean, "target_mean_M": z_mean}  # for the intercept b
solved = fit_codes(*problem, **means)
solved_codes = np.asarray(solved.value.codes_MxN)
pairs = fit_codes(*problem, **means, pair_moves=True, starts=4, key=jax.random.key(0))
ways = {
    "TWN, rounded by a threshold": error_of(twn_codes, twn_scale.ravel()),
    "OTWN, the best rounding": error_of(otwn_codes, otwn_scale.ravel()),
    "OTWN codes, best scale for the output": error_of(otwn_codes, best_scale),
    "coordinate descent": error_of(solved_codes, np.asarray(solved.value.scale_M)),
    "+ pairs of codes, 4 starts": error_of(*map(np.asarray, pairs.value[:2])),
}
print("error of the output, share of its variance")
for way, error in ways.items():
    print(f"  {way:38s} {error:.4f}")

# %%
sweeps = np.asarray(solved.stats["per_sweep"])
sweeps = sweeps[np.isfinite(sweeps)] / np.mean(energy_M)
rows = [{"step": i + 1, "error": float(error)} for i, error in enumerate(sweeps)]
(axes,) = plots.curves(rows, ["error"])
axes.axhline(ways["OTWN codes, best scale for the output"], color="C1", ls="--", label="OTWN")
axes.set(xlabel="sweep over all weights", ylabel="error of the output")
legend = axes.legend(frameon=False)

# %% [markdown]
# Which codes had to change? Rows are the codes of the best rounding, and columns the codes of the
# descent.

# %%
axes = plots.code_changes(otwn_codes, solved_codes)

# %% [markdown]
# ## All layers
#
# `bj.solve_layers` does this for every ternary kernel, in forward order. The inputs of a layer come
# from the network as far as it is solved, so a layer can repair what earlier layers lost. The
# target is finer than above: the codes that the next layer reads, behind the normalisation and the
# quantizer.

# %%
model = bj.Quantized(net, rules)
batches = list(first_step.batches(8, False))
rounded = bj.attach(model, trained, batch)  # OTWN codes and scales
evaluate = first_step.evaluator(model)
reports = []
solved_variables = bj.solve_layers(model, rounded, batches, log=reports.append)
for report in reports:
    behind = "" if report.mismatch is None else f", {report.mismatch:.0%} of codes differ"
    print(f"{report.layer} for its {report.target}: error {report.error:.3f}{behind}")

# %% [markdown]
# ## What each part is worth
#
# The last cell is a small ablation, on the test set and without training after the second step.
# Solving instead of rounding makes the difference. The ways to solve differ by less than the noise
# of 360 images on a network of two ternary layers. `python -m experiments.tsq_ablation` measures
# every part on the layers of ResNet-20.

# %%
rows = {
    "rounded weights (OTWN)": rounded,
    "solved for outputs, inputs of the float kernels": bj.solve_layers(
        model, rounded, batches, target="output", asymmetric=False
    ),
    "solved for outputs, inputs as far as solved": bj.solve_layers(
        model, rounded, batches, target="output"
    ),
    "solved for the codes behind the layer": solved_variables,
}
print(f"{'':48s} {'top-1':>7s} {'loss':>7s}")
print(f"{'float inner kernels':48s} {result['accuracy']:7.2%} {result['stages'][-1]['loss']:7.4f}")
for name, variables in rows.items():
    figures = evaluate(variables)
    print(f"{name:48s} {figures['accuracy']:7.2%} {figures['loss']:7.4f}")

# %% [markdown]
# The config `digits/tsq` is the whole method, with a last stage that trains what surrounds the
# codes. Next: [compare methods](05_compare_methods.ipynb).
