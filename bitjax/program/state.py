"""The quantizers of a running program: replaces tensors, and keeps what it learns of them."""

import zlib
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from bitjax.program.calls import Pending, flat_steps, merge, nothing, updated, wider
from bitjax.program.carried import Carried, Flat
from bitjax.program.values import Product, Site
from bitjax.quantizers.base import Params, Quantizer, Stats, reduce_batch
from bitjax.quantizers.ste import scale_gradient
from bitjax.rules import Rules, quantizer_of
from bitjax.variables import QUANT, STATS


class Use(NamedTuple):
    """One use of a quantizer: its arguments."""

    quantizer: Quantizer
    params: Params  # its leaves in `quant`
    stats: Stats  # its leaves in `quant_stats`, as it quantized with them
    x: jax.Array  # the tensor before quantization
    train: bool  # whether the call trains


class Seen(NamedTuple):
    """One product as it was computed."""

    product: Product
    tensors: Mapping[str, jax.Array]  # by role, as the product read them
    uses: Mapping[str, Use]  # by role, where the site is quantized
    out: Any  # what the layer gave

    def site(self, role: str) -> str:
        """The site's name of a role."""
        return next(o.site.name for o in self.product.operands.values() if o.role == role)

    def raw(self, role: str) -> jax.Array:
        """The tensor of a role before quantization."""
        return self.uses[role].x if role in self.uses else self.tensors[role]


class Watch(Protocol):
    """Looks at products while a program runs."""

    def __call__(self, seen: Seen) -> Any:
        """A tree of arrays to record of a product, or None."""


class Leaving(Protocol):
    """Looks at the arrays that leave a module without products while a program runs."""

    def __call__(self, scope: str, out: Any) -> Any:
        """A tree of arrays to record of a module, or None."""


class Mode(NamedTuple):
    """How a program runs; static."""

    train: bool = False  # whether batches' own statistics quantize
    creating: bool = False  # whether missing variables are made
    mutable: bool = False  # whether statistics are kept
    moving: bool = True  # whether kept statistics of inputs move with this batch
    axis_name: str | None = None  # the device axis over which statistics are merged

    @property
    def moves(self) -> bool:
        """Whether this batch moves the statistics of inputs."""
        return self.mutable and self.moving


