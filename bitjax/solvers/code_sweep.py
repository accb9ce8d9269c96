r"""Cyclic coordinate descent on codes from a Gram matrix: blocks of inputs, all filters at once.

Step (b) of Two-Step Quantization (Wang et al., CVPR 2018), and a form of it that moves the scale
with every code. `code_descent.py` is the front door.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Problem(NamedTuple):
    """What descent reads, filters last: vectors over filters are then contiguous.

    Attributes:
        gram_NxN: A, without the ridge; one copy serves all filters.
        ridge: mu, which A's diagonal and `cross_NxM` are taken to have on top; [].
        cross_NxM: q, with the ridge's pull; 0 at dead inputs.
        grid_G: codes by rising magnitude, so that the first of equals is the smallest.
        symmetric: whether -v is in the grid wherever v is; bool [].
        floor: w^T A w below this is rounding; [].
    """

    gram_NxN: jax.Array
    ridge: jax.Array
    cross_NxM: jax.Array
    grid_G: jax.Array
    symmetric: jax.Array
    floor: jax.Array


class Codes(NamedTuple):
    """Codes and the two numbers per filter that the closed-form scale needs.

    Attributes:
        w_NxM: the codes.
        s_M: q^T w.
        c_M: w^T A w.
    """

    w_NxM: jax.Array
    s_M: jax.Array
    c_M: jax.Array


class Descent(NamedTuple):
    """Where descent ended: the codes, the gain s^2 / c after each sweep, and how many there were.

    Attributes:
        codes: at the end, `s_M` and `c_M` computed anew.
        gain_S: mean over filters after each sweep, NaN after the last; [max_sweeps].
        sweeps: int [].
        converged: whether the last sweep changed no code; bool [].
    """

    codes: Codes
    gain_S: jax.Array
    sweeps: jax.Array
    converged: jax.Array


def dot(x, y, precision=lax.Precision.HIGHEST):
    """The matrix product that descent needs: TF32 would break ties, and with them monotonicity."""
    return jnp.dot(x, y, precision=precision)


def measured(problem: Problem, w_NxM: jax.Array, precision: Any) -> Codes:
    """Codes with s and c from scratch: two products of the size of one sweep's."""
    product_NxM = dot(problem.gram_NxN, w_NxM, precision) + problem.ridge * w_NxM
    s_M, c_M = (w_NxM * problem.cross_NxM).sum(0), (w_NxM * product_NxM).sum(0)
    flip_M = jnp.where(problem.symmetric & (s_M < 0), -1.0, 1.0).astype(w_NxM.dtype)
    return Codes(w_NxM * flip_M, s_M * flip_M, c_M)


def scale_of(s_M, c_M, floor):
    """Equation (a): q^T w / w^T A w; 0 for codes that explain nothing, or the contrary."""
    useful_M = (s_M > 0) & (c_M > floor)
    return jnp.where(useful_M, s_M / jnp.where(useful_M, c_M, 1), 0)


def gain_of(s_M, c_M, floor):
    """What the codes at their best scale take off the energy: s^2 / c."""
    return scale_of(s_M, c_M, floor) * s_M


def nearest_code(problem, scale_M, w_M, q_M, g_M, square):
    """Equation (b): the code of least error at a fixed scale; of two as good, the smaller.

    |u - v| with u = (q_j - a r_j) / (a A_jj), without the division: a dead input and a scale of 0
    make all codes equal, and the smallest is taken.
    """
    # q_j - a r_j with r_j = g_j - A_jj w_j, the product without this input.
    wanted_M = q_M - scale_M * (g_M - square * w_M)
    unit_M = scale_M * square
    best_M = jnp.full_like(w_M, problem.grid_G[0])
    least_M = jnp.abs(wanted_M - unit_M * best_M)
    for v in problem.grid_G[1:]:
        error_M = jnp.abs(wanted_M - unit_M * v)
        best_M = jnp.where(error_M < least_M, v, best_M)
        least_M = jnp.minimum(error_M, least_M)
    return best_M


def best_code(problem, s_M, c_M, w_M, q_M, g_M, square):
    """Equation (b'): the code of most gain, every code at its own best scale.

    With d = v - w_j, s' = s + d q_j and c' = c + 2 d g_j + d^2 A_jj, the gain s'^2 / c' rises by
    d c (2 a (q_j - a g_j) + d (q_j^2 / c - a^2 A_jj)) / c': one code of thousands changes the gain
    by less than float32 keeps of it, hence the difference. A change must gain more than rounding.
    """
    eps = jnp.finfo(w_M.dtype).eps
    scale_M = scale_of(s_M, c_M, problem.floor)
    useful_M = scale_M > 0
    slope_M = 2 * scale_M * (q_M - scale_M * g_M)
    bend_M = q_M * q_M / jnp.where(useful_M, c_M, 1) - scale_M * scale_M * square
    # Fractions are compared crosswise: XLA's CPU library repeats all that comes before a division.
    best_M, top_M, bottom_M = w_M, eps * scale_M * s_M, jnp.ones_like(w_M)
    for v in problem.grid_G:
        d_M = v - w_M
        cross_M, own_M = 2 * d_M * g_M, d_M * d_M * square
        s_new, c_new = s_M + d_M * q_M, c_M + cross_M + own_M
        # Of a singular Gram matrix, c' can be the rounding of its own terms.
        least_M = jnp.maximum(problem.floor, 16 * eps * (c_M + jnp.abs(cross_M) + own_M))
        rise_M = jnp.where(useful_M, d_M * c_M * (slope_M + d_M * bend_M), s_new * s_new)
        better_M = (s_new > 0) & (c_new > least_M) & (rise_M * bottom_M > top_M * c_new)
        best_M = jnp.where(better_M, v, best_M)
        top_M = jnp.where(better_M, rise_M, top_M)
        bottom_M = jnp.where(better_M, c_new, bottom_M)
    return best_M


