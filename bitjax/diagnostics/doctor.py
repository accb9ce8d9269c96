"""Runs one batch forward and backward and finds what would spoil a run."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.diagnostics.vitals import Vitals, hand_out, site_vitals
from bitjax.frameworks.finite import finite_flags, first_nonfinite, is_finite
from bitjax.frameworks.call import Model, run
from bitjax.frameworks.models import as_model, compile_quickly, jit_arrays
from bitjax.frameworks.probe import probe
from bitjax.frameworks.shapes import one_key
from bitjax.program.state import Seen
from bitjax.quantizers.grid import widen
from bitjax.rules import check_rules, quantizer_of
from bitjax.variables import QUANT, STATS, as_args, floats_of, read_site, site_name

_MOSTLY_ZERO = 0.99
_SATURATED = 0.05
# A fresh kernel has no zeros in float32, and 0.8 % of them in bfloat16; pruning begins far above.
_PRUNED = 0.01


class Finding(NamedTuple):
    """One problem that `doctor` found.

    Attributes:
      level: `error` if training cannot work, else `warning`.
      site: the site with the problem, or a rule's pattern, or a layer.
      message: the problem and its remedy.
    """

    level: Literal["error", "warning"]
    site: str
    message: str


Findings = tuple[Finding, ...]


def doctor(
    model: Any,
    variables: Mapping[str, Any],
    batch: Any,
    labels: Any = None,
    loss: Callable[[Any, Any], jax.Array] | None = None,
    **kwargs: Any,
) -> Findings:
    """Runs one batch forward and backward and looks at every site.

    Errors are NaN or inf, a rule that does nothing, a kernel quantized to zeros, pruned weights
    that come back and a gradient that quantization makes zero. A kernel's gradient that is zero in
    the float model too, as behind a scale initialised to 0, is a warning; so are saturated, cut and
    half-used ranges, and masked attention that comes back.

    Args:
      model: a Linen module, wrapped in `Quantized` or not.
      variables: all collections of the model.
      batch: an array, or a tuple of the model's arguments.
      labels: `[N]` integers, for cross entropy; without them the loss is the mean squared output.
      loss: `(output, labels) -> scalar`, in place of these losses.
      **kwargs: keyword arguments of the model; with `train=True` the ranges are the batch's own.

    Returns:
      The findings: rules first, then sites in forward order; empty if nothing is wrong.

    Example:
      >>> import bitjax as bj
      >>> x = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
      >>> model = bj.Quantized(nn.Dense(2), [bj.rule("kernel", bj.uniform(bits=4))])
      >>> doctor(model, model.init(jax.random.key(0), x), x)
      ()
    """
    args = as_args(batch)
    model, idle = _rules(as_model(model), variables, args, kwargs)
    names: list[str] = []
    unseen: list[str] = []
    training: list[bool] = []

    def look(seen: Seen):
        training.extend(use.train for use in seen.uses.values())
        return {"finite": finite_flags(seen), "uses": hand_out(seen)}

    def run(variables, args, labels):
        def objective(trained):
            seen = probe(model, {**variables, **trained}, args, kwargs, look)
            names[:] = [name for name, _ in seen.records]
            unseen[:] = seen.unseen
            value = (loss or _default_loss)(seen.out, labels)
            finite = is_finite([seen.out, value])
            return value, ([record for _, record in seen.records], finite)

        trained = {name: variables[name] for name in ("params", QUANT) if name in variables}
        gradients, (records, finite) = jax.grad(objective, has_aux=True)(trained)
        return records, gradients, finite

    records, gradients, finite = jit_arrays(run, dict(variables), args, labels, **compile_quickly())
    flags = [flag for record in records for flag in record["finite"].values()]
    if not finite or not all(map(np.all, flags)):
        site = first_nonfinite(model, variables, *args, **kwargs)
        message = "holds NaN or inf: clean the data, lower the learning rate, or load other weights"
        if site is None:
            site, message = "loss", "is NaN or inf though the model is not: look at the labels"
        return (*idle, Finding("error", site, message))
    depths = {n: r["finite"]["output"].ndim for n, r in zip(names, records, strict=True)}
    found = [
        Finding("warning", name, "is not seen: a transform around it does not list 'quant_stats'")
        for name in unseen
    ]
    uses = [(n, r["uses"], depths[n]) for n, r in zip(names, records, strict=True)]
    vital = site_vitals(uses, model.rules, any(training))
    for site, seen in vital.items():
        found += [*_values(site, seen, variables), *_pruned(site, seen)]
        quantizer = quantizer_of(model.rules, site)
        if quantizer is not None and (bounds := quantizer.traits.learns_bits):
            found += _bits(site, bounds, variables, gradients, depths[_layer(site)])
    # A kernel of zeros has been reported, with its cause.
    dead = {_layer(f.site) for f in found if f.level == "error" and "all zeros" in f.message}
    suspects = [(name, depths.get(name, 0)) for name in [*depths, *unseen] if name not in dead]
    found += _gradients(
        suspects, gradients, lambda: _float(model, variables, args, labels, loss, kwargs)
    )
    order = {name: i for i, name in enumerate(depths)}
    return (*idle, *sorted(found, key=lambda f: order.get(_layer(f.site), -1)))


def doctor_report(findings: Findings) -> str:
    """The findings as text, a line each; findings with the same message share one.

    Args:
      findings: the findings, from `doctor`.

    Returns:
      A line of counts and the lines of the findings, without a newline at the end.

    Example:
      >>> print(doctor_report((Finding("error", "conv/kernel", "is all zeros"),)))
      doctor: 1 error, 0 warnings
      error    conv/kernel: is all zeros
    """
    if not findings:
        return "doctor: nothing found"
    groups: dict[tuple[str, str], list[str]] = {}
    for level, site, message in sorted(findings, key=lambda f: f.level):
        groups.setdefault((level, message), []).append(site)
    errors = sum(f.level == "error" for f in findings)
    counts = [(errors, "error"), (len(findings) - errors, "warning")]
    lines = ["doctor: " + ", ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in counts)]
    for (level, message), sites in groups.items():
        more = f" and {len(sites) - 3} more" if len(sites) > 3 else ""
        lines.append(f"{level:<8} {', '.join(sites[:3])}{more}: {message}")
    return "\n".join(lines)


def _rules(model: Model, variables, args, kwargs) -> tuple[Model, list[Finding]]:
    """The model with the rules that do something, and a finding for each of the others."""
    found: list[Finding] = []
    rules = list(model.rules)
    floats = floats_of(variables)
    program = model.ask(floats, args, kwargs, rngs=one_key(), mutable=True).call.program
    while rules:
        try:
            check_rules(rules, program.sites, program.unread)
            break
        except ValueError as error:
            text = str(error)
            idle = next(r for r in rules if text.startswith(f"rule {r.pattern!r} "))
            message = text.removeprefix(f"rule {idle.pattern!r} ")
            found.append(Finding("error", idle.pattern, f"the rule {message}"))
            rules = [r for r in rules if r is not idle]
    return model.with_rules(rules), found


def _default_loss(out, labels):
    if labels is None:
        leaves = [x for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum(jnp.mean(jnp.square(widen(x))) for x in leaves)
    log_p = jax.nn.log_softmax(widen(out))
    return -jnp.mean(jnp.take_along_axis(log_p, jnp.asarray(labels)[:, None], axis=-1))


def _values(site, seen: Vitals, variables) -> Iterator[Finding]:
    role, warning = site.rpartition("/")[2], partial(Finding, "warning", site)
    zeros, cut, saturated = (float(np.max(a)) for a in (seen.zeros, seen.cut, seen.saturated))
    if role == "kernel" and zeros == 1.0:
        message = (
            "is quantized to all zeros: give it more bits, a range fitted to it (bitjax.attach)"
            " or per-channel granularity"
        )
        yield Finding("error", site, message)
        return
    if role == "kernel" and zeros > _MOSTLY_ZERO:
        yield warning(
            f"is quantized to {100 * zeros:.1f} % zeros: give it more bits, or a range that "
            "outliers do not set"
        )
    count = _read(variables.get(STATS, {}), site, "count")
    if role == "input" and count is not None and np.any(np.asarray(count) == 0):
        yield warning(
            "has a range that was never observed: run bitjax.calibrate(model, variables, "
            "batches), or train with quant_stats mutable, before evaluating"
        )
    if cut > 0:
        yield warning(
            f"is quantized without sign, but {100 * cut:.1f} % of its elements are below 0 "
            "and are cut: use signed=True"
        )
    elif saturated > _SATURATED:
        yield warning(
            f"saturates: {100 * saturated:.1f} % of its elements lie outside the range: "
            "calibrate on more batches or fit the range anew"
        )
    if role == "input" and np.any(seen.half_used):
        yield warning("never is below 0, yet half of its codes are: use signed=False")


def _pruned(site, seen: Vitals) -> Iterator[Finding]:
    """Zeros that carry meaning, in a kernel or in masked attention, and do not stay zero."""
    role, moved = site.rpartition("/")[2], float(np.max(seen.moved))
    remedy = "use zero_on_grid=True, or a quantizer with a level 0.0 such as lsq or ternary"
    if role == "kernel" and moved > _PRUNED:
        message = f"has {100 * moved:.0f} % zeros, and pruned weights come back: {remedy}"
        yield Finding("error", site, message)
    elif role != "input" and moved > _PRUNED:
        message = f"has {100 * moved:.0f} % zeros, and what a mask takes away comes back: {remedy}"
        yield Finding("warning", site, message)


def _bits(site, bounds, variables, gradients, depth) -> Iterator[Finding]:
    bits, (least, most) = np.asarray(_read(variables[QUANT], site, "bits")), bounds
    for bound, stuck in (
        (f"min_bits={least:g}", bits <= least),
        (f"max_bits={most:g}", bits >= most),
    ):
        if np.any(stuck):
            share = "" if np.all(stuck) else f" in {100 * np.mean(stuck):.0f} % of its blocks"
            message = (
                f"has its bitlength at {bound}{share}: widen the bounds, start "
                "elsewhere or change the penalty's strength"
            )
            yield Finding("warning", site, message)
    gradient = np.asarray(_read(gradients[QUANT], site, "bits"))
    if not np.all(np.isfinite(gradient)):
        yield Finding("error", site, "gets a NaN or inf gradient to its bits: check the loss")
    elif np.any(_zero(gradient, depth)):
        message = "gets no gradient to its bits, so they cannot move: is the layer's output used?"
        yield Finding("warning", site, message)


def _gradients(layers, gradients, float_gradients) -> Iterator[Finding]:
    """Findings on the kernels' gradients; the float model is run only where one is zero."""
    ours, floats = gradients.get("params", {}), None
    for name, depth in layers:
        leaf = next((k for k in ("kernel", "embedding") if _read(ours, name, k) is not None), None)
        if leaf is None:
            continue
        site = site_name(name, "kernel")
        gradient = np.asarray(_read(ours, name, leaf))
        if not np.all(np.isfinite(gradient)):
            yield Finding("error", site, "gets a NaN or inf gradient: check the loss and the data")
        elif np.any(dead := _zero(gradient, depth)):
            floats = float_gradients() if floats is None else floats
            if np.any(dead & ~_zero(_read(floats, name, leaf), depth)):
                message = (
                    "gets no gradient, which the float model gives it: a quantizer before or "
                    "behind it gives only zeros or clips all: more bits or another range help"
                )
                yield Finding("error", site, message)
            else:
                message = (
                    "gets no gradient, without quantization either: is its output used, or scaled "
                    "by an initial 0?"
                )
                yield Finding("warning", site, message)


def _float(model, variables, args, labels, loss, kwargs):
    """The gradients of the float model's parameters."""
    rest = floats_of(variables)

    net = model.with_rules(())

    def gradient(rest, args, labels):
        def objective(params):
            given = {**rest, "params": params}
            mutable = [name for name in rest if name != "params"]
            asked = net.ask(given, args, kwargs, rngs=one_key(), mutable=mutable)
            return (loss or _default_loss)(run(net, asked, given).out, labels)

        return jax.grad(objective)(rest["params"])

    return jit_arrays(gradient, rest, args, labels, **compile_quickly())


def _layer(site):
    return site.rpartition("/")[0]


def _zero(gradient, depth):
    """Whether a gradient is all zeros, for each layer of a scan of the given depth."""
    gradient = np.asarray(gradient)
    return np.all(gradient == 0, axis=tuple(range(depth, gradient.ndim)))


def _read(tree, path, leaf):
    return read_site(tree, site_name(path, leaf), None)
