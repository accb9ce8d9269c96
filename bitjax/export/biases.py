"""Rounds biases to what integer accumulators can add: whole multiples of a product's scale."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.checks import checked
from bitjax.export.deploy import DEPLOYED, Deployed
from bitjax.frameworks.probe import ask_outside
from bitjax.program.body import Body, Op
from bitjax.program.integers import at_output, outside_the_sum
from bitjax.program.labels import MOVES
from bitjax.program.naming import path_of
from bitjax.program.program import Program
from bitjax.program.run import CASTS, EXACT
from bitjax.program.values import Operand, Site
from bitjax.quantizers import blocks
from bitjax.quantizers.base import Quantizer
from bitjax.rules import Rules, quantizer_of
from bitjax.variables import QUANT, pick

_LARGEST = 2.0**31 - 1.0  # of an int32


@checked(deployed=DEPLOYED)
def integer_biases(deployed: Deployed, *args: Any, **kwargs: Any) -> Deployed:
    """A deployed model whose biases are whole multiples of their product's scale.

      bias <- clip(round(bias / s), -2^31 + 1, 2^31 - 1) s,   s = scale of inputs * scale of kernel

    An accumulator can then start from an int32 bias. With scales that are powers of two the sum is
    exact in float32 too, while it is below 2^24 s. A bias moves by s / 2 at most, which is little
    at 8 bits and too much at 4. Biases behind float products, and of filters whose scale is 0, stay
    as they are.

    Args:
      deployed: what `bitjax.deploy` gave.
      *args: positional arguments of the model; of a batch only the shapes count.
      **kwargs: keyword arguments of the model.

    Raises:
      ValueError: one bias is added to products of different scales.

    Example:
      >>> import bitjax as bj, flax.linen as nn
      >>> model = bj.Quantized(nn.Dense(2), [bj.rule(".*", bj.lsq(bits=8, scale="power_of_two"))])
      >>> x = jnp.array([[1.0, -2.0, 4.0]])
      >>> variables = model.init(jax.random.key(0), x)
      >>> variables["params"]["bias"] = jnp.array([0.1, -0.3])
      >>> net, fixed = integer_biases(bj.deploy(model, variables, x), x)
      >>> step = fixed["quant"]["input"]["scale"] * fixed["quant"]["kernel"]["scale"]
      >>> (fixed["params"]["bias"] / step).tolist()
      [205.0, -614.0]
    """
    model, variables = deployed
    program = ask_outside(model, variables, args, kwargs)[1].call.program
    scales = _scales(program, model.rules, pick(variables.get(QUANT, {}), program.sites))

    def rounded(path, bias):
        scale = scales.get(path_of(path))
        if scale is None or scale.shape != np.shape(bias):
            return bias
        usable = scale > 0
        step = np.where(usable, scale, 1.0).astype(np.float64)
        whole = np.clip(np.rint(np.asarray(bias, np.float64) / step), -_LARGEST, _LARGEST)
        return jnp.where(usable, jnp.asarray(whole * step, bias.dtype), bias)

    params = jax.tree_util.tree_map_with_path(rounded, variables["params"])
    return Deployed(model, {**variables, "params": params})


class _Bias(NamedTuple):
    """A bias behind a product."""

    path: str  # of its parameter
    lengths: tuple[int, ...]  # of the scans of which each step has its own
    shape: tuple[int, ...]  # of a step
    moves: tuple[Op, ...]  # from the parameter to what is added
    before: tuple[Op, ...]  # from the product's result to the sum


def _scales(program: Program, rules: Rules, quant: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """By path of a bias the scale of the product before it, entry by entry."""
    found: dict[str, np.ndarray] = {}
    for body in program.body.all():
        users = body.users()
        for op in body.ops:
            if op.product is None or op.name not in EXACT:
                continue
            operands = [op.product.operands.get(i) for i in (0, 1)]
            numbers = [_quantizer(o, rules, quant) for o in operands]
            if None in numbers:
                continue
            for bias in _biases(body, users, op):
                own = np.zeros((*bias.lengths, *bias.shape), np.float32)
                for step in np.ndindex(*bias.lengths):
                    both = [_scale(body, op, i, q, quant, step) for i, q in enumerate(numbers)]
                    own[step] = _by_entry(body, op, bias, both[0] * both[1])
                if not np.array_equal(found.setdefault(bias.path, own), own):
                    raise ValueError(
                        f"the bias {bias.path!r} is added to products of different scales, of "
                        "which it cannot be a multiple: give the calls of its layer one range."
                    )
    return found


def _quantizer(operand: Operand | None, rules: Rules, quant: Mapping[str, Any]) -> Quantizer | None:
    """What gives an operand its integers; None where a product reads levels."""
    if operand is None or operand.site.name not in quant or len(operand.origins) != 1:
        return None
    quantizer = quantizer_of(rules, operand.site.name)
    if quantizer is None or quantizer.numbers is None:
        return None
    scale = _own_scale(operand.site, quantizer, quant, (0,) * len(operand.site.lengths))
    return quantizer if outside_the_sum(operand, scale.shape) else None


def _own_scale(site: Site, quantizer: Quantizer, quant: Mapping[str, Any], step: Any) -> jax.Array:
    """The scale of a site, in a step of the scans whose steps have their own."""
    assert quantizer.numbers is not None
    leaves = quant[site.name]
    if site.lengths:
        leaves = {name: x[step] for name, x in leaves.items()}
    return quantizer.numbers(leaves, {}).scale


def _biases(body: Body, users: Mapping[int, list[Op]], op: Op) -> Iterator[_Bias]:
    """The parameters that a product's layer adds to its result."""
    assert op.product is not None
    number, before = op.outs[0], []
    while number != op.product.output:
        (reader,) = users[number]
        other = next((i for i in reader.ins if i != number), None)
        if reader.name != "add" or other is None:
            before.append(reader)
        else:
            moves: list[Op] = []
            while (maker := body.makers.get(other)) is not None and maker.name in MOVES:
                moves.insert(0, maker)
                other = maker.ins[0]
            kind, shape = body.kinds[other], body.avals[other].shape
            if other in body.ins and len(kind.leaves) == 1:
                lengths = tuple(step.length for step in kind.steps)
                yield _Bias(kind.leaves[0].path, lengths, shape, tuple(moves), tuple(before))
        number = reader.outs[0]