@partial(jax.jit, static_argnames=("joint", "block", "max_sweeps", "precision"))
def descend(
    problem: Problem, w_NxM: jax.Array, *, joint: bool, block: int, max_sweeps: int, precision: Any
) -> Descent:
    """Sweeps until no code changes.

    A sweep visits inputs in order, and a block of them costs one product, A_J w. Inside, every
    change is added to the block's rows of it: the codes are those of visiting inputs one by one.
    Products are made anew in each block, never carried; s and c are carried, which adds one
    rounding for each code that changes.

    Args:
        problem: the statistics.
        w_NxM: codes to start from.
        joint: move the scale with every code, (b'); else after every sweep, (b).
        block: inputs to a block.
        max_sweeps: sweeps end then at the latest.
        precision: of matrix products.
    """
    N, M = w_NxM.shape
    block = min(block, N)
    blocks = -(-N // block)

    def one_block(b, carry):
        codes, scale_M, changed = carry
        # The last block begins early enough to be whole; what it shares is not visited again.
        start = jnp.minimum(b * block, N - block)
        rows_BxN = lax.dynamic_slice_in_dim(problem.gram_NxN, start, block)
        square_BxB = lax.dynamic_slice_in_dim(rows_BxN, start, block, axis=1)
        square_BxB += problem.ridge * jnp.eye(block, dtype=square_BxB.dtype)
        old_BxM = lax.dynamic_slice_in_dim(codes.w_NxM, start, block)
        q_BxM = lax.dynamic_slice_in_dim(problem.cross_NxM, start, block)
        g_BxM = dot(rows_BxN, codes.w_NxM, precision) + problem.ridge * old_BxM

        def one_input(j, carry):
            d_BxM, g_M, s_M, c_M = carry
            # What the input before changed; 0 before the first.
            d_M = d_BxM[j - 1]
            s_M += d_M * q_BxM[j - 1]
            c_M += d_M * (2 * g_M + d_M * square_BxB[j - 1, j - 1])
            w_M, q_M, square = old_BxM[j], q_BxM[j], square_BxB[j, j]
            g_M = g_BxM[j] + dot(square_BxB[j], d_BxM, precision)
            if joint:
                new_M = best_code(problem, s_M, c_M, w_M, q_M, g_M, square)
            else:
                new_M = nearest_code(problem, scale_M, w_M, q_M, g_M, square)
            return lax.dynamic_update_index_in_dim(d_BxM, new_M - w_M, j, 0), g_M, s_M, c_M

        carry = (jnp.zeros_like(old_BxM), jnp.zeros_like(codes.s_M), codes.s_M, codes.c_M)
        d_BxM, g_M, s_M, c_M = lax.fori_loop(b * block - start, block, one_input, carry)
        s_M += d_BxM[-1] * q_BxM[-1]
        c_M += d_BxM[-1] * (2 * g_M + d_BxM[-1] * square_BxB[-1, -1])
        w_NxM = lax.dynamic_update_slice_in_dim(codes.w_NxM, old_BxM + d_BxM, start, 0)
        return Codes(w_NxM, s_M, c_M), scale_M, changed | (d_BxM != 0).any()

    def one_sweep(carry):
        codes, gain_S, sweeps, _ = carry
        scale_M = scale_of(codes.s_M, codes.c_M, problem.floor)
        codes, _, changed = lax.fori_loop(0, blocks, one_block, (codes, scale_M, jnp.array(False)))
        gain = gain_of(codes.s_M, codes.c_M, problem.floor).mean()
        return codes, gain_S.at[sweeps].set(gain), sweeps + 1, changed

    def goes_on(carry):
        _, _, sweeps, changed = carry
        return changed & (sweeps < max_sweeps)

    gain_S = jnp.full(max_sweeps, jnp.nan, w_NxM.dtype)
    carry = measured(problem, w_NxM, precision), gain_S, jnp.array(0), jnp.array(True)
    codes, gain_S, sweeps, changed = lax.while_loop(goes_on, one_sweep, carry)
    return Descent(measured(problem, codes.w_NxM, precision), gain_S, sweeps, ~changed)
