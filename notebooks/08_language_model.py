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
# # A language model to 3 bits
#
# This notebook takes a published Llama, small enough for any machine, to weights of 3 bits and a
# cache of 4, without training. It compares the nearest levels with codes that are solved layer by
# layer, lets each of them tell a story, and ends with a file to take away.
#
# It reads weights and stories from the folder `stories` in the folder that the environment's
# `BITJAX_DATA` names. The guide `docs/guides/language_models.md` says what stands there, and how to
# bring your own.

# %%
import os
import tempfile
import textwrap
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import bitjax as bj
from bitjax.data import TokenDataset, decode, load, train_batch
from bitjax.models import Llama, load_llama
from bitjax.report import plots
from bitjax.training.task import next_token

stories = Path(os.environ["BITJAX_DATA"]) / "stories"

# %% [markdown]
# ## Text as tokens
#
# An example is a document, cut at 256 tokens here, so that a minute is enough. Twenty stories of
# the test split measure. Ranges and codes are fitted to sixteen of the training split, all of them
# long enough to need no filling.

# %%
data = load(f"tokens:{stories / 'tokens.npz'}", context=256, eval_limit=20)
assert isinstance(data, TokenDataset)
test = data.eval_sample(data.num_eval)
batch = train_batch(data, 32, step=0, seed=0)
whole = batch["scored"].sum(axis=1) == data.context - 1
tokens = batch["tokens"][whole][:16]
print(textwrap.fill(decode(data, tokens[0])[:300], 90), "...")

# %% [markdown]
# ## The float model
#
# `next_token` is the task of a language model. Its score is the perplexity: among how many tokens,
# all alike, one would be as unsure as the model is.

# %%
task, net = next_token(), Llama()
weights = load_llama(stories / "llama_260k.npz")


def perplexity(apply, variables):
    """Of the test stories; `apply` is a model's, compiled."""
    logits = apply(variables, test["tokens"])
    return float(task.figures(task.sums(logits, test))["perplexity"])


found = {"float": perplexity(jax.jit(net.apply), weights)}
parameters = sum(leaf.size for leaf in jax.tree.leaves(weights))
print(f"{parameters:,} parameters, perplexity {found['float']:.3f}")

# %% [markdown]
# ## What there is to quantize
#
# The sites of one block. The embedding is the head too: one table, which stays float here. Keys and
# values are sites where they enter the cache.

# %%
costs = bj.site_costs(net, tokens[:1])
for site, cost in costs.items():
    if site.startswith(("embed", "layers_0")):
        print(f"{site:35} {cost.role:7} {cost.elements:7,} elements {cost.macs:11,} MACs")

# %% [markdown]
# ## The nearest levels
#
# Each weight goes to its nearest level, with a scale for each output channel. Bits are arrays: one
# compiled program evaluates all of them.

# %%
table = bj.rule("embed/.*", None)
nearest = bj.Quantized(
    net, [table, bj.rule(".*/kernel", bj.uniform(8, range="mse", granularity="per_channel"))]
)
at_8 = bj.attach(nearest, weights, tokens)
kernels = list(bj.bits_of(at_8))
apply = jax.jit(nearest.apply)
rounded = {bits: bj.with_bits(at_8, dict.fromkeys(kernels, bits)) for bits in (8, 6, 5, 4, 3)}
curve = {bits: perplexity(apply, variables) for bits, variables in rounded.items()}
found["nearest, 3 bits"] = curve[3]
for bits, value in curve.items():
    print(f"{bits} bits: perplexity {value:6.3f}, {value / found['float']:.3f} of float")

# %% [markdown]
# ## Solved, layer by layer
#
# `solve_layers` goes through the layers in order. It gives each one codes of 3 bits with which its
# outputs, behind all that is quantized already, come nearest to those of the float model. Nothing
# is trained.

