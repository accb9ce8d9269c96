"""Runs one batch forward and backward and finds what would spoil a run."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.checks import ARRAY, FUNCTION, NONE, checked, either
from bitjax.diagnostics.vitals import Vitals, hand_out, site_vitals
from bitjax.frameworks.arguments import check_inputs
from bitjax.frameworks.call import Asked, Model, check_programs, run
from bitjax.frameworks.finite import finite_flags, first_nonfinite, is_finite
from bitjax.frameworks.later import later_call
from bitjax.frameworks.models import compile_quickly, jit_arrays, unboxed
from bitjax.frameworks.probe import ask_outside, probe
from bitjax.frameworks.shapes import one_key
from bitjax.program.naming import path_of
from bitjax.program.state import Seen
from bitjax.program.values import Site
from bitjax.quantizers.grid import widen
from bitjax.rules import quantizer_of
from bitjax.variables import QUANT, STATS, VARIABLES, as_args, floats_of, read_site, site_name

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


@checked(variables=VARIABLES, labels=either(NONE, ARRAY), loss=either(NONE, FUNCTION))
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
      model: a Linen module or a function of parameters, wrapped or not.
      variables: all collections of the model; those of a function are `{"params": its parameters}`
        and what quantizers learned and observed.
      batch: an array or a dict, or a tuple of the model's arguments.
      labels: `[N]` integers, for cross entropy; without them the loss is the mean squared output.
      loss: `(output, labels) -> scalar`, in place of these losses.
      **kwargs: keyword arguments of the model; with `train=True` the ranges are the batch's own.

    Returns:
      The findings: rules first, then sites in forward order; empty if nothing is wrong.

    Example:
      >>> import flax.linen as nn
      >>> import bitjax as bj
      >>> x = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
      >>> model = bj.Quantized(nn.Dense(2), [bj.rule("kernel", bj.uniform(bits=4))])
      >>> doctor(model, model.init(jax.random.key(0), x), x)
      ()
    """
    check_inputs("batch", batch)
    args, variables = as_args(batch), unboxed(variables)
    net, asked = ask_outside(model, variables, args, kwargs)
    program = asked.call.program
    net, idle = _rules(net, asked, later_call(net, asked, variables, args, kwargs, one_key()))
    objective = loss or _default_loss
    seen = _run(net, variables, args, kwargs, labels, objective)
    if not seen.finite:
        site = first_nonfinite(net, variables, *args, **kwargs)
        message = "holds NaN or inf: clean the data, lower the learning rate, or load other weights"
        if site is None:
            site, message = "loss", "is NaN or inf though the model is not: look at the labels"
        return (*idle, Finding("error", site, message))
    found = [
        Finding("warning", name, "is not examined: it runs in a loop or a branch")
        for name in seen.unseen
    ]
    for site, figures in site_vitals(seen.uses, net.rules, seen.train).items():
        found += [*_values(site, figures, variables), *_pruned(site, figures)]
        quantizer = quantizer_of(net.rules, site)
        if quantizer is not None and (bounds := quantizer.traits.learns_bits):
            depth = len(program.sites[site].steps)
            found += _bits(site, bounds, variables, seen.gradients, depth)
    # A kernel of zeros has been reported, with its cause.
    dead = {f.site for f in found if f.level == "error" and "all zeros" in f.message}
    kernels = {site: path for site, path in program.parameters.items() if site not in dead}
    found += _gradients(
        kernels, program.sites, seen.gradients,
        lambda: _float(net, variables, args, kwargs, labels, objective),
    )  # fmt: skip
    order = {site.layer: i for i, site in enumerate(program.sites.values())}
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


class _Ran(NamedTuple):
    """What the batch showed, forward and backward."""

    uses: list[tuple[str, Mapping[str, Any], int]]  # for `site_vitals`
    gradients: Mapping[str, Any]
    finite: bool  # tensors, output and loss
    unseen: tuple[str, ...]
    train: bool


