"""Shows one run site by site: bits, costs, saturation, zeros and the doctor's findings.

Of a language model it shows how the float and the quantized one go on with a text.

bitjax inspect runs/digits-bitpruning
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bitjax.cli.arguments import Parser, a_folder
from bitjax.cli.show import console_of
from bitjax.diagnostics.findings import doctor_report
from bitjax.diagnostics.vitals import vitals
from bitjax.frameworks.compiled import compile_quickly, jit_arrays
from bitjax.frameworks.probe import probe
from bitjax.launch.check import batch_to_look_at, examine
from bitjax.launch.continuation import Continuation, continue_text
from bitjax.launch.finished import Finished, load_run
from bitjax.report.figures import FIGURES, figures_of, layer_of, layers_of, own_figures
from bitjax.report.files import lines_of
from bitjax.report.terminal import Column, bar, table_of
from bitjax.runs.files import SiteBits
from bitjax.runs.folder import read_config
from bitjax.runs.records import RunRecord, read_runs

# Columns behind the bits; the higher their numbers, the sooner they are left out.
_SITE_HEAD = {"elements": 4, "kB": 1, "MACs": 5, "BOPs %": 1, "saturated %": 2, "zeros %": 3}
_FULL = 8  # bits of a full bar, which has a letter for each; float sites have none


class _SiteLook(NamedTuple):
    """A quantized site on one batch: the shares of saturated and of zero elements, in [0, 1]."""

    saturated: float
    zeros: float


def look_inside(finished: Finished, batch_size: int) -> tuple[dict[str, _SiteLook], str]:
    """Runs the final model of a run on one training batch."""
    work, model, variables = finished
    batch = batch_to_look_at(work, batch_size)
    args, kwargs = work.inputs(None, batch)

    outcome = jit_arrays(_look, variables, args, kwargs, static=(model,), **compile_quickly())
    looks = {
        site: _SiteLook(*np.asarray(pair).reshape(-1, 2).max(axis=0))
        for found in jax.device_get(outcome)
        for site, pair in found.items()
    }
    if not model.rules:
        return looks, ""
    return looks, doctor_report(examine(work, model, variables, batch))


def _look(model, variables, args, kwargs):
    def on_layer(seen):
        found = {}
        for role, use in seen.uses.items():
            q, params, stats = use.quantizer, use.params, use.stats
            x_hat = q.apply(params, stats, use.x, train=False)
            own = vitals(q, params, stats, use.x)
            found[seen.site(role)] = jnp.stack([jnp.mean(own.saturated), jnp.mean(x_hat == 0)])
        return found

    return [found for _, found in probe(model, variables, args, kwargs, on_layer).records]


def _site_table(record: RunRecord, looks: Mapping[str, _SiteLook], console: Console) -> Table:
    """A row for each site: bits, size, share of the model's BOPs, and what a batch showed."""
    layers = layers_of(record.sites)
    bops = {n: v.macs * v.weight_bits * v.input_bits for n, v in layers.items()}
    total = math.fsum(bops.values()) or 1.0
    plain = console.options.ascii_only

    def cells(site: SiteBits) -> tuple[str, ...]:
        kernel, look = site.role == "kernel", looks.get(site.site)
        bits, shown = f"{site.integer:g}", ""
        if site.integer >= 32:
            bits = "float"
        else:
            shown = bar(site.integer / _FULL, _FULL, plain=plain)
        if abs(site.fractional - site.integer) >= 0.005:
            bits = f"{site.fractional:.2f} -> {bits}"
        return (
            site.site,
            bits,
            shown,
            f"{site.elements:,.0f}",
            f"{site.elements * site.integer / 8192:.1f}",
            f"{site.macs:,.0f}" if kernel else "",
            f"{100 * bops[layer_of(site.site)] / total:.1f}" if kernel else "",
            f"{100 * look.saturated:.1f}" if look else "",
            f"{100 * look.zeros:.1f}" if look else "",
        )

    texts = list(zip(*map(cells, record.sites), strict=True))
    columns = [
        Column("site", texts[0], folds=True),
        Column("bits", texts[1]),
        Column("", texts[2], left=True),
        *map(Column, _SITE_HEAD, texts[3:], _SITE_HEAD.values()),
    ]
    return table_of(f"{record.name}  seed {record.seed}", columns, console.width)


def side_by_side(found: Continuation) -> Table:
    """The texts of several models behind one prompt, a column each."""
    title = escape(f"after: {found.prompt}")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    for name in found.texts:
        table.add_column(name, overflow="fold", ratio=1)
    table.add_row(*map(escape, found.texts.values()))
    return table


def _continued(record: RunRecord, finished: Finished) -> Table | str:
    """How the run's models go on with a text; a line where they cannot, '' for other models."""
    init_from = read_config(Path(record.folder)).get("init_from", "")
    try:
        found = continue_text(finished, str(init_from))
    except ValueError as error:
        return f"how the model goes on with a text is left out: {error}"
    return "" if found is None else side_by_side(found)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints what the folder holds, then what its model does with a batch."""
    parser = Parser(__doc__, "bitjax inspect")
    parser.add_argument("run", type=a_folder, help="a run's folder")
    parser.add_count("batch", "training images that sites see", default=64)
    parser.add_argument("--no-model", action="store_true", help="leave the checkpoint alone")
    args = parser.read(argv)
    console = console_of()
    found, skipped = read_runs([args.run])
    if len(found) != 1 or skipped:
        reasons = [f"{left.folder} {left.reason}" for left in skipped]
        inside = [f"holds several runs, name one: {', '.join(r.folder for r in found[:3])}"]
        raise ValueError("; ".join(reasons or inside))
    record = found[0]
    looks: dict[str, _SiteLook] = {}
    text, said = "", ""
    if not args.no_model:
        try:
            finished = load_run(record.folder)
            looks, text = look_inside(finished, args.batch)
            said = _continued(record, finished)
        except (ValueError, OSError, ImportError) as error:
            first = " ".join(str(error).split())
            text = f"saturation, zeros and the doctor's findings are left out: {first}"
    console.print(_site_table(record, looks, console))
    figures = figures_of(record)
    for figure in (*own_figures([record]), *FIGURES):
        if figure.key in figures and not figure.key.endswith("_fractional"):
            value = f"{figures[figure.key] / figure.scale:.{figure.digits}f}"
            console.print(
                f"{escape(f'{figure.title:>12}')} {value:>8}  [dim]{escape(figure.about)}[/dim]",
                soft_wrap=True,
            )
    for line in lines_of(record.files):
        console.print(line, markup=False, soft_wrap=True)
    for line in (f"config {record.config}, commit {record.commit}, {record.device}", *record.notes):
        console.print(line, markup=False, soft_wrap=True)
    for more in filter(None, (text, said)):
        console.print(more, markup=False, soft_wrap=isinstance(more, str))