class State:
    """Variables by site; a body of control flow takes a part of them, and leaves what changed."""

    def __init__(
        self,
        rules: Rules,
        sites: Mapping[str, Site],
        calls: Mapping[str, int],
        mode: Mode,
        *,
        quant: Flat | None = None,
        stats: Flat | None = None,
        key: jax.Array | None = None,
        watch: Watch | None = None,
        modules: Leaving | None = None,
    ):
        self.rules, self.sites, self.calls, self.mode = rules, sites, calls, mode
        self.quant, self.stats = dict(quant or {}), dict(stats or {})
        self.key, self.watch, self.modules = key, watch, modules
        self.given = frozenset(self.quant)
        self.pending: dict[str, Pending] = {}
        self.inputs: dict[str, list[jax.Array]] = {}
        self.records: dict[int, Any] = {}
        self.names: list[str] = []  # layers of the records, by number; shared with the bodies
        self.unseen: list[str] = []  # layers that could hand out no record; shared as well
        self.looping = False
        self._waiting: dict[int, Any] = {}
        self._draws: dict[str, int] = {}

    @property
    def creating(self) -> bool:
        """Whether missing variables are made here."""
        return self.mode.creating and not self.looping

    # ---- bodies of control flow -----------------------------------------------------------------

    def begin(self) -> None:
        """Starts a batch for sites whose quantizer is used several times in it."""
        for name, site in self.sites.items():
            quantizer = self._several(name)
            if quantizer is not None and name in self.quant and name in self.stats:
                start = _by_steps(site, partial(nothing, quantizer, site=site))
                self.pending[name] = start(self.quant[name], self.stats[name])

    def finish(self) -> None:
        """Ends a batch: the statistics move once, by what all calls measured."""
        for name, pending in self.pending.items():
            quantizer = quantizer_of(self.rules, name)
            assert quantizer is not None
            if self.mode.moves:
                move = _by_steps(self.sites[name], partial(updated, quantizer))
                self.stats[name] = move(self.stats[name], pending)

    def parted(self, op: Any) -> tuple[list[str], list[str]]:
        """The sites inside a scan of which every step has its own, and those that steps share."""
        each = [n for n in op.inner if any(s.scan == id(op) for s in self.sites[n].steps)]
        return each, [n for n in op.inner if n not in each]

    def take(self, names: Iterable[str]) -> Carried:
        """The variables of these sites."""
        names = list(names)

        def those(tree):
            return {name: tree[name] for name in names if name in tree}

        return Carried(those(self.quant), those(self.stats), those(self.pending))

    def changing(self, carried: Carried) -> Carried:
        """Of these variables, what a batch changes."""
        stats = carried.stats if self.mode.mutable else {}
        return Carried(stats=stats, pending=carried.pending, inputs=carried.inputs)

    def enter(self, carried: Carried, *, looping: bool = False, fold: Any = None) -> "State":
        """The state of a body that takes these variables."""
        key = self.key if self.key is None or fold is None else jax.random.fold_in(self.key, fold)
        inner = State(
            self.rules, self.sites, self.calls, self.mode,
            quant=carried.quant, stats=carried.stats, key=key,
            watch=self.watch, modules=self.modules,
        )  # fmt: skip
        inner.given, inner.names, inner.unseen = self.given, self.names, self.unseen
        inner.pending, inner.looping = dict(carried.pending), looping or self.looping
        inner.inputs = dict(carried.inputs)
        return inner

    def leave(self, names: Iterable[str]) -> Carried:
        """What changed of these sites."""
        quant, stats, pending, *_ = self.take(names)
        made = quant if self.creating else {}
        kept = stats if self.mode.mutable or self.creating else {}
        return Carried(made, kept, pending, self.records, self.inputs)

    def put(self, left: Carried) -> None:
        """Takes over what a body left."""
        self.quant.update(left.quant)
        self.stats.update(left.stats)
        self.pending.update(left.pending)
        self.records.update(left.records)
        for name, calls in left.inputs.items():
            self.inputs.setdefault(name, []).extend(calls)

    def put_steps(self, left: Carried, op: Any) -> None:
        """Takes over what each step of a scan left, with an axis of steps in front."""
        each, _ = self.parted(op)
        first = -1 if op.eqn.params["reverse"] else 0

        def own(tree):
            return {
                name: leaves if name in each else jax.tree.map(lambda leaf: leaf[first], leaves)
                for name, leaves in tree.items()
            }

        inside = {id(one) for body in op.bodies for deep in body.all() for one in deep.ops}

        def flat(name, calls):
            site = self.sites[name]
            inner = sum(step.scan in inside for step in site.steps)
            return [flat_steps(site, x, inner) for x in calls]

        inputs = {n: x if n in each else flat(n, x) for n, x in left.inputs.items()}
        pending = {name: x for name, x in left.pending.items() if name in each}
        self.put(Carried(own(left.quant), own(left.stats), pending, left.records, inputs))

    # ---- tensors and products -------------------------------------------------------------------

    def tensor(self, site: Site, x: jax.Array) -> tuple[jax.Array, Use | None]:
        """The tensor as its quantizer gives it, and how; itself where the rules leave it float."""
        quantizer = quantizer_of(self.rules, site.name)
        if quantizer is None:
            return x, None
        with jax.named_scope("quantize"):
            return self._quantize(quantizer, site, x)

    def product(self, op: Any, read: list[Any], uses: Mapping[int, Use | None]) -> None:
        """Notes what a product reads, for the watch."""
        if self.watch is not None:
            operands = op.product.operands
            tensors = {operand.role: read[i] for i, operand in operands.items()}
            by_role = {operands[i].role: use for i, use in uses.items() if use}
            self._waiting[id(op)] = tensors, by_role

    def output(self, op: Any, out: Any) -> None:
        """Shows the watch a product with what its layer gave."""
        if self.watch is None:
            return
        tensors, uses = self._waiting.pop(id(op))
        self._record(op.product.layer, self.watch(Seen(op.product, tensors, uses, out)))

    def leaving(self, scope: str, out: Any) -> None:
        """Shows an array that leaves a module which is no product's layer."""
        if self.modules is not None:
            self._record(scope, self.modules(scope, out))

    def _record(self, name: str, record: Any) -> None:
        if record is not None and self.looping:
            self.unseen.append(name)
        elif record is not None:
            self.records[len(self.names)] = record
            self.names.append(name)

    def _quantize(
        self, quantizer: Quantizer, site: Site, x: jax.Array
    ) -> tuple[jax.Array, Use | None]:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            x = x.astype(jnp.float32)
        if site.name not in self.quant:
            self._create(quantizer, site, x)
        if self.mode.creating and self._collects(site.name):
            # Float for now: what the first call's range cuts would be missing in the next call's.
            self._collect(site.name, x)
            return x, None
        params, stats = self.quant[site.name], {}
        if quantizer.measure is not None and quantizer.update is not None:
            observe = self._kernel_range if site.role == "kernel" else self._input_range
            stats = observe(quantizer, site, params, x)
        key = self._draw(site.name) if self.mode.train else None
        use = Use(quantizer, params, stats, x, self.mode.train)
        axis, leaves = site.axes.example, quantizer.traits.normalized
        if axis is not None and leaves and x.ndim > 1:
            # The quantizer divides by the elements that it sees, LSQ by those of one example. So
            # the mean over a batch has the same gradient, however many it has and share it.
            root = x.shape[axis] ** 0.5
            params = {**params, **{leaf: scale_gradient(params[leaf], root) for leaf in leaves}}
        return quantizer.apply(params, stats, x, train=self.mode.train, key=key), use

    def _create(self, quantizer, site, x):
        if not self.creating:
            raise ValueError(missing(site.name, QUANT))
        self.quant[site.name], stats = quantizer.init(x, site.axes)
        if quantizer.measure is not None:
            self.stats[site.name] = stats

    def _collect(self, name, x):
        calls = self.inputs.get(name, [])
        if not self.looping:
            self.inputs[name] = [*calls, x]
        elif calls:  # a loop can carry the widest of its calls, not all of them
            self.inputs[name] = [wider(c, x) if c.shape == x.shape else c for c in calls]

    def _kernel_range(self, quantizer, site, params, x):
        # A kernel's range is that of the kernel itself, without history. It is stored only for
        # export and for the count of bytes.
        start = jax.eval_shape(lambda x: quantizer.init(x, site.axes)[1], x)
        start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), start)
        stats = quantizer.update(start, quantizer.measure(params, start, x))
        if self.mode.mutable:
            self.stats[site.name] = stats
        return stats

    def _input_range(self, quantizer, site, params, x):
        if site.name not in self.stats:
            raise ValueError(missing(site.name, STATS))
        stats = self.stats[site.name]
        if not (self.mode.moves or self.mode.train) or x.size == 0:
            return stats
        batch = reduce_batch(quantizer.measure(params, stats, x), self.mode.axis_name)
        if site.name in self.pending:
            self.pending[site.name] = pending = merge(self.pending[site.name], batch, x.size)
            return quantizer.update(stats, pending.batch)
        stats = quantizer.update(stats, batch)
        if self.mode.moves:
            self.stats[site.name] = stats
        return stats

    def _several(self, name: str) -> Quantizer | None:
        """The quantizer of an input that is read several times with history, else None."""
        quantizer = quantizer_of(self.rules, name)
        observes = quantizer is not None and quantizer.measure and quantizer.update
        if not observes or self.calls[name] < 2 or self.sites[name].role == "kernel":
            return None
        return quantizer if self.mode.train or self.mode.moves else None

    def _collects(self, name: str) -> bool:
        """Whether a new site waits for all of its calls."""
        several = self.calls[name] > 1 and self.sites[name].role != "kernel"
        return several and name not in self.given

    def _draw(self, name: str) -> jax.Array | None:
        """A key of the site's own, another one for each call."""
        if self.key is None:
            return None
        call = self._draws.get(name, 0)
        self._draws[name] = call + 1
        own = jax.random.fold_in(self.key, zlib.crc32(name.encode()))
        return jax.random.fold_in(own, call)


def _by_steps(site, function):
    """A function of one step's variables, for all steps that have their own."""
    for _ in site.steps:
        function = jax.vmap(function)
    return function


def missing(site: str, collection: str) -> str:
    """The message for a site whose variables were not given."""
    return (
        f"site {site!r} has no {collection!r} variables: they are made by the model's init, or "
        "beside a float checkpoint by bitjax.attach(model, variables, x), those of a training call "
        "with arguments of its own by attach(..., train=True) after it; pass all of its "
        "collections to apply."
    )
