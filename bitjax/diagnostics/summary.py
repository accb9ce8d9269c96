"""Prints a table of a model's sites with their quantizers, bits and costs."""

import io
from collections.abc import Mapping
from typing import IO, Any, NamedTuple

import numpy as np

from bitjax.checks import checked
from bitjax.costs import measures as cost
from bitjax.costs.bits import bits_of
from bitjax.costs.site import Costs
from bitjax.costs.sizes import cache_bytes, model_bytes
from bitjax.frameworks.models import rules_of
from bitjax.frameworks.shapes import program_of
from bitjax.frameworks.targets import TARGETS, is_stored, plan_layers
from bitjax.program.costs import costs_of
from bitjax.rules import quantizer_of
from bitjax.variables import QUANT, VARIABLES, floats_of

_WIDTH = 100  # characters of a line of plain text
_PLACES = 4  # that are not reached and have a line of their own


class SiteRow(NamedTuple):
    """One site of the table."""

    site: str
    quantizer: str  # its name; `float` where there is none
    bits: np.ndarray  # the leaf's values, any shape
    granularity: str  # the quantizer's, such as `per_channel`, or empty
    elements: int  # elements of the kernel, or of one example's input
    macs: int | None  # the layer's, per example; None on its input's row
    bytes: float  # the size of the kernel's codes, or of one example's input
    # the layer's share of the model's BOPs, in [0, 1]; None on its input's row
    bops_share: float | None
    count: int  # layers that the name stands for
    shared: bool  # whether an earlier site reads the same tensor


def site_rows(model: Any, variables: Mapping[str, Any], costs: Costs) -> list[SiteRow]:
    """The table's rows as values, in forward order; a ValueError if a site has no variables."""
    bits = _bits(model, variables)
    mean = {site: float(np.mean(n)) for site, n in cost.site_bits(bits, costs).items()}
    total = max(1.0, float(cost.bops(bits, costs)))
    kernels = {kernel for kernel, _ in cost.layer_pairs(costs).values()}
    rows = []
    for site, weight in costs.items():
        quantizer = quantizer_of(rules_of(model), site)
        if quantizer is not None and site not in bits:
            raise ValueError(
                f"site {site!r} has no 'quant' variables: make them with "
                "bitjax.attach(model, variables, x)."
            )
        kernel = site in kernels
        rows.append(
            SiteRow(
                site,
                "float" if quantizer is None else quantizer.name,
                np.asarray(bits.get(site, cost.FLOAT_BITS), np.float32),
                "" if quantizer is None else str(quantizer.form.get("granularity", "")),
                weight.elements,
                weight.macs if kernel else None,
                weight.elements * mean[site] / 8,
                float(cost.bops(bits, costs, [site])) / total if kernel else None,
                weight.count,
                weight.source != site,
            )
        )
    return rows


@checked(variables=VARIABLES)
def summary(
    model: Any,
    variables: Mapping[str, Any],
    *args: Any,
    file: IO[str] | None = None,
    **kwargs: Any,
) -> str:
    """Prints a table of a model's sites and their total costs.

    What no site reaches is listed last: where it is computed, the operation that holds it or why it
    cannot be quantized, and its share of the multiply-adds.

    Args:
      model: a Linen module or a function of parameters, wrapped or not.
      variables: all collections of the model; those of a function are `{"params": its parameters}`
        and what quantizers learned and observed.
      *args: positional arguments of the model, only traced; the leading axis is the batch.
      file: the file to print to; standard output by default.
      **kwargs: keyword arguments of the model.

    Returns:
      The printed text without colours, 100 columns wide.

    Raises:
      ValueError: a quantized site has no variables.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> x = jnp.ones((1, 3))
      >>> text = summary(nn.Dense(2), nn.Dense(2).init(jax.random.key(0), x), x, file=io.StringIO())
      >>> "float" in text
      True
    """
    from rich.console import Console, Group

    program, batch = program_of(model, args, kwargs, variables)
    costs = costs_of(program, batch)
    rows = site_rows(model, variables, costs)
    parts = [_table(rows), *_totals(model, variables, costs)]
    parts += _targets(model, variables, costs, args, kwargs)
    if any(row.shared for row in rows):
        parts.append("* an earlier site reads the same tensor, which is stored once")
    parts += _not_reached(program, batch)
    plain = io.StringIO()
    # Without this, rich would print a file's text to the notebook.
    printed = Console(file=file, force_jupyter=None if file is None else False)
    console = Console(file=plain, width=_WIDTH, color_system=None, force_jupyter=False)
    whole = Group(*parts)  # at once: in a notebook every print is a separate output
    console.print(whole, highlight=False, markup=False)
    shown = printed.is_terminal or printed.is_jupyter
    if shown:
        printed.print(whole, highlight=False, markup=False)
    text = "\n".join(line.rstrip() for line in plain.getvalue().splitlines()) + "\n"
    if not shown:
        print(text, end="", file=file)
    return text