def _scale(body, op, position, quantizer, quant, step) -> jax.Array:
    """The scale of an operand where it broadcasts against the product's result."""
    operand = op.product.operands[position]
    site = operand.site
    scale = _own_scale(site, quantizer, quant, step)
    if scale.size == 1:
        return scale.reshape(())
    whole = jnp.broadcast_to(blocks.spread(scale, site.shape), site.shape)
    local = {**body.fixed, **dict.fromkeys(operand.origins, whole)}
    for move in operand.moves:
        _replay(move, local)
    return at_output(op, position, local[op.ins[position]])


def _by_entry(body, op, bias, scale) -> np.ndarray:
    """The scale of each entry of a bias, from that of the product's result."""
    local = {**body.fixed, op.outs[0]: scale}
    if bias.before:
        local[op.outs[0]] = jnp.broadcast_to(scale, op.eqn.outvars[0].aval.shape)
    end = op.outs[0]
    for move in bias.before:
        _replay(move, local)
        end = move.outs[0]
    entries = np.arange(int(np.prod(bias.shape)))
    added = jnp.asarray(entries.reshape(bias.shape), jnp.float32)
    for move in bias.moves:
        placed = {**body.fixed, move.ins[0]: added}
        _replay(move, placed)
        added = placed[move.outs[0]]
    entry, scales = np.broadcast_arrays(np.asarray(added), np.asarray(local[end]))
    found = np.zeros(entries.size, np.float32)
    found[entry.ravel().astype(int)] = scales.ravel()
    if not np.array_equal(found[entry.astype(int)], scales):
        found[:] = 0.0  # one entry for filters of several scales stays as it is
    return found.reshape(bias.shape)


def _replay(move: Op, local: dict[int, Any]) -> None:
    """A move on other values, without its cast."""
    given = [jnp.asarray(local[i]) for i in move.ins]
    moved = given[:1] if move.name in CASTS else move(given)
    local.update(zip(move.outs, moved, strict=True))
