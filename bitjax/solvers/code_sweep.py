r"""Cyclic coordinate descent on codes from a Gram matrix: blocks of inputs, all filters at once.

Step (b) of Two-Step Quantization (Wang et al., CVPR 2018). `code_descent.py` is the front door.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bitjax.solvers.code_rules import (
    Fitted,
    Problem,
    alive,
    dot,
    gain_of,
    measured,
    scale_of,
    visit_block,
)


class Descent(NamedTuple):
    """The end of a descent."""

    codes: Fitted  # the last codes, with s and c computed anew
    # mean of s^2 / c over filters after each sweep, NaN after the last; [max_sweeps]
    gain_S: jax.Array
    sweeps: jax.Array  # int []
    converged: jax.Array  # whether the last sweep changed no code; bool []


def from_scratch(problem: Problem, w_NxM: jax.Array, precision: Any) -> Fitted:
    """Codes with s and w^T A w computed anew: one product of the size of a sweep's."""
    product_NxM = dot(problem.gram_NxN, w_NxM, precision) + problem.ridge * w_NxM
    return measured(problem, w_NxM, (w_NxM * product_NxM).sum(0))


def sweep_until_settled(
    problem: Problem, codes: Fitted, one_sweep: Callable, max_sweeps: int
) -> Descent:
    """Calls `one_sweep(codes, scale_M) -> (codes, changed)` until nothing changes."""

    def step(carry):
        codes, gain_S, sweeps, _ = carry
        codes, changed = one_sweep(codes, scale_of(codes.s_M, codes.c_M, problem.floor))
        gain = gain_of(codes.s_M, codes.c_M, problem.floor).mean()
        return codes, gain_S.at[sweeps].set(gain), sweeps + 1, changed

    def goes_on(carry):
        _, _, sweeps, changed = carry
        return changed & (sweeps < max_sweeps)

    gain_S = jnp.full(max_sweeps, jnp.nan, codes.s_M.dtype)
    carry = codes, gain_S, jnp.array(0), jnp.array(True)
    codes, gain_S, sweeps, changed = lax.while_loop(goes_on, step, carry)
    return Descent(codes, gain_S, sweeps, ~changed)


@partial(jax.jit, static_argnames=("joint", "block", "max_sweeps", "precision"))
def descend(
    problem: Problem, w_NxM: jax.Array, *, joint: bool, block: int, max_sweeps: int, precision: Any
) -> Descent:
    """Sweeps over the inputs in order, in blocks, until no code changes."""
    # A block costs one product, A_J w, made anew and never carried. Inside the block every change
    # is taken into account, so the codes are those of visiting inputs one by one. s and c are
    # carried, which adds one rounding for each code that changes. With `joint` the scale moves with
    # every code, (b'); without, after every sweep, (b).
    N = len(w_NxM)
    block = min(block, N)

    def one_block(b, carry):
        codes, scale_M, changed = carry
        # The last block begins early enough to be whole; inputs it shares are not visited again.
        start = jnp.minimum(b * block, N - block)
        rows_BxN = lax.dynamic_slice_in_dim(problem.gram_NxN, start, block)
        square_BxB = lax.dynamic_slice_in_dim(rows_BxN, start, block, axis=1)
        g_BxM = dot(rows_BxN, codes.w_NxM, precision)
        place, how = (start, b * block - start), (joint, precision)
        codes, d_BxM = visit_block(problem, codes, scale_M, *place, square_BxB, g_BxM, *how)
        return codes, scale_M, changed | (d_BxM != 0).any()

    def one_sweep(codes, scale_M):
        carry = codes, scale_M, jnp.array(False)
        codes, _, changed = lax.fori_loop(0, -(-N // block), one_block, carry)
        return codes, changed

    start = from_scratch(problem, alive(problem, w_NxM), precision)
    found = sweep_until_settled(problem, start, one_sweep, max_sweeps)
    return found._replace(codes=from_scratch(problem, found.codes.w_NxM, precision))
