"""The columns that need bitjax: what its parts say of one model, each a function of its case."""

import io
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bitjax as bj
from benchmarks.zoo.case import Case, pure
from benchmarks.zoo.macs import Product, total
from bitjax.frameworks.probe import probe
from bitjax.frameworks.shapes import program_of
from bitjax.variables import floats_of, write_site

Columns = dict[str, Any]
TOOLS = ("attach", "site_costs", "summary", "doctor")
QUICKLY = {"xla_backend_optimization_level": 0}  # compilation dominates a program that runs once


def rules() -> list[bj.Rule]:
    """Every site at 4 learned bits."""
    return [bj.rule(".*", bj.bitlength(init=4.0))]


def for_tools(case: Case, rules: Any) -> tuple[Any, Any]:
    """The model under rules as bitjax's tools take it, and its float variables."""
    if case.framework == "linen":
        return bj.Quantized(case.model, rules, case.axes[0] if case.axes else None), case.variables
    if case.framework == "function":
        return bj.Function(case.model, rules, case.neutral), {"params": case.variables}
    function, variables = bj.quantize(case.model).functional()
    return function.with_rules(rules), variables


def arguments(case: Case) -> tuple[tuple, dict[str, Any]]:
    """A call by a tool: outside of mapped axes, with the method among the keywords."""
    more = dict(case.kwargs) | ({"method": case.method} if case.method else {})
    return case.outside or case.args, more


class Trial:
    """A case that is tried: its model under rules and with quantizers is made once."""

    def __init__(self, case: Case, found: list[Product]):
        self.case, self.found = case, found

    @cached_property
    def attached(self) -> tuple[Any, Any]:
        """The model under rules, and its variables with those of the quantizers."""
        model, variables = for_tools(self.case, rules())
        args, more = arguments(self.case)
        return model, bj.attach(model, variables, *args, **more)


def applied(case: Case, rules: Any) -> Callable[[Any, list[jax.Array]], Any]:
    """`apply(variables, arrays)` of the model under rules, called as its framework calls it."""
    if case.framework == "linen":
        model, _ = for_tools(case, rules)

        def apply(variables, arrays):
            call, params, _ = pure(case._replace(model=model, variables=variables))
            return call(params, arrays)

        return apply
    call = _nnx(case, rules) if case.framework == "nnx" else _function(case, rules)
    plain = case._replace(framework="function", model=call, neutral=())
    return lambda variables, arrays: pure(plain._replace(variables=variables))[0](variables, arrays)


def _function(case, rules):
    model, _ = for_tools(case, rules)

    def call(variables, *args, **kwargs):
        state = {name: tree for name, tree in variables.items() if name != "params"}
        return model.apply(variables["params"], state, *args, **kwargs)[0]

    return call


def _nnx(case, rules):
    from flax import nnx

    graph, state = nnx.split(bj.quantize(case.model, rules, *case.args))

    def call(variables, *args, **kwargs):
        model = nnx.merge(graph, state, copy=True)
        model.update(variables)
        return model(*args, **kwargs)

    return call


def sites(trial: Trial) -> Columns:
    """The number of sites, the share of MACs that they reach, and what they do not reach."""
    case, whole = trial.case, total(trial.found)
    model, variables = for_tools(case, ())
    args, more = arguments(case)
    program, batch = program_of(model, args, more, variables)
    times = case.examples / batch  # outside of mapped axes a batch is smaller
    unread: dict[str, int] = {}
    for part in program.unread:
        unread[part.why] = unread.get(part.why, 0) + part.macs
    rest = [f"{macs / program.macs:.2%} {why}" for why, macs in unread.items()]
    return {
        "sites": len(program.sites),
        "reached": program.reached * times / whole,
        "not reached": ", ".join(rest),
        "counted alike": "yes" if program.macs * times == whole else "no",
        "names": list(program.sites),
    }


def floats(trial: Trial) -> Columns:
    """Whether the model without rules is the float model: its parameters' tree, its output."""
    case = trial.case
    model, own = _float(case)
    variables, arrays = for_tools(case, ())[1], pure(case)[2]
    want = jax.jit(model, compiler_options=QUICKLY)(own, arrays)
    out = jax.jit(applied(case, ()), compiler_options=QUICKLY)(variables, arrays)
    pairs = list(zip(map(np.asarray, _raw(want)), map(np.asarray, _raw(out)), strict=True))
    same = jax.tree.structure(want) == jax.tree.structure(out) and all(
        x.dtype == y.dtype and np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in pairs
    )
    apart = max((float(np.max(np.abs(x - y))) for x, y in pairs if x.dtype.kind == "f"), default=0)
    return {"tree kept": _kept(case), "equal to float": "yes" if same else f"within {apart:.0e}"}


def _float(case):
    """The float model as `f(variables, arrays)`, and its variables."""
    # All of them are arguments, as they are under rules: XLA folds constants in another order.
    if case.framework == "linen":
        return lambda variables, arrays: pure(case._replace(variables=variables))[0](
            variables["params"], arrays
        ), case.variables
    if case.framework == "function":
        return pure(case)[0], case.variables
    from flax import nnx

    graph, state = nnx.split(case.model)

    def call(state, *args, **kwargs):
        return nnx.merge(graph, state, copy=True)(*args, **kwargs)

    return pure(case._replace(framework="function", model=call))[0], state


def _raw(tree):
    """Leaves with keys as numbers."""
    keys = jax.dtypes.prng_key
    return [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, keys) else x
        for x in jax.tree.leaves(tree)
    ]


