"""The columns that need bitjax: what its parts say of one model, each a function of its case."""

import io
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bitjax as bj
from benchmarks.zoo.case import Case, pure
from benchmarks.zoo.macs import Product, total

Columns = dict[str, Any]
TOOLS = ("attach", "site_costs", "summary", "doctor")
QUICKLY = {"xla_backend_optimization_level": 0}  # compilation dominates a program that runs once


def rules() -> list[bj.Rule]:
    """Every site at 4 learned bits."""
    return [bj.rule(".*", bj.bitlength(init=4.0))]


def wrap(case: Case, rules: Any) -> Any:
    """The model under rules; of NNX, the function of its parameters is not asked for here."""
    if case.framework == "linen":
        return bj.Quantized(case.model, rules, case.axes[0] if case.axes else None)
    if case.framework == "function":
        return bj.Function(case.model, rules)
    return bj.quantize(case.model, rules, *case.args)


def ready(case: Case, rules: Any) -> tuple[Callable[..., Any], Any, Any, list[jax.Array]]:
    """`apply(params, quant, arrays) -> out` of the quantized model, and its arguments."""
    model = wrap(case, rules)
    if case.framework == "nnx":
        return _nnx(case, model)
    if case.framework == "function":
        state = model.init(case.variables, *case.args, **case.kwargs)

        def call(variables, *args, **kwargs):
            params, state = variables
            return model.apply(params, state, *args, **kwargs)[0]

        apply, params, arrays = pure(case._replace(model=call))
        del params
        rest = {name: tree for name, tree in state.items() if name != "quant"}
        return (
            lambda params, quant, arrays: apply((params, {**rest, "quant": quant}), arrays),
            case.variables, state.get("quant", {}), arrays,
        )  # fmt: skip
    return _linen(case, model)


def _linen(case, model):
    floats = {name: tree for name, tree in case.variables.items() if name != "params"}
    new = ("quant", "quant_stats")

    def run(variables, mutable, arrays):
        # The case's own call with the wrapped model, so that keys, methods and axes are its own.
        changed = case._replace(
            model=_Returning(model, new if mutable else ()), variables=variables,
            mutable=(*case.mutable, *(new if mutable else ())),
        )  # fmt: skip
        apply, params, _ = pure(changed)
        return apply(params, arrays)

    _, params, arrays = pure(case)
    made = jax.jit(lambda p, a: run({**floats, "params": p}, True, a), compiler_options=QUICKLY)(
        params, arrays
    )
    made = jax.tree.map(lambda x: x[(0,) * len(case.axes)], made)
    stats = {"quant_stats": made["quant_stats"]} if "quant_stats" in made else {}

    def apply(params, quant, arrays):
        own = {"quant": quant} if quant else {}
        return run({**floats, **stats, **own, "params": params}, False, arrays)

    return apply, params, made.get("quant", {}), arrays


class _Returning:
    """A Linen model whose `apply` returns some of the changed collections as its output."""

    def __init__(self, model, names):
        self.model, self.names = model, names

    def apply(self, *args, **kwargs):
        out = self.model.apply(*args, **kwargs)
        if not self.names:
            return out
        changed = {name: out[1][name] for name in self.names if name in out[1]}
        return changed, out[1]


def _nnx(case, model):
    from flax import nnx

    apply, params, arrays = pure(case._replace(model=model))
    state = nnx.state(model)
    raise NotImplementedError(f"the quantizers' part of {type(state).__name__}")


def floats(case: Case, found: list[Product]) -> Columns:
    """Whether the model without rules is the float model: its parameters' tree, its output."""
    del found
    call, params, arrays = pure(case)
    want = jax.jit(call, compiler_options=QUICKLY)(params, arrays)
    apply, own, quant, arrays = ready(case, ())
    out = jax.jit(apply, compiler_options=QUICKLY)(own, quant, arrays)
    same = jax.tree.structure(want) == jax.tree.structure(out) and all(
        x.dtype == y.dtype and np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        for x, y in zip(map(np.asarray, _raw(want)), map(np.asarray, _raw(out)), strict=True)
    )
    return {"params kept": _kept(case, params), "float equal": "yes" if same else "no"}


def _raw(tree):
    """Leaves with keys as numbers."""
    keys = jax.dtypes.prng_key
    return [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, keys) else x
        for x in jax.tree.leaves(tree)
    ]


def _kept(case, params):
    if case.framework != "linen" or case.axes:
        return "yes"  # the parameters are the caller's own
    keys = {"params": jax.random.key(1), **case.rngs}
    model = wrap(case, rules())
    made = jax.eval_shape(
        lambda keys, args: model.init(keys, *case.args, method=case.method, **case.kwargs), keys, 0
    )
    form = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (made["params"], params)]
    # A method may use, and so make, a part of the parameters.
    return "yes" if form[0] == form[1] or (case.method and _part(form[0], form[1])) else "no"