def _bits(model, variables):
    """Bits of the sites that the model quantizes; a float model ignores the collection."""
    quantized = {QUANT: variables.get(QUANT, {})}
    rules = rules_of(model)
    return {s: n for s, n in bits_of(quantized).items() if quantizer_of(rules, s) is not None}


def _table(rows):
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("site", overflow="fold")
    table.add_column("quantizer", overflow="fold")
    table.add_column("bits", justify="right", no_wrap=True)
    table.add_column("per")
    for name in ("elements", "MACs", "bytes", "BOPs"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.site} (x{row.count})" if row.count > 1 else row.site,
            row.quantizer,
            _span(row.bits),
            row.granularity.removeprefix("per_"),
            f"{row.elements:,}" + ("*" if row.shared else ""),
            "" if row.macs is None else _metric(row.macs),
            _bytes(row.bytes),
            "" if row.bops_share is None else f"{100 * row.bops_share:.1f} %",
        )
    return table


def _totals(model, variables, costs):
    bits = _bits(model, variables)
    whole = floats_of(variables)
    mine = dict(variables) if rules_of(model) else whole
    weights = [s for s, c in costs.items() if c.role == "kernel"]
    activations = [s for s in costs if s not in weights]
    inner = cost.inner_sites(costs)

    def average(sites=None):
        return f"{float(cost.average_bits(bits, costs, sites)):.2f}"

    def against(measure, unit):
        ours, floats = float(measure(bits)), float(measure({}))
        return unit(ours) if ours == floats else f"{unit(ours)} of {unit(floats)} in float32"

    size, float_size = model_bytes(mine, costs), model_bytes(whole, costs)
    times = f", {float_size / size:.1f} times smaller" if size != float_size else ""
    lines = [
        f"bits on average   weights {average(weights)}   activations "
        f"{average(activations)}   all {average()}   inner layers "
        f"{average(inner) if inner else '-'}",
        f"kernels           {against(lambda b: cost.kernel_bytes(b, costs), _bytes)}",
        f"model             {against(lambda b: size if b else float_size, _bytes)}{times}",
        f"activations       {against(lambda b: cost.activation_bytes(b, costs), _bytes)}",
        f"BOPs              {against(lambda b: cost.bops(b, costs), _metric)}",
        f"MACs              {_metric(cost.macs(costs))} (like activations and BOPs, per example)",
    ]
    if any(weight.role == "cache" for weight in costs.values()):
        tokens = against(lambda b: cache_bytes(mine if b else whole, costs), _bytes)
        lines.append(f"cache             {tokens}, per token")
    return ["", *lines]


def _targets(model, variables, costs, args, kwargs):
    """The layers that `solve_layers` would solve, by target."""
    stored = [s for s in costs if (q := quantizer_of(rules_of(model), s)) and is_stored(q)]
    if not stored:
        return []
    plans = plan_layers(model, variables, args, kwargs)
    lines = []
    for target in TARGETS:
        layers = [plan.layer for plan in plans if plan.target == target]
        if layers:
            lines.append(f"solved for {target:6}  {', '.join(layers)}")
    return lines


def _not_reached(program, batch):
    """What no site reaches, by place and reason, the largest first."""
    places: dict[tuple[str, str], int] = {}
    for part in program.unread:
        place = part.scope or "the model itself", part.why
        places[place] = places.get(place, 0) + part.macs
    total = sum(places.values())
    if not total:
        return []

    def line(name, macs):
        return f"{name}, {100 * macs / program.macs:.1f} %"

    largest = sorted(places.items(), key=lambda item: -item[1])
    lines = [line(f"not reached       {_metric(total / batch)} MACs", total)]
    lines += [line(f"  {scope} ({why})", macs) for (scope, why), macs in largest[:_PLACES]]
    if rest := largest[_PLACES:]:
        lines.append(line(f"  {len(rest)} more", sum(macs for _, macs in rest)))
    return lines


def _span(bits):
    """Bits as text: one number, or the mean and the extremes where blocks differ."""
    low, high, mean = (float(f(bits)) for f in (np.min, np.max, np.mean))
    return f"{mean:.4g}" if low == high else f"{mean:.3g} ({low:.3g}-{high:.3g})"


def _metric(value):
    """A count with three digits and a unit of thousands."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _bytes(value):
    """A size in bytes; 1 kB is 1024 bytes."""
    for unit, size in (("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"