def _kept(case):
    """Whether the parameters' tree under rules is that of the float model."""
    if case.framework == "function":
        return "yes"  # the parameters are the caller's own
    if case.framework == "nnx":
        _, variables = bj.quantize(case.model, rules(), *case.args).functional()
        return "yes" if _form(variables) == _form(for_tools(case, ())[1]) else "no"
    args, more = arguments(case)
    model, _ = for_tools(case, rules())
    keys = {"params": jax.random.key(1), **case.rngs}
    made = jax.eval_shape(lambda keys: model.init(keys, *args, **more), keys)
    # A method may use, and so make, a part of the parameters.
    ours, theirs = _form(made)["params"], _form(case.variables)["params"]
    return "yes" if ours == theirs or (case.method and _part(ours, theirs)) else "no"


def _form(variables):
    return jax.tree.map(lambda x: (x.shape, x.dtype), floats_of(variables))


def _part(some, whole):
    if not isinstance(some, Mapping) or not isinstance(whole, Mapping):
        return some == whole
    return all(name in whole and _part(sub, whole[name]) for name, sub in some.items())


def tools(trial: Trial) -> Columns:
    """Whether `attach`, `site_costs` and `summary` take the model."""
    case = trial.case
    model, variables = for_tools(case, rules())
    args, more = arguments(case)
    first = (case.variables,) if case.framework == "function" else ()
    made: list[Any] = []
    return {
        "attach": _ok(lambda: made.append(trial.attached[1])),
        "site_costs": _ok(lambda: bj.site_costs(model, *first, *args, **more)),
        "summary": _ok(lambda: bj.summary(model, made[0], *args, file=io.StringIO(), **more)),
    }


def checked(trial: Trial) -> Columns:
    """Whether `doctor` takes the model, and what it finds."""
    args, more = arguments(trial.case)
    findings: list[Any] = []

    def doctor():
        model, made = trial.attached
        findings.extend(bj.doctor(model, made, args, **more))

    return {"doctor": _ok(doctor), "findings": [str(finding) for finding in findings]}


def _ok(run):
    try:
        run()
    except Exception as error:  # whatever it is, it is the column's text
        return one_line(error)
    return "ok"


def one_line(error: Exception) -> str:
    """The kind of an error and its first line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:300]


def gradients(trial: Trial) -> Columns:
    """Sites by what their bits' gradient is; a zero one is right where bits change nothing."""
    case, (model, variables) = trial.case, trial.attached
    apply = applied(case, rules())
    _, _, arrays = pure(case)
    others = {name: tree for name, tree in variables.items() if name != "quant"}

    def value(quant):
        return loss(apply({**others, "quant": quant}, arrays))

    step = jax.jit(jax.value_and_grad(value), compiler_options=QUICKLY)
    quant = variables["quant"]
    before, gradient = step(quant)
    exact, lost, broken = [], [], []
    errors = None
    for name, own in bj.bits_of(gradient).items():
        if not np.isfinite(own).all():
            broken.append(name)
        elif not np.asarray(own).all():
            leaf = f"{name}/bits"
            bits = bj.bits_of(quant)[name]
            tried = [step(write_site(quant, leaf, jnp.full_like(bits, n)))[0] for n in (2, 3, 6)]
            errors = _errors(case, model, variables) if errors is None else errors
            # Some step of a scan may be without a gradient, and the others not.
            same = all(x == before for x in tried) or errors.get(name, 1.0) == 0.0
            (exact if same else lost).append(name)
    return {
        "quantized": len(bj.bits_of(quant)), "exact": exact, "lost": lost, "nan": broken,
        "bits' gradients": _counted(len(bj.bits_of(quant)), exact, lost, broken),
    }  # fmt: skip


def _counted(whole, exact, lost, broken):
    parts = [(whole - len(exact) - len(lost) - len(broken), "")]
    parts += [(len(exact), " exact"), (len(lost), " zero"), (len(broken), " nan")]
    return ", ".join(f"{n}{what}" for n, what in parts if n or not what)


def _errors(case, model, variables):
    """The largest error of quantization by site; a loop's sites hand out none."""
    args, more = arguments(case)

    def watch(seen):
        sites = {operand.role: operand.site.name for operand in seen.product.operands.values()}
        return {
            sites[role]: jnp.max(jnp.abs(use.quantizer.apply(use.params, use.stats, use.x) - use.x))
            for role, use in seen.uses.items()
        }

    def run(variables):
        return [record for _, record in probe(model, variables, args, more, watch).records]

    records = jax.jit(run, compiler_options=QUICKLY)(variables)
    found: dict[str, float] = {}
    for record in records:
        for name, error in record.items():
            found[name] = max(found.get(name, 0.0), float(jnp.max(error)))
    return found


def loss(out: Any) -> jax.Array:
    """A random weighting of every float output; a sum of squares is constant behind a norm."""
    rng = np.random.default_rng(7)
    floats = [x for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum(
        jnp.sum(x.astype(jnp.float32) * rng.normal(size=x.shape).astype(np.float32)) for x in floats
    )


def outcome(row: Mapping[str, Any]) -> str:
    """One line: works, or the first thing that does not."""
    for part in ("float", "sites", "floats", "tools", "gradients", "checked"):
        if f"{part} error" in row:
            return f"{part}: {row[f'{part} error']}"
    broken = [f"{name}: {row[name]}" for name in TOOLS if row.get(name, "ok") != "ok"]
    for column in ("tree kept", "equal to float", "counted alike"):
        if row.get(column, "yes") != "yes":
            broken.append(f"{column}: {row[column]}")
    broken += [f"no gradient: {', '.join(row[k])}" for k in ("lost", "nan") if row.get(k)]
    return broken[0] if broken else f"works, {row.get('reached', 0):.2%} reached"
