"""A read program: its sites and products, and how it runs with a state that replaces tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from bitjax.program.body import Body
from bitjax.program.calls import together
from bitjax.program.carried import Flat
from bitjax.program.run import run_body
from bitjax.program.state import State
from bitjax.program.values import Product, Site, Unread
from bitjax.rules import quantizer_of


class Program(NamedTuple):
    """A traced function as its operations, its products and their sites."""

    body: Body
    sites: Mapping[str, Site]  # in forward order, a kernel before the input of its layer
    products: tuple[Product, ...]
    unread: tuple[Unread, ...]  # work that no site reaches
    calls: Mapping[str, int]  # how often each site's quantizer is used in a run
    sources: Mapping[str, str]  # by site, the first site that reads the same tensor

    def run(self, leaves: Sequence[Any], state: State) -> list[jax.Array]:
        """The function's flat results for these flat arguments; `state` replaces its sites."""
        return run_body(self.body, leaves, state)

    @property
    def parameters(self) -> dict[str, str]:
        """By kernel's site the path of its parameter: of several, the largest, which names it."""
        found = {}
        for body in self.body.all():
            for op in body.ops:
                operands = op.product.operands.values() if op.product is not None else ()
                for number, site in (pair for o in operands for pair in o.origins.items()):
                    if site.role == "kernel":
                        leaf = max(body.kinds[number].leaves, key=lambda leaf: leaf.size)
                        found.setdefault(site.name, leaf.path)
        return found

    @property
    def idle(self) -> tuple[str, ...]:
        """The paths of parameters that no site holds."""
        held = {
            leaf.path
            for body in self.body.all()
            for op in body.ops
            for operand in (op.product.operands.values() if op.product is not None else ())
            for number in operand.origins
            for leaf in body.kinds[number].leaves
        }
        paths = (leaf.path for i in self.body.ins for leaf in self.body.kinds[i].leaves)
        return tuple(path for path in paths if path not in held)

    @property
    def macs(self) -> int:
        """Multiply-adds of all products, of all examples together."""
        return self.reached + sum(part.macs for part in self.unread)

    @property
    def reached(self) -> int:
        """Multiply-adds of the products that have sites."""
        return sum(product.macs * product.times for product in self.products)


def run_with(program: Program, leaves: Sequence[Any], state: State) -> list[jax.Array]:
    """A run of a whole batch; the state then holds what it left."""
    state.begin()
    out = program.run(leaves, state)
    state.finish()
    return out


def run_creating(
    program: Program, leaves: Sequence[Any], make: Callable[..., State], quant: Flat, stats: Flat
) -> tuple[list[jax.Array], State]:
    """A run that makes missing variables, from `make(quant=, stats=)`, and the state behind it."""
    state = make(quant=quant, stats=stats)
    out = run_with(program, leaves, state)
    if not state.inputs:
        return out, state
    # A site that several calls read starts from all of them. What is behind it is made again.
    quant, stats = dict(quant), dict(stats)
    for name, calls in state.inputs.items():
        quant[name], own = _fit(state.rules, program.sites[name], calls)
        if own or name in state.stats:
            stats[name] = own
    state = make(quant=quant, stats=stats)
    return run_with(program, leaves, state), state


def _fit(rules, site, calls):
    quantizer = quantizer_of(rules, site.name)
    assert quantizer is not None

    def init(calls):
        return quantizer.init(together(site, calls), site.axes)

    for _ in site.steps:
        init = jax.vmap(init)
    return init(calls)
