"""Runs a program again: the same operations, with the operands of products replaced."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jcore

from bitjax.program.body import Body, Op
from bitjax.program.control import REMAT, scan_counts
from bitjax.program.integers import product_of_integers, whole
from bitjax.program.state import State
from bitjax.program.values import Operand

Values = dict[int, Any]
EXACT = ("dot_general", "conv_general_dilated")
CASTS = ("convert_element_type", "reduce_precision")


def run_body(body: Body, arguments: Sequence[Any], state: State) -> list[Any]:
    """The results of a body; `state` replaces tensors and keeps what it learns of them."""
    values: Values = {**body.fixed, **dict(zip(body.ins, arguments, strict=True))}
    replaced: dict[tuple[int, str], Any] = {}  # a tensor that two products read is replaced once
    for op in body.ops:
        given = [values[i] for i in op.ins]
        if op.product is not None:
            results = _product(op, given, values, replaced, state)
        else:
            results = _control(op, given, state) if op.bodies else op(given)
        values.update(zip(op.outs, results, strict=True))
        for number in op.outs:
            for source in body.outputs.get(number, ()):
                state.output(source, values[number])
            if number in body.leaving:
                state.leaving(body.leaving[number], values[number])
    return [values[i] for i in body.outs]


def _product(op: Op, given: list[Any], values: Values, replaced: dict, state: State) -> list[Any]:
    """A product of operands with quantized sites; the moves behind a site are made anew."""
    product = op.product
    assert product is not None
    read, uses = list(given), {}
    for position, operand in product.operands.items():
        local: Values = {}
        for number, site in operand.origins.items():
            key = number, site.name
            if key not in replaced:
                replaced[key] = state.tensor(site, values[number])
            local[number], uses[position] = replaced[key]
        read[position] = _moved(op, operand, position, local, values)
    state.product(op, read, uses)
    for position, operand in product.held.items():  # quantized where it entered the cache
        ((number, site),) = operand.origins.items()
        uses[position] = replaced.get((number, site.name), (None, None))[1]
    if not state.mode.train and op.name in EXACT and all(uses.get(i) for i in (0, 1)):
        operands = {**product.operands, **product.held}
        left, right = (_whole(op, operands[i], i, uses[i], values) for i in (0, 1))
        if left is not None and right is not None:
            return [product_of_integers(op, read, left, right)]
    return op(read)


def _moved(
    op: Op, operand: Operand, position: int, local: Values, values: Values, *, casts: bool = True
) -> Any:
    """What a product reads at a position, of replaced origins; in float32 without its casts."""
    local = dict(local)
    for move in operand.moves:
        given = [local.get(i, values.get(i)) for i in move.ins]
        if not casts:
            given = [x.astype(jnp.float32) if _is_float(x) else x for x in map(jnp.asarray, given)]
        moved = given[:1] if move.name in CASTS and not casts else move(given)
        local.update(zip(move.outs, moved, strict=True))
    return local[op.ins[position]]


def _is_float(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def _whole(op, operand, position, use, values):
    """An operand as integers, or None."""

    def moved(x):
        return _moved(op, operand, position, dict.fromkeys(operand.origins, x), values, casts=False)

    return whole(operand, moved, use.quantizer, use.params, use.stats, use.x)


def _control(op: Op, given: list[Any], state: State) -> list[Any]:
    if op.name in REMAT:
        return _remat(op, given, state)
    if op.name == "scan":
        return _scan(op, given, state)
    if op.name == "cond":
        return _cond(op, given, state)
    return _while(op, given, state)


def _remat(op, given, state):
    params = op.eqn.params

    def body(given, carried):
        own = state.enter(carried)
        return run_body(op.bodies[0], given, own), own.leave(op.inner)

    body = jax.checkpoint(body, policy=params["policy"], prevent_cse=params["prevent_cse"])
    results, left = body(given, state.take(op.inner))
    state.put(left)
    return results


def _scan(op, given, state):
    constants, carries = scan_counts(op.eqn)
    fixed, carry, stacked = (
        given[:constants], given[constants : constants + carries], given[constants + carries :]
    )  # fmt: skip
    each, shared = state.parted(op)
    length, outside = op.eqn.params["length"], state.take(shared)

    def body(carry, x):
        (carry, before), (index, x, slices) = carry, x
        inner = state.enter(outside.joined(before).joined(slices), fold=index)
        results = run_body(op.bodies[0], [*fixed, *carry, *x], inner)
        left = inner.leave(op.inner)
        return (results[:carries], left.only(before)), (results[carries:], left.without(outside))

    (carry, after), (results, left) = lax.scan(
        body,
        (carry, state.changing(outside)),
        (None if state.key is None else jnp.arange(length), stacked, state.take(each)),
        length=length,
        reverse=op.eqn.params["reverse"],
        unroll=op.eqn.params["unroll"],
    )
    state.put(after)
    state.put_steps(left, op)
    return [*carry, *results]


def _cond(op, given, state):
    index, *given = given
    if state.creating:  # every branch makes its variables
        for body in op.bodies:
            run_body(body, given, state)

    def branch(body):
        def run(given, carried):
            own = state.enter(carried, looping=True)
            return run_body(body, given, own), own.leave(op.inner)

        return run

    results, left = lax.switch(index, [branch(b) for b in op.bodies], given, state.take(op.inner))
    state.put(left)
    return results


def _while(op, given, state):
    params = op.eqn.params
    tests, constants = params["cond_nconsts"], params["body_nconsts"]
    of_test, fixed, carry = (
        given[:tests], given[tests : tests + constants], given[tests + constants :]
    )  # fmt: skip
    if state.creating:  # a loop that makes variables must run once
        run_body(op.bodies[0], [*fixed, *carry], state)
    test, outside = jcore.jaxpr_as_fun(params["cond_jaxpr"]), state.take(op.inner)
    outside = outside._replace(inputs={n: state.inputs[n] for n in op.inner if n in state.inputs})

    def body(carry):
        carry, before = carry
        own = state.enter(outside.joined(before), looping=True)
        results = run_body(op.bodies[0], [*fixed, *carry], own)
        return results, own.leave(op.inner).only(before)

    carry, left = lax.while_loop(
        lambda carry: test(*of_test, *carry[0])[0], body, (carry, state.changing(outside))
    )
    state.put(left)
    return carry