def _run(net, variables, args, kwargs, labels, objective) -> _Ran:
    names: list[str] = []
    unseen: list[str] = []
    training: list[bool] = []

    def look(seen: Seen):
        training.extend(use.train for use in seen.uses.values())
        return {"finite": finite_flags(seen), "uses": hand_out(seen)}

    def run(variables, args, kwargs, labels):
        def value_of(trained):
            seen = probe(net, {**variables, **trained}, args, kwargs, look)
            names[:] = [name for name, _ in seen.records]
            unseen[:] = seen.unseen
            value = objective(seen.out, labels)
            return value, ([record for _, record in seen.records], is_finite([seen.out, value]))

        trained = {name: variables[name] for name in ("params", QUANT) if name in variables}
        gradients, (records, finite) = jax.grad(value_of, has_aux=True)(trained)
        return records, gradients, finite

    records, gradients, finite = jit_arrays(
        run, variables, args, kwargs, labels, **compile_quickly()
    )
    flags = [flag for record in records for flag in record["finite"].values()]
    uses = [
        (name, record["uses"], record["finite"]["output"].ndim)
        for name, record in zip(names, records, strict=True)
    ]
    whole = bool(finite) and all(map(np.all, flags))
    return _Ran(uses, gradients, whole, tuple(unseen), any(training))


def _rules(net: Model, asked: Asked, later: Asked | None) -> tuple[Model, list[Finding]]:
    """The model with the rules that do something, and a finding for each of the others."""
    found: list[Finding] = []
    programs = [one.call.program for one in (asked, later) if one is not None]
    rules = list(net.rules)
    while rules:
        try:
            check_programs(rules, programs)
            break
        except ValueError as error:
            text = str(error)
            idle = next(r for r in rules if text.startswith(f"rule {r.pattern!r} "))
            message = text.removeprefix(f"rule {idle.pattern!r} ")
            found.append(Finding("error", idle.pattern, f"the rule {message}"))
            rules = [r for r in rules if r is not idle]
    return net.with_rules(rules), found


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
    if role != "kernel" and count is not None and np.any(np.asarray(count) == 0):
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
    if role != "kernel" and np.any(seen.half_used):
        yield warning("never is below 0, yet half of its codes are: use signed=False")


def _pruned(site, seen: Vitals) -> Iterator[Finding]:
    """Zeros that carry meaning, in a kernel or in masked attention, and do not stay zero."""
    # Where every call has an input site of its own, the second one's is `input@2`.
    role, moved = site.rpartition("/")[2].partition("@")[0], float(np.max(seen.moved))
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


def _gradients(
    kernels: Mapping[str, str],
    sites: Mapping[str, Site],
    gradients: Mapping[str, Any],
    float_gradients: Callable[[], Any],
) -> Iterator[Finding]:
    """Findings on the kernels' gradients; the float model is run only where one is zero."""
    ours, floats = _by_path(gradients["params"]), None
    for site, path in kernels.items():
        gradient = np.asarray(ours[path])
        lengths = sites[site].lengths
        # A parameter that is stacked along another axis is looked at as a whole.
        depth = len(lengths) if gradient.shape[: len(lengths)] == lengths else 0
        if not np.all(np.isfinite(gradient)):
            yield Finding("error", site, "gets a NaN or inf gradient: check the loss and the data")
        elif np.any(dead := _zero(gradient, depth)):
            floats = _by_path(float_gradients()) if floats is None else floats
            if np.any(dead & ~_zero(floats[path], depth)):
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


def _by_path(tree):
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _float(net, variables, args, kwargs, labels, objective):
    """The gradients of the float model's parameters."""
    plain, floats = net.with_rules(()), floats_of(variables)

    def gradient(floats, args, kwargs, labels):
        def value_of(params):
            given = {**floats, "params": params}
            _, asked = ask_outside(plain, given, args, kwargs)
            return objective(run(plain, asked, given).out, labels)

        return jax.grad(value_of)(floats["params"])

    return jit_arrays(gradient, floats, args, kwargs, labels, **compile_quickly())


def _layer(site):
    return site.rpartition("/")[0]


def _zero(gradient, depth):
    """Whether a gradient is all zeros, for each layer of a scan of the given depth."""
    gradient = np.asarray(gradient)
    return np.all(gradient == 0, axis=tuple(range(depth, gradient.ndim)))


def _read(tree, path, leaf):
    return read_site(tree, site_name(path, leaf), None)
