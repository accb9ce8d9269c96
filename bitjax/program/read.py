"""Reads a traced function: its products, their operands as sites, and what no site reaches."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from bitjax.checks import check_one, choice
from bitjax.program.body import INLINE, Body, Frame, Op, called, parts_of
from bitjax.program.caches import ROLE, held_of, kept_in, mark_of, marked_site
from bitjax.program.control import REMAT, branches_of, macs_inside, scan_counts
from bitjax.program.labels import product_labels
from bitjax.program.macs import bodies_of, has, macs_of, multiplies, total_of
from bitjax.program.masks import masks
from bitjax.program.naming import layers_of, prefixes, scope_of
from bitjax.program.operands import (
    is_lookup,
    kernel_among,
    kernel_of,
    leaving,
    output_of,
    scope_from_kernels,
    sources_of,
    tensor_of,
)
from bitjax.program.program import Program
from bitjax.program.values import (
    DATA,
    NEUTRAL,
    NOTHING_HELD,
    UNKNOWN,
    Kind,
    Operand,
    Product,
    Site,
    Step,
    Unread,
)


def read(
    closed: Any,
    kinds: Sequence[Kind],
    *,
    root: int = 0,
    sums: bool = False,
    calls: str = "shared",
) -> Program:
    """Reads a closed jaxpr whose flat arguments are of these kinds."""
    # `root`: how many parts of every name stack say nothing, such as the class of a Linen model.
    # `sums`: whether the addends of residual sums are sites too.
    # `calls`: whether all calls of a layer have one input site, `shared`, or `each` its own.
    check_one("calls", choice("shared", "each"), calls)
    layers = layers_of(leaf for kind in kinds for leaf in kind.leaves)
    reader = _Reader(layers, root, sums, calls == "each")
    body = reader.body(closed, kinds, "", ())
    return Program(
        body,
        reader.sites,
        tuple(reader.products),
        tuple(reader.unread),
        reader.calls,
        reader.sources,
    )


class _Reader:
    """What is known of a program while it is read."""

    def __init__(self, layers: Mapping[str, str], root: int, sums: bool, each: bool):
        self.layers, self.root, self.sums, self.each = layers, root, sums, each
        self.modules = prefixes(layers)
        self.paths: dict[str, str] = {}  # of modules, by name stack
        self.sites: dict[str, Site] = {}
        self.calls: dict[str, int] = {}  # how often each site's quantizer is used in a run
        self.products: list[Product] = []
        self.unread: list[Unread] = []
        self.readers: dict[tuple[int, int], str] = {}
        self.sources: dict[str, str] = {}  # the first site that reads the same tensor
        self.counts: dict[str, int] = {}  # products of two data arrays, by scope

    def body(self, jaxpr: Any, kinds: Sequence[Kind], scope: str, around: tuple[Step, ...]) -> Body:
        """A body in the scans and loops `around` it; those that stack parameters come last."""
        inner, consts = parts_of(jaxpr)
        body = Body(kinds)
        frame = Frame(body, inner, consts, body.ins)
        self._operations(body, inner, frame, scope, around)
        body.outs = [frame.read(v) for v in inner.outvars]
        users = body.users()
        for op in body.ops:
            if op.product is not None:
                number = output_of(body, users, op)
                op.product = op.product._replace(output=number)
                body.outputs.setdefault(number, []).append(op)
                self.products.append(op.product)
        body.leaving = leaving(body, users)
        return body

    def _operations(self, body, jaxpr, frame, outer, around):
        for eqn in jaxpr.eqns:
            scope = "/".join(p for p in (outer, str(eqn.source_info.name_stack)) if p)
            ins = [frame.read(v) for v in eqn.invars]
            if eqn.primitive.name in INLINE:
                inner, consts = parts_of(called(eqn))
                own = Frame(body, inner, consts, ins)
                self._operations(body, inner, own, scope, around)
                frame.bind(eqn.outvars, [own.read(v) for v in inner.outvars])
                continue
            op = Op(eqn, ins, scope, self._module(scope))
            kinds = self._bodies(body, op, around) or [_kind(body, op)] * len(eqn.outvars)
            frame.bind(eqn.outvars, body.add(op, kinds))
            self._product(body, op, around)

    def _module(self, scope: str) -> str:
        """The path of the module in a name stack."""
        if scope not in self.paths:
            self.paths[scope] = scope_of(scope, self.root, self.modules)
        return self.paths[scope]

    # ---- control flow ---------------------------------------------------------------------------

    def _bodies(self, body, op, around):
        """Reads the bodies of an operation; the kinds of its results, None if it has no sites."""
        subs = [sub for _, sub in bodies_of(op.eqn)]
        kinds = [body.kinds[i] for i in op.ins]
        macs = macs_inside(op.eqn)
        reads = any(has(sub, ("gather",)) for sub in subs) and any(k.leaves for k in kinds)
        if not macs and not reads:
            return None
        found: list[tuple[Any, Sequence[Kind], tuple[Step, ...]]] | None
        if op.name == "scan":
            found = [self._scan(op, kinds, around)]
        elif op.name in REMAT:
            found = [(op.eqn.params["jaxpr"], kinds, around)]
        else:
            # A loop runs more than once, so its sites count as used several times.
            loop = (*around, Step(id(op), UNKNOWN)) if op.name == "while" else around
            branches = branches_of(op.eqn, kinds)
            if op.name == "while" and (tests := total_of(op.eqn.params["cond_jaxpr"].jaxpr)):
                taken = kinds[: op.eqn.params["cond_nconsts"]]
                self._leave(op, taken, "the condition of a while loop", tests, around)
            found = None if branches is None else [(sub, own, loop) for sub, own in branches]
        if found is None:
            if macs:
                self._leave(op, kinds, op.name, macs, around)
            return None
        before = dict(self.calls)
        op.bodies = tuple(self.body(sub, own, op.scope, steps) for sub, own, steps in found)
        op.inner = tuple(n for n, count in self.calls.items() if count != before.get(n))
        if op.name in REMAT:
            return [op.bodies[0].kinds[i] for i in op.bodies[0].outs]
        return [DATA] * len(op.eqn.outvars)

    def _leave(self, op, kinds, why, macs, around):
        """Notes work that no site reaches."""
        layers = dict.fromkeys(self.layers[leaf.path] for kind in kinds for leaf in kind.leaves)
        times = _times(around)
        self.unread.append(Unread(op.module, why, macs * times, tuple(layers)))

    def _scan(self, op, kinds, around):
        constants, carries = scan_counts(op.eqn)
        step = Step(id(op), op.eqn.params["length"])
        stacked = [
            kind._replace(steps=(*kind.steps, step)) if kind.leaves else kind
            for kind in kinds[constants + carries :]
        ]
        own = [*kinds[:constants], *[DATA] * carries, *stacked]
        return op.eqn.params["jaxpr"], own, (*around, step)

    # ---- products -------------------------------------------------------------------------------

    def _product(self, body, op, around):
        kinds = [body.kinds[i] for i in op.ins]
        if multiplies(op.eqn):
            self._multiply(body, op, kinds[:2], around)
        elif op.name == "gather" and is_lookup(body, op):
            labels = ["k"] + ["c"] * (body.avals[op.ins[0]].ndim - 1)
            kernel = self._kernel(body, op, 0, labels, around)
            self._found(op, "lookup", kernel.site.layer, {0: kernel}, 0, around)
            body.kinds[op.outs[0]] = DATA  # also where no data choose the rows
        elif self.sums and op.name == "add" and all(kind.what == "data" for kind in kinds):
            self._sum(body, op, around)
        elif mark := mark_of(body, op):
            self._mark(body, op, mark, around)

    def _multiply(self, body, op, kinds, around):
        macs = macs_of(op.eqn)
        why = _unreadable(body, op, kinds)
        if why:
            self._leave(op, kinds, why, macs, around)
            return
        labels = product_labels(op.eqn)
        kind = "conv" if op.name == "conv_general_dilated" else "dot"
        operands: dict[int, Operand] = {}
        k = kernel_among(kinds)
        if k is None:
            k = next((i for i in (0, 1) if kinds[i].leaves), None)
        if k is not None:
            operands[k] = self._kernel(body, op, k, labels[k], around)
            layer, steps = operands[k].site.layer, operands[k].site.steps
            roles = {1 - k: "input"}
        else:
            stem, count = self._numbered(body, op, "product")
            layer, steps = f"{stem}{count}", _stacking(body, around)
            roles = {0: "left", 1: "right"}
        held = {
            i: held_of(body, op, i, role, self.sites[kinds[i].cache])
            for i, role in roles.items()
            if kinds[i].cache
        }
        if len(held) == 2:
            self._leave(op, kinds, "caches alone", macs, around)
            return
        for i, role in roles.items():
            if i not in held:
                operands[i] = self._tensor(body, op, i, labels[i], layer, role, steps, around)
        self._found(op, kind, layer, operands, macs, around, held)

    def _sum(self, body, op, around):
        left, right = (body.avals[i] for i in op.ins)
        floats = jnp.issubdtype(left.dtype, jnp.floating)
        if left.shape != right.shape or left.ndim == 0 or not floats:
            return
        # The two terms of a gelu are functions of one array: no residual sum.
        if sources_of(body, op.ins[0]) == sources_of(body, op.ins[1]):
            return
        stem, count = self._numbered(body, op, "sum")
        layer = f"{stem}{count}"
        labels = ["k"] * (left.ndim - 1) + ["c"]
        operands = {
            i: self._tensor(body, op, i, labels, layer, role, _stacking(body, around), around)
            for i, role in ((0, "left"), (1, "right"))
        }
        self._found(op, "sum", layer, operands, 0, around)

    def _mark(self, body, op, mark, around):
        stem, count = self._numbered(body, op, mark)
        name = f"{stem}{count}" if count else stem
        site = marked_site(body, op, name, _stacking(body, around))
        size = body.avals[op.ins[0]].size
        operand = self._keep(body, Operand(ROLE, {op.ins[0]: site}, (), size), around)
        self._found(op, ROLE, name, {0: operand}, 0, around)
        body.kinds[op.outs[0]] = DATA._replace(cache=name)

    def _numbered(self, body, op, what):
        """What a place is called in its module, and how many there are before it."""
        scope = op.module
        if scope.partition("/")[0] not in self.modules:
            # Other scopes than modules, or a module without a name, which has that of its class.
            scope = scope_from_kernels(body, op) or scope
        stem = f"{scope}/{what}" if scope else what
        count = self.counts.get(stem, 0)
        self.counts[stem] = count + 1
        return stem, count

    def _found(self, op, kind, layer, operands, macs, around, held=NOTHING_HELD):
        sites = [o.site for o in operands.values() if o.role in ("kernel", ROLE)]
        if sites:
            filters = math.prod(sites[0].shape[axis] for axis in sites[0].axes.channel)
        else:
            filters = (1, *op.eqn.outvars[0].aval.shape)[-1]  # a scalar's is 1
        op.product = Product(
            kind, layer, operands, filters, macs, _times(around), op.outs[0], op.module, held
        )

    def _kernel(self, body, op, position, labels, around):
        operand = kernel_of(body, op, position, labels, self.layers)
        return self._keep(body, operand, around)

    def _tensor(self, body, op, position, labels, layer, role, steps, around):
        operand = tensor_of(body, op, position, labels, layer, role, steps)
        if self.each and role == "input":
            self.counts[layer] = call = self.counts.get(layer, 0) + 1
            ending = f"@{call}" if call > 1 else ""
            own = {i: s._replace(name=s.name + ending) for i, s in operand.origins.items()}
            operand = operand._replace(origins=own)
        return self._keep(body, operand, around)

    def _keep(self, body, operand, around):
        """The operand with the sites as the first product that read them has them."""
        origins = {}
        for number, site in operand.origins.items():
            known = self.sites.setdefault(site.name, site)
            if site.masked and not known.masked:  # an earlier product read it as it is
                self.sites[site.name] = known = known._replace(masked=True)
            origins[number] = known
            first = self.readers.setdefault((id(body), number), site.name)
            self.sources.setdefault(site.name, first)
            own = {step.scan for step in origins[number].steps}
            loops = (step.length for step in around if step.scan not in own)
            uses = math.prod(2 if length == UNKNOWN else length for length in loops)
            self.calls[site.name] = self.calls.get(site.name, 0) + uses
        return operand._replace(origins=origins)


def _kind(body, op):
    """What the results of an operation depend on."""
    kinds = [body.kinds[i] for i in op.ins]
    if any(kind.what == "data" for kind in kinds):
        return DATA._replace(cache=kept_in(op, kinds))
    if multiplies(op.eqn) and kernel_among(kinds[:2]) is not None:
        return DATA
    leaves = tuple(dict.fromkeys(leaf for kind in kinds for leaf in kind.leaves))
    if not leaves:
        return NEUTRAL
    steps: tuple[Step, ...] = max((kind.steps for kind in kinds), key=len)
    masked = any(kind.masked for kind in kinds) or masks(body, op)
    return Kind("param", leaves, steps, masked)


def _unreadable(body, op, kinds):
    """Why a product has no sites; empty if it has."""
    if "transpose(" in op.scope:
        return "derivative"  # of a function that differentiates inside: cotangents are no inputs
    whats = {kind.what for kind in kinds}
    if ("data" not in whats or "neutral" in whats) and kernel_among(kinds) is None:
        return "constant"  # parameters alone, or a fixed table such as the patches of a window
    dtypes = [body.avals[i].dtype for i in op.ins[:2]]
    if any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes):
        return "complex numbers"
    # Integers of data may meet a float kernel: they are quantized as floats.
    floats = [jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes]
    whole = any(not f and body.kinds[i].leaves for f, i in zip(floats, op.ins, strict=False))
    return "integers" if whole or not any(floats) else ""


def _times(steps):
    """How often a body runs, as far as its trace tells."""
    return math.prod(step.length for step in steps if step.length != UNKNOWN)


def _stacking(body, around):
    """The scans around a body that give its parameters' slices; its own sites are stacked too."""
    found = {step for kind in body.kinds for step in kind.steps}
    return tuple(step for step in around if step in found)