# %%
codes = bj.low_bit(bits=3, fit="stored", narrow=False)
solved = bj.Quantized(net, [table, bj.rule(".*/kernel", codes)])
errors = {}
solution = bj.solve_layers(
    solved,
    bj.attach(solved, weights, tokens),
    [tokens],
    target="sum",
    positions=data.context,
    pair_moves=True,
    log=lambda report: errors.update({report.layer: report.error}),
)
found["solved, 3 bits"] = perplexity(jax.jit(solved.apply), solution)
worst = max(errors, key=lambda layer: errors[layer])
print(f"{len(errors)} layers, perplexity {found['solved, 3 bits']:.3f}")
print(f"the outputs of {worst} are furthest from float: {errors[worst]:.1%} of their variance")

# %%
fig, panels = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
panels[0].plot(list(curve), list(curve.values()), "o-", label="nearest")
panels[0].plot(3, found["solved, 3 bits"], "s", color="C3", label="solved")
panels[0].axhline(found["float"], color="k", lw=1, ls="--", label="float")
panels[0].set(xlabel="bits of a weight", ylabel="perplexity", title="of the test stories")
legend = panels[0].legend(frameon=False)
site = ("layers_2", "ffn", "w2", "kernel")
channel = [tree["params"] for tree in (weights, solution)]
for part in site:
    channel = [tree[part] for tree in channel]
axes = plots.tensor_histogram(channel[0][:, 0], channel[1][:, 0], bins=30, axes=panels[1])
title = axes.set_title("one output channel of layers_2/ffn/w2, and its levels")

# %% [markdown]
# ## A cache of 4 bits
#
# What generation keeps of every token are its keys and values. One rule quantizes them as they
# enter the cache, each channel of a head with a range of its own. (`stories/cache_4` also learns
# how many bits each channel has.)

# %%
cache = bj.rule(".*_cache", bj.uniform(4, granularity="per_channel"))
model = bj.Quantized(net, [*solved.rules, cache])
variables = bj.attach(model, solution, tokens)  # what is there stays; ranges of caches are new
found["solved, 3 bits, cache of 4"] = perplexity(jax.jit(model.apply), variables)
for name, value in found.items():
    print(f"{name:27} perplexity {value:6.3f}, {value / found['float']:.3f} of float")
before, after = (bj.cache_bytes(tree, costs) for tree in (weights, variables))
print(f"\na token adds {after:.0f} bytes to the cache, {before:.0f} in float")

# %% [markdown]
# ## What they say
#
# `generate` goes on with a prompt, one token after the other from the cache, here the likeliest.
# The prompt is how a test story begins.

# %%
prompt = test["tokens"][2:3, :16]
speakers = {
    "float": (net, weights),
    "nearest, 3 bits": (nearest, rounded[3]),
    "solved, 3 bits, cache of 4": (model, variables),
}
print(decode(data, prompt[0]), "...")
for name, speaker in speakers.items():
    said = np.asarray(bj.generate(*speaker, prompt, 70))[0, prompt.shape[1] :]
    print(f"\n{name}:\n{textwrap.fill(decode(data, said), 90)}")

# %% [markdown]
# ## Take it away
#
# `deploy` fixes the model, and `save_packed` writes its codes at their bits, one behind the other,
# with the table in float, once. What is read back goes on with the same words.

# %%
path = Path(tempfile.mkdtemp()) / "llama.safetensors"
size = bj.save_packed(path, bj.deploy(model, variables, tokens), tokens)
as_float = 4 * parameters
print(f"float    {as_float:9,} bytes")
print(f"table    {4 * costs['embed/kernel'].elements:9,} bytes of these, which stay")
print(f"packed   {size.payload:9,} bytes, and {size.header:,} that say what they are")
loaded, about = bj.load_packed(path)
again = np.asarray(bj.generate(*loaded, prompt, 70))[0, prompt.shape[1] :]
print("read back, it says the same:", bool((again == said).all()))

# %% [markdown]
# On the command line `bitjax train stories/solved_w3 --workdir RUN` makes such a file, with the
# perplexity of the 120 test stories that others report, and `bitjax inspect RUN` shows how it goes
# on. `stories/bitpruning_w` goes further with training: each layer then learns how many bits it
# needs.
