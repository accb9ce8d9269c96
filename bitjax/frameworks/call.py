"""One call of a model, whatever its framework: its program, and how it runs with quantizers."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax

from bitjax.program.carried import Flat
from bitjax.program.program import Program, run_creating, run_with
from bitjax.program.state import Leaving, Mode, State, Watch
from bitjax.program.trace import Call
from bitjax.rules import Rules, check_masks, check_rules
from bitjax.variables import QUANT, STATS, nest, pick

Variables = Mapping[str, Any]


class Asked(NamedTuple):
    """A model's call before it runs."""

    call: Call  # its result is (output, changed collections of the float model)
    train: bool  # whether the call trains
    key: jax.Array | None = None  # of quantizers that draw


Given = tuple[tuple, dict[str, Any]]  # a call's arguments


class Model(Protocol):
    """A model with rules, as an adapter of its framework gives it."""

    @property
    def rules(self) -> Rules:
        """What quantizes which sites."""

    @property
    def axis_name(self) -> str | None:
        """The device axis over which statistics are merged."""

    def with_rules(self, rules: Rules, axis_name: str | None = None) -> "Model":
        """The model under other rules."""

    def ask(
        self,
        variables: Variables,
        args: tuple,
        kwargs: Mapping[str, Any],
        *,
        rngs: Any = None,
        mutable: Any = (),
        method: Any = None,
    ) -> Asked:
        """The program of a call; `mutable` are collections of the float model that may change."""

    def as_training(
        self, args: tuple, kwargs: Mapping[str, Any], method: Any = None
    ) -> Given | None:
        """The arguments of the training call; None if these are, or if there is no other call."""


class Ran(NamedTuple):
    """What a call gave."""

    out: Any
    changed: dict[str, Any]  # collections of the float model
    quant: Flat  # by site; with new variables where they were made
    stats: Flat
    # (layer, record) of every product in forward order; a scanned layer's has its steps in front
    records: list[tuple[str, Any]]
    unseen: tuple[str, ...]  # layers in loops and branches, which can hand out no record

    def collections(self, variables: Variables) -> dict[str, Any]:
        """`quant` and `quant_stats` as trees; what no site of this call has stays."""
        found = {}
        for name, flat in ((QUANT, self.quant), (STATS, self.stats)):
            if flat or variables.get(name):
                found[name] = nest(flat, variables.get(name, {}))
        return found


def run(
    model: Model,
    asked: Asked,
    variables: Variables,
    *,
    creating: bool = False,
    mutable: bool = False,
    watch: Watch | None = None,
    modules: Leaving | None = None,
    later: Asked | None = None,
) -> Ran:
    """Runs a call: `mutable` statistics are kept, and missing variables made while `creating`."""
    # `later` is another call whose sites' variables are made too.
    if creating:
        programs = [one.call.program for one in (asked, later) if one is not None]
        check_programs(model.rules, programs)
        for program in programs:
            check_masks(model.rules, program.sites.values())
    ran = _run(model, asked, variables, creating, mutable, watch, modules)
    return ran if later is None else _joined(model, ran, asked, later, variables)


def _run(model, asked, variables, creating, mutable, watch=None, modules=None) -> Ran:
    program = asked.call.program
    # New variables start from this batch, so there is no moving average to update.
    moving = not creating or asked.train
    mode = Mode(asked.train, creating, mutable, moving, model.axis_name)
    quant, stats = (pick(variables.get(name, {}), program.sites) for name in (QUANT, STATS))
    make = partial(
        State, model.rules, program.sites, program.calls, mode,
        key=asked.key, watch=watch, modules=modules,
    )  # fmt: skip
    if creating:
        flat, state = run_creating(program, asked.call.leaves, make, quant, stats)
    else:
        state = make(quant=quant, stats=stats)
        flat = run_with(program, asked.call.leaves, state)
    out, changed = asked.call.result(flat)
    records = [(state.names[i], state.records[i]) for i in sorted(state.records)]
    unseen = tuple(dict.fromkeys(state.unseen))
    return Ran(out, changed, state.quant, state.stats, records, unseen)


def _joined(model, ran, asked, later, variables):
    """What a call gave, with the variables of the sites that only a later one has."""
    # As an evaluation, so that these ranges start like all others and no statistics move.
    given = {**variables, **ran.collections(variables)}
    other = _run(model, later._replace(train=False), given, True, True)
    sites = asked.call.program.sites
    quant, stats = (
        {**flat, **{name: leaves for name, leaves in more.items() if name not in sites}}
        for flat, more in ((ran.quant, other.quant), (ran.stats, other.stats))
    )
    return ran._replace(quant=quant, stats=stats)


def check_programs(rules: Rules, programs: Sequence[Program]) -> None:
    """A ValueError where a rule decides for no site of any of a model's calls."""
    sites = dict.fromkeys(site for program in programs for site in program.sites)
    unread = [part for program in programs for part in program.unread]
    idle = [path for path in programs[0].idle if all(path in one.idle for one in programs)]
    check_rules(rules, sites, unread, idle)
