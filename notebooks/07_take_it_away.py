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
# # Take it away
#
# A quantized network is a set of integers. This notebook trains one on the digits, fixes it, and
# takes it to a file of its true size, to plain NumPy, to ONNX Runtime, to StableHLO, and to C++ for
# FPGAs. Each time it asks the other program for every code, and compares it with evaluation.

# %%
import contextlib
import importlib.util
import io
import shutil
import tempfile
import warnings
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import SVG

import bitjax as bj
from bitjax.data import digits as load_digits
from bitjax.export.graph import graph_of
from bitjax.export.interpreter import interpret
from bitjax.methods import full_precision, lsq
from bitjax.models import SmallCNN
from bitjax.report import plots
from bitjax.report.drawing import draw_graph
from bitjax.training.runner import run
from bitjax.training.settings import Settings
from bitjax.training.work import make_work

away = Path(tempfile.mkdtemp())  # what this notebook writes

# %% [markdown]
# ## A trained network
#
# The images are pixels over 16 without further normalisation: what a sensor gives. Scales are
# powers of two, so that hardware rescales by shifts. The last convolution has fewer bits.

# %%
digits = load_digits()._replace(mean=(0.0,), std=(1.0,))
settings = Settings(batch_size=64)
float_work = make_work(
    full_precision(steps=150, learning_rate=0.1), SmallCNN(width=8), digits, settings=settings
)
float_result, float_variables = run(float_work, show=False)

rules = [
    bj.rule("conv3/kernel", bj.lsq(bits=2, scale="power_of_two")),
    bj.rule(".*/kernel", bj.lsq(bits=4, scale="power_of_two")),
    bj.rule(".*/input", bj.lsq(bits=4, signed=False, scale="power_of_two")),
]
method = lsq(rules, steps=100, learning_rate=0.02)
work = make_work(method, SmallCNN(width=8), digits, float_variables, settings)
result, variables = run(work, show=False)
model = work.wrap(method.stages[-1])
print(f"float {float_result['accuracy']:.2%}, quantized {result['accuracy']:.2%}")

# %% [markdown]
# ## Fix it
#
# `deploy` rounds what is still learned, holds every kernel at its levels, and writes the numbers of
# every site into `quant`. What it returns evaluates to the figure above, bit for bit.

# %%
test = digits.eval_sample(digits.num_eval)["image"]
images = np.float32(test) / 16
fixed = bj.deploy(model, variables, images)
logits = jax.jit(fixed.model.apply)(fixed.variables, images)
print("logits are equal:", bool((logits == jax.jit(model.apply)(variables, images)).all()))
codes = bj.codes_of(*fixed, images)
for site, kernel in codes.items():
    least, most = int(kernel.codes.min()), int(kernel.codes.max())
    scale = float(kernel.params["scale"])
    print(f"{site:13} codes {least} .. {most:2}, scale 2^{np.log2(scale):.0f}")

# %% [markdown]
# The codes of a kernel as a picture, one row for each filter, and the planes that its bits are.

# %%
kernel = np.asarray(codes["conv2/kernel"].codes)
rows = kernel.reshape(-1, kernel.shape[-1]).T
_, panels = plt.subplots(5, 1, figsize=(7, 7), layout="constrained")
panels[0].imshow(rows, cmap="gray")
panels[0].set_title("codes of conv2/kernel: filters from top to bottom")
panels[0].set_axis_off()
found = plots.planes(rows, bits=4, axes=panels[1:])

# %% [markdown]
# ## One file of its true size
#
# `save_packed` writes codes at their bits, one behind the other. `model_bytes` counts the same
# bytes without writing any. The format is open: a reader in NumPy is in the guide
# `docs/guides/packed_format.md`.

# %%
size = bj.save_packed(away / "model.safetensors", fixed, images, about={"max_value": 16.0})
as_float = 4 * sum(leaf.size for leaf in jax.tree.leaves(float_variables))
costs = bj.site_costs(fixed.model, images)
counted = bj.model_bytes(fixed.variables, costs)
print(f"float     {as_float:6} bytes")
print(f"packed    {size.payload:6} bytes, and {size.header} that say what they are")
print(f"counted   {counted:6.0f} bytes")
loaded, about = bj.load_packed(away / "model.safetensors")
again = jax.jit(loaded.model.apply)(loaded.variables, images)
print("read back, logits are equal:", bool((again == logits).all()))

# %% [markdown]
# ## In NumPy
#
# `graph_of` is the list of operations that every export reads: integers are multiplied and added,
# then scaled. `interpret` runs it one operation after the other, with 64-bit sums. It is slow, and
# short enough to be read.

