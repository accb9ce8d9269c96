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
# # Compare methods
#
# A run leaves a folder with its config, its bits site by site, and its result with commit and
# machine. This notebook reads such folders, puts what is comparable side by side, and draws the
# pictures that a paper needs. The runs are those of `results/digits` (every method, ten seeds
# each) and a short run that is made here from a config.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import Markdown
from rich.console import Console

from bitjax.launch.build import build_work, open_folder
from bitjax.launch.config_files import load_config
from bitjax.report import plots
from bitjax.report.comparison import compare
from bitjax.report.tables import markdown, terminal
from bitjax.runs.records import read_runs
from bitjax.training.runner import run

# %% [markdown]
# ## A run from a config
#
# A config is a base plus the lines that differ. On the command line the next cell would be
#
# ```
# bitjax train digits/bitpruning --workdir runs/short --config.method.steps=300
# ```

# %%
ROOT = next(p for p in (Path.cwd(), *Path.cwd().parents) if (p / "results").is_dir())

config = load_config("digits/bitpruning")
config.method.steps = 300
config.log_every = 10
config.name = "bitpruning, 300 steps"
folder = Path(tempfile.mkdtemp()) / "short"
work = build_work(config, source="configs/digits/bitpruning.py")
result, _ = run(work, open_folder(config, folder), show=False)
print(f"{result['accuracy']:.2%} at {result['bits']['all']['integer']:.2f} bits on average")
print("the folder holds:", sorted(path.name for path in folder.iterdir()))

# %% [markdown]
# ## Read folders
#
# `read_runs` takes run folders, or folders that hold some. It never fails because of what a folder
# holds: an unfinished run, a damaged run and a folder that is no run come back with the reason.

# %%
runs, skipped = read_runs([ROOT / "results" / "digits", folder, ROOT / "configs"])
print(len(runs), "finished runs of", len({run.method for run in runs}), "methods")
for left in skipped:
    print("left out:", Path(left.folder).name, left.reason)

# %% [markdown]
# ## One table
#
# Runs that differ only in their seed share a row. A row has the mean, the standard deviation, and
# the difference to float, seed by seed, with its confidence interval. Runs of different models,
# data or evaluation sets would be refused. The star marks the Pareto front of accuracy against bit
# operations (BOPs).

# %%
comparison = compare(runs, skipped=skipped)
(group,) = comparison.groups
Console(width=130).print(terminal(group, comparison))
for warning in group.warnings:
    print("-", warning)

# %% [markdown]
# The next cell has all columns as Markdown, for a paper's appendix. `csv_text` and `json_value`
# give the same as CSV and JSON. `bitjax compare RUNS --out report.html` writes one page that sorts
# and filters.

# %%
Markdown(markdown(comparison).split("\n\n")[1])

# %% [markdown]
# ## Pictures
#
# The first picture is accuracy against a cost, with the spread over seeds. The cost can be any of
# the table's: BOPs, bytes, average bits, or time on an accelerator.

# %%
_, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
axes = plots.pareto(group, "bops", axes=left)
axes = plots.pareto(group, "model_bytes", axes=right)

# %% [markdown]
# The next picture has the bits of BitPruning and of two-step quantization, layer by layer. Marks
# are learned bitlengths before they were rounded.

# %%
_, panels = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
for method, axes in zip(("bitpruning", "tsq"), panels, strict=True):
    chosen = next(run for run in runs if run.method == method)
    plots.bits_per_layer(chosen.sites, axes=axes).set_title(f"{chosen.name}, seed {chosen.seed}")

# %% [markdown]
# The last picture is what the short run logged while it trained. The bits fall to the budget of 3
# on average. The dashed line marks where they were rounded and frozen.

# %%
short = next(run for run in runs if run.metrics)
panels = plots.curves(short.metrics, ("loss", "accuracy", "bits"))

# %% [markdown]
# Next: [bring your own quantizer](06_your_own_quantizer.ipynb).
