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
# # Quantize a model
#
# You have a float Flax model. This notebook quantizes it in five lines, without rewriting it. Then
# it looks at what that changed: the variables, the logits, the accuracy, the kernels.

# %%
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

import bitjax as bj
from bitjax.data import load
from bitjax.methods import full_precision
from bitjax.report import plots
from bitjax.training.runner import run
from bitjax.training.settings import Settings
from bitjax.training.work import make_work

# %% [markdown]
# ## A plain model
#
# Nothing in the model knows of quantization. The data are scikit-learn's 8x8 digits.


# %%
class Net(nn.Module):
    """Two convolutions, a hidden layer and a classifier."""

    @nn.compact
    def __call__(self, x, train=False):
        for filters in (16, 32):
            x = nn.Conv(filters, (3, 3), strides=2, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.relu(nn.Dense(64, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(10, name="head")(x)


digits = load("digits")
method = full_precision(steps=400, learning_rate=0.1)
work = make_work(method, Net(), digits, settings=Settings(batch_size=64))
result, trained = run(work, show=False)
print(f"float accuracy on the test set: {result['accuracy']:.2%}")

# %% [markdown]
# ## Five lines
#
# A *site* is one tensor to quantize: the kernel or the input of a layer, named `layer/path/kernel`
# or `layer/path/input`. *Rules* say which quantizer a site gets. The first rule that matches
# decides. A site that no rule matches stays float. `attach` fits the ranges on one batch of data.

# %%
batch = work.calibration_batch()

# %%
rules = [bj.rule("head/.*", None)]  # the classifier stays float
rules += [bj.rule(".*/kernel", bj.uniform(bits=4, granularity="per_channel"))]
rules += [bj.rule(".*/input", bj.uniform(bits=4))]
model = bj.Quantized(Net(), rules)
variables = bj.attach(model, trained, batch)

# %% [markdown]
# ## What changed, and what did not
#
# The parameters are the float model's own, bit for bit: a float checkpoint is a valid checkpoint of
# the quantized model. What quantizers learn lies in the new collection `quant`, and what they
# observe lies in `quant_stats`. To remove quantization, drop these two collections.

# %%
print("collections before:", sorted(trained))
print("collections after: ", sorted(variables))
same = jax.tree.map(np.array_equal, trained["params"], variables["params"])
print("parameters are the same:", all(jax.tree.leaves(same)))
jax.tree.map(lambda leaf: leaf.shape, variables["quant"])

# %% [markdown]
# The summary lists every site with its quantizer, its bits and what it costs. Multiply-adds and
# sizes are measured on the traced model. The float sites are those of the classifier, because of
# the first rule.

# %%
text = bj.summary(model, variables, batch[:1])

# %% [markdown]
# The model is called as before. Rounding moves its logits. The classes that it chooses hardly
# change.

# %%
before = np.asarray(Net().apply(trained, batch))
after = np.asarray(model.apply(variables, batch))
_, axes = plt.subplots(figsize=(4.5, 4.5), layout="constrained")
axes.plot(before.ravel(), after.ravel(), ".", ms=2, alpha=0.5)
axes.axline((0, 0), slope=1, color="black", lw=0.8)
axes.set(xlabel="float logits", ylabel="logits with 4 bits", aspect="equal")
agree = np.mean(np.argmax(before, axis=-1) == np.argmax(after, axis=-1))
print(f"same class for {agree:.1%} of {len(batch)} training images")

# %% [markdown]
# ## How few bits?
#
# Bits are arrays among the variables, so other bits need no new model and no new compilation.
# Without any training the accuracy on the test set holds for a while, and then it falls. The
# other notebooks are about the bits beyond that edge.

# %%
evaluate = work.evaluator(model)
all_bits = [8, 6, 5, 4, 3, 2]
accuracies = []
for bits in all_bits:
    fewer = bj.with_bits(variables, dict.fromkeys(bj.bits_of(variables), bits))
    accuracy = evaluate(fewer)["accuracy"]
    accuracies.append(100 * accuracy)
    print(f"{bits} bits: {accuracy:.1%}")

# %%
_, axes = plt.subplots(figsize=(5.5, 3.5), layout="constrained")
axes.axhline(100 * result["accuracy"], color="black", ls="--", lw=1, label="float")
axes.plot(all_bits, accuracies, "o-", label="quantized, not trained")
axes.set(xlabel="bits of weights and inputs", ylabel="top-1 %", xticks=all_bits)
axes.grid(alpha=0.3)
legend = axes.legend(frameon=False)

# %% [markdown]
# ## A kernel and its levels
#
# A quantizer is a value that knows nothing of models: `init` fits it to an array, and `apply`
# rounds the array. Here is the kernel of the second convolution at 4 and at 2 bits, with the levels
# that its weights are rounded to.

# %%
kernel = variables["params"]["Conv_1"]["kernel"]
_, (left, right) = plt.subplots(1, 2, figsize=(9, 3), sharey=True, layout="constrained")
for bits, axes in ((4, left), (2, right)):
    quantizer = bj.uniform(bits=bits)
    params, stats = quantizer.init(kernel, bj.Axes())
    levels = quantizer.apply(params, stats, kernel)
    plots.tensor_histogram(kernel, levels, bins=60, axes=axes).set_title(f"{bits} bits")

# %% [markdown]
# ## What the doctor says
#
# `bj.doctor` runs one batch forward and backward, and reports what would silently ruin a run. It
# has nothing to say about the model above. The second cell makes two common mistakes: a pattern
# that matches no site, and an unsigned range for a signed tensor.

# %%
print(bj.doctor_report(bj.doctor(model, variables, batch[:64])))

# %%
mistaken = [
    bj.rule("Conv_2/.*", bj.uniform(bits=4)),
    bj.rule("Conv_0/input", bj.lsq(bits=4, signed=False)),
    bj.rule(".*/kernel", bj.uniform(bits=4)),
]
wrong = bj.Quantized(Net(), mistaken[1:])
findings = bj.doctor(bj.Quantized(Net(), mistaken), bj.attach(wrong, trained, batch), batch[:64])
print(bj.doctor_report(findings))

# %% [markdown]
# ## NNX, and plain functions
#
# Models need not be Linen's. `bj.quantize` gives an NNX module around an NNX model. What its
# quantizers learn are `nnx.Param`s, so that `nnx.grad` and `nnx.Optimizer` train them;
# `train()` and `eval()` reach them like a batch normalisation.


# %%
class Perceptron(nnx.Module):
    """A hidden layer and a classifier."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 32, rngs=rngs)
        self.head = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


pixels = batch.reshape(len(batch), -1)
perceptron = bj.quantize(Perceptron(nnx.Rngs(0)), rules, pixels)
perceptron.eval()
logits = perceptron(pixels)

# %% [markdown]
# NNX keeps variables in the module. The tools take a function and its variables, and
# `perceptron.update(variables)` takes back what they return.

# %%
function, values = perceptron.functional()
text = bj.summary(function, values, pixels[:1])

# %% [markdown]
# `bj.Function` takes any function of parameters and data: plain JAX, Equinox, Haiku. Sites are
# named by the parameters' paths, so the same rules give the same quantizers.


# %%
def forward(params, x):
    hidden = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"]


plain = bj.Function(forward, rules)
state = plain.init(values["params"], pixels)
same, _ = plain.apply(values["params"], state, pixels)
print("sites:", ", ".join(bj.bits_of(state)))
print("logits are those of NNX:", np.allclose(same, logits, atol=1e-5))

# %% [markdown]
# ## What you take away
#
# `deploy` fixes a quantized model, and `save_packed` writes it at its true size: codes at their 4
# bits, scales, and the classifier in float. [Notebook 07](07_take_it_away.ipynb) reads such a file,
# and writes those of other tools.

# %%
path = Path(tempfile.mkdtemp()) / "digits.safetensors"
size = bj.save_packed(path, bj.deploy(model, variables, batch), batch)
as_float = 4 * sum(leaf.size for leaf in jax.tree.leaves(trained))
print(f"{path.name}: {size.payload + size.header:,} bytes, where float has {as_float:,}")

# %% [markdown]
# Next: [learn the bitlengths](02_learn_bitlengths.ipynb) instead of choosing them.