# %%
graph = graph_of(fixed, images)
for node in graph.nodes[:8]:
    print(f"{node.op:22}{node.name}")
few = np.asarray(images)[:32]
ran = interpret(graph, few)
own = bj.integer_model(fixed, few).sites(few)
for site, integers in ran.integers.items():
    print(f"{site:12} {(integers != own.integers[site]).sum()} of {integers.size} codes differ")

# %% [markdown]
# The same list as a picture. Integers are blue, the thicker the more bits they have.

# %%
SVG(draw_graph(graph, "What evaluation of the digits' network computes"))

# %% [markdown]
# ## In ONNX Runtime
#
# Two profiles. `integers` has whole numbers in every product, and the sums of evaluation. `qdq` has
# the pairs of `QuantizeLinear` and `DequantizeLinear` that other tools fuse into integer kernels.
# `check_export` runs a file in its runtime and looks at every site.

# %%
for profile in ("integers", "qdq"):
    path = away / f"model_{profile}.onnx"
    written = bj.to_onnx(fixed, images, profile=profile, path=path)
    check = bj.check_export(path, fixed, images)
    print(check, end="\n\n")

# %% [markdown]
# ## As StableHLO
#
# The integer program for XLA and other compilers, on CPU, CUDA and TPU. Reading it needs JAX alone,
# no bitjax.

# %%
content = bj.to_stablehlo(fixed, images, path=away / "model.stablehlo")
elsewhere = jax.export.deserialize(bytearray(content)).call(images)
print("logits are equal:", bool((np.asarray(elsewhere) == logits).all()))

# %% [markdown]
# ## As C++ for FPGAs
#
# hls4ml makes C++ of it, which `g++` compiles here, without any synthesis. Its sums are as wide as
# their integers can make them. This cell does nothing where one of the two is missing. More is in
# the guide `docs/guides/hls4ml.md`.

# %%
if shutil.which("g++") and importlib.util.find_spec("hls4ml"):
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages that hls4ml imports
        import hls4ml

        ready = bj.to_hls4ml(fixed, images)
        project = hls4ml.converters.convert_from_onnx_model(
            ready.model, output_dir=str(away / "fpga"), hls_config=ready.config, backend="Vitis"
        )
        project.compile()
    in_cpp = project.predict(images)
    for layer in ("conv1", "conv2", "conv3", "head"):
        print(f"{layer} adds in {ready.config['LayerName'][layer]['Precision']['accum']}")
    print("largest difference of logits:", float(np.abs(in_cpp - logits).max()))
    print(f"same class: {np.mean(in_cpp.argmax(-1) == logits.argmax(-1)):.1%}")

# %% [markdown]
# ## What you take away
#
# An ONNX file is larger than the packed one: its graph is in it, and its types have 2, 4, 8 or 16
# bits.

# %%
for path in sorted(away.glob("*.*")):
    print(f"{path.name:22} {path.stat().st_size:6} bytes")


# %%
def bytes_by_layer(model):
    """Bytes of the constants of an ONNX model, by the layer that their name begins with."""
    found = dict.fromkeys(("conv1", "conv2", "conv3", "head"), 0)
    for tensor in model.graph.initializer:
        layer = tensor.name.partition("/")[0]
        if layer in found:
            found[layer] += len(tensor.raw_data) or len(tensor.SerializeToString())
    return found


in_onnx = bytes_by_layer(written)
bits = bj.bits_of(fixed.variables)
layers = list(in_onnx)
elements = np.array([costs[f"{layer}/kernel"].elements for layer in layers])
of_codes = np.array([float(bits[f"{layer}/kernel"]) for layer in layers])
forms = {
    "float": 4 * elements,
    "packed": elements * of_codes / 8,
    "onnx, qdq": np.array(list(in_onnx.values())),
}
_, axes = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
for i, (name, sizes) in enumerate(forms.items()):
    axes.bar(np.arange(len(layers)) + 0.27 * (i - 1), sizes, 0.25, label=name)
axes.set(ylabel="bytes", yscale="log", title="kernels")
ticks = [f"{layer}\n{n:.0f} bits" for layer, n in zip(layers, of_codes, strict=True)]
axes.set_xticks(range(len(layers)), ticks)
legend = axes.legend(frameon=False)

# %% [markdown]
# On the command line all of this is one command for a finished run,
# `bitjax export RUN --to packed,integers,qdq,stablehlo --check`. It leaves the files and
# `export.json`, which says what was checked, in the run's folder.
