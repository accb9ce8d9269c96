"""Marks of arrays that enter a cache, and what products read of it.

`jax.ad_checkpoint.checkpoint_name(k, "key_cache")` marks an array, and so does every name that ends
in `_cache`. What is marked is quantized there, once: what is in the cache already stays as it is,
and products read it through moves and updates as they find it.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from bitjax.program.body import Body, Op
from bitjax.program.labels import MOVES, TAKES
from bitjax.program.values import Kind, Operand, Site, Step
from bitjax.quantizers.base import Axes

ROLE = "cache"
_ENDING = "_cache"
# Operations behind which the elements of a cache still are: it is updated, masked or cut.
_KEEPS = MOVES | TAKES | {"dynamic_update_slice", "scatter", "select_n"}


def mark_of(body: Body, op: Op) -> str:
    """The name of a mark on an array of floats; empty of any other operation."""
    name = op.eqn.params["name"] if op.name == "name" else ""
    if not name.endswith(_ENDING) or body.kinds[op.ins[0]].what != "data":
        return ""
    return name if jnp.issubdtype(body.avals[op.ins[0]].dtype, jnp.floating) else ""


def marked_site(body: Body, op: Op, name: str, steps: tuple[Step, ...]) -> Site:
    """The site of a mark on `[examples, tokens, ...]`: what is behind them are its channels."""
    aval = body.avals[op.ins[0]]
    first = min(2, max(0, aval.ndim - 1))
    example = 0 if first else None
    axes = Axes(tuple(range(first - aval.ndim, 0)) or (-1,), -1, example)
    return Site(name, name, ROLE, tuple(aval.shape), aval.dtype, axes, steps)


def kept_in(op: Op, kinds: Sequence[Kind]) -> str:
    """The site of the cache whose elements an operation hands on; empty without."""
    return next((k.cache for k in kinds if k.cache), "") if op.name in _KEEPS else ""


def held_of(body: Body, op: Op, position: int, role: str, site: Site) -> Operand:
    """What a product reads of a cache: with its moves, if nothing else is behind the mark."""
    target = number = op.ins[position]
    size, moves = body.avals[target].size, []
    while (maker := body.makers.get(number)) is not None and maker.name in MOVES:
        if len(maker.ins) != 1:
            break
        moves.append(maker)
        number = maker.ins[0]
        if maker.product is not None:
            return Operand(role, {number: site}, tuple(moves[::-1]), size)
    return Operand(role, {target: site}, (), size)