def _part(some, whole):
    if not isinstance(some, Mapping) or not isinstance(whole, Mapping):
        return some == whole
    return all(name in whole and _part(sub, whole[name]) for name, sub in some.items())


def attached(case: Case, found: list[Product]) -> Columns:
    """Whether `attach`, `site_costs` and `summary` take the model."""
    del found
    model, variables, first, more = _tool_arguments(case)

    def attach():
        made.append(bj.attach(model, variables, *case.args, **more))

    def summary():
        return bj.summary(model, made[0], *first, *case.args, file=io.StringIO(), **more)

    made: list[Any] = []
    return {
        "attach": _ok(attach),
        "site_costs": _ok(lambda: bj.site_costs(model, *first, *case.args, **more)),
        "summary": _ok(summary) if made else "no variables",
    }


def checked(case: Case, found: list[Product]) -> Columns:
    """Whether `doctor` takes the model, and what it finds."""
    del found
    model, variables, _, more = _tool_arguments(case)
    findings: list[Any] = []

    def doctor():
        made = bj.attach(model, variables, *case.args, **more)
        findings.extend(bj.doctor(model, made, case.args, **more))

    return {"doctor": _ok(doctor), "findings": [str(finding) for finding in findings]}


def _tool_arguments(case):
    """The model, its variables, what comes before its arguments, its keywords."""
    more = dict(case.kwargs) | ({"method": case.method} if case.method else {})
    if case.framework == "function":
        return wrap(case, rules()), {"params": case.variables}, (case.variables,), more
    return wrap(case, rules()), case.variables, (), more


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


def sites(case: Case, found: list[Product]) -> Columns:
    """The number of sites and the share of MACs that they reach."""
    args = (case.variables, *case.args) if case.framework == "function" else case.args
    more = {"method": case.method} if case.method else {}
    costs = bj.site_costs(wrap(case, ()), *args, **case.kwargs, **more)
    return {"sites": len(costs), "reached": bj.macs(costs) * case.examples / total(found)}


def gradients(case: Case, found: list[Product]) -> Columns:
    """Sites whose bits get no gradient though the float parameters of their layer get one."""
    del found
    call, params, arrays = pure(case)
    wanted = jax.jit(
        jax.grad(lambda p: loss(call(p, arrays)), allow_int=True), compiler_options=QUICKLY
    )(params)
    alive = {
        "/".join(_names(path)): bool(jnp.any(g != 0))
        for path, g in jax.tree_util.tree_leaves_with_path(wanted)
        if jnp.issubdtype(g.dtype, jnp.floating)
    }
    apply, params, quant, arrays = ready(case, rules())
    step = jax.grad(lambda q: loss(apply(params, q, arrays)))
    bits = bj.bits_of(jax.jit(step, compiler_options=QUICKLY)(quant))
    lost, dead, nan = [], [], []
    for name, gradient in bits.items():
        gradient = np.asarray(gradient)
        layer = name.rpartition("/")[0]
        if not np.isfinite(gradient).all():
            nan.append(name)
        elif not gradient.all():
            own = [a for path, a in alive.items() if path == layer or path.startswith(f"{layer}/")]
            (dead if own and not any(own) else lost).append(name)
    return {
        "no gradient": len(lost) + len(nan), "quantized": len(bits), "dead": dead, "zero": lost,
        "nan": nan,
    }  # fmt: skip


def _names(path):
    return [
        str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))))
        for k in path
        if getattr(k, "name", "") != "value" or not isinstance(k, jax.tree_util.GetAttrKey)
    ]


def loss(out: Any) -> jax.Array:
    """A random weighting of every float output; a sum of squares is constant behind a norm."""
    rng = np.random.default_rng(7)
    floats = [x for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum(
        jnp.sum(x.astype(jnp.float32) * rng.normal(size=x.shape).astype(np.float32)) for x in floats
    )


def outcome(row: Mapping[str, Any]) -> str:
    """One line: works, or the first error."""
    for part in ("float", "attached", "gradients", "floats", "sites", "checked"):
        if f"{part} error" in row:
            return f"{part}: {row[f'{part} error']}"
    broken = [f"{name}: {row[name]}" for name in TOOLS if row.get(name, "ok") != "ok"]
    if row.get("float equal") == "no" or row.get("params kept") == "no":
        broken.append("not the float model without rules")
    return broken[0] if broken else f"works, {row.get('reached', 0):.1%} reached"
