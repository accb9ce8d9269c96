r"""Chooses one code, and a block of codes in order: the step that all descents share.

Step (b) of Two-Step Quantization (Wang et al., CVPR 2018), and a form of it that moves the scale
with every code. Arrays have filters last: vectors over filters are then contiguous.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Problem(NamedTuple):
    """The input of a descent; filters last, so that vectors over filters are contiguous."""

    gram_NxN: Any  # A without the ridge, one copy for all filters; None where patches serve
    ridge: jax.Array  # mu, added to A's diagonal and to `cross_NxM`; []
    cross_NxM: jax.Array  # q, with the ridge's pull; 0 at dead inputs
    dead_N: jax.Array  # inputs that never vary, bool
    grid_G: jax.Array  # codes by rising magnitude, so that the first of equals is the smallest
    symmetric: jax.Array  # whether -v is in the grid for every v; bool []
    floor: jax.Array  # w^T A w below this is rounding; []
    pruned_NxM: jax.Array | None = None  # codes that stay 0, bool; None: none


def problem_of(
    gram_NxN, cross_MxN, grid_G, ridge, pull_MxN, square_N=None, pruned_MxN=None
) -> Problem:
    """The problem with its ridge, from A (or its diagonal, where patches serve), q and w_f."""
    by_magnitude = np.lexsort((-grid_G, np.abs(grid_G)))
    symmetric = (grid_G == -grid_G[::-1]).all()
    problem = _problem_of(
        gram_NxN, square_N, cross_MxN, grid_G[by_magnitude], symmetric, float(ridge), pull_MxN
    )
    return problem if pruned_MxN is None else problem._replace(pruned_NxM=pruned_MxN.T)


@jax.jit
def _problem_of(gram_NxN, square_N, cross_MxN, grid_G, symmetric, ridge, pull_MxN):
    if square_N is None:
        square_N = jnp.diagonal(gram_NxN)
    # Variances of centred statistics are differences: a constant input's is rounding, not 0.
    floor = 4 * jnp.finfo(square_N.dtype).eps * square_N.max()
    dead_N = square_N <= floor
    mu = ridge * square_N.mean()
    cross_NxM = jnp.where(dead_N, 0, cross_MxN + mu * pull_MxN).T
    return Problem(gram_NxN, mu, cross_NxM, dead_N, grid_G, symmetric, floor)


class Fitted(NamedTuple):
    """Codes and the two numbers per filter that the closed-form scale needs."""

    w_NxM: jax.Array  # the codes
    s_M: jax.Array  # q^T w
    c_M: jax.Array  # w^T A w


def dot(x, y, precision=lax.Precision.HIGHEST):
    """A matrix product at full precision: TF32 would break ties and monotonicity."""
    return jnp.dot(x, y, precision=precision)


def alive(problem: Problem, w_NxM: jax.Array) -> jax.Array:
    """Codes to start from: the smallest at inputs that never vary, 0 where they are pruned."""
    w_NxM = jnp.where(problem.dead_N[:, None], problem.grid_G[0], w_NxM)
    return w_NxM if problem.pruned_NxM is None else jnp.where(problem.pruned_NxM, 0, w_NxM)


def measured(problem: Problem, w_NxM: jax.Array, c_M: jax.Array) -> Fitted:
    """Recomputes s and flips the sign of filters with negative correlation to the target."""
    s_M = (w_NxM * problem.cross_NxM).sum(0)
    flip_M = jnp.where(problem.symmetric & (s_M < 0), -1, 1).astype(w_NxM.dtype)
    return Fitted(w_NxM * flip_M, s_M * flip_M, c_M)


def scale_of(s_M, c_M, floor):
    """Equation (a): q^T w / w^T A w; 0 if the codes do not correlate with the target."""
    useful_M = (s_M > 0) & (c_M > floor)
    return jnp.where(useful_M, s_M / jnp.where(useful_M, c_M, 1), 0)


def gain_of(s_M, c_M, floor):
    """The energy that the codes at their best scale explain: s^2 / c."""
    return scale_of(s_M, c_M, floor) * s_M


def _nearest_code(problem, scale_M, w_M, q_M, g_M, square):
    """Equation (b): the code of least error at a fixed scale; of two equals, the smaller."""
    # |u - v| with u = (q_j - a r_j) / (a A_jj), compared without the division: a dead input and a
    # scale of 0 make all codes equal, and the smallest is taken. r_j = g_j - A_jj w_j is the
    # product without this input.
    wanted_M = q_M - scale_M * (g_M - square * w_M)
    unit_M = scale_M * square
    best_M = jnp.full_like(w_M, problem.grid_G[0])
    least_M = jnp.abs(wanted_M - unit_M * best_M)
    for v in problem.grid_G[1:]:
        error_M = jnp.abs(wanted_M - unit_M * v)
        best_M = jnp.where(error_M < least_M, v, best_M)
        least_M = jnp.minimum(error_M, least_M)
    return best_M


def _best_code(problem, s_M, c_M, w_M, q_M, g_M, square):
    """Equation (b'): the code of most gain, every code at its own best scale."""
    # With d = v - w_j, s' = s + d q_j and c' = c + 2 d g_j + d^2 A_jj, the gain s'^2 / c' rises by
    # d c (2 a (q_j - a g_j) + d (q_j^2 / c - a^2 A_jj)) / c'. One code of thousands changes the
    # gain by less than float32 resolves, hence the difference. It must exceed rounding.
    eps = jnp.finfo(w_M.dtype).eps
    scale_M = scale_of(s_M, c_M, problem.floor)
    useful_M = scale_M > 0
    slope_M = 2 * scale_M * (q_M - scale_M * g_M)
    bend_M = q_M * q_M / jnp.where(useful_M, c_M, 1) - scale_M * scale_M * square
    # Fractions are compared crosswise: XLA on the CPU repeats all the work before a division.
    best_M, top_M, bottom_M = w_M, eps * scale_M * s_M, jnp.ones_like(w_M)
    for v in problem.grid_G:
        d_M = v - w_M
        cross_M, own_M = 2 * d_M * g_M, d_M * d_M * square
        s_new, c_new = s_M + d_M * q_M, c_M + cross_M + own_M
        # With a singular Gram matrix, c' can be the rounding of its own terms.
        least_M = jnp.maximum(problem.floor, 16 * eps * (c_M + jnp.abs(cross_M) + own_M))
        rise_M = jnp.where(useful_M, d_M * c_M * (slope_M + d_M * bend_M), s_new * s_new)
        better_M = (s_new > 0) & (c_new > least_M) & (rise_M * bottom_M > top_M * c_new)
        best_M = jnp.where(better_M, v, best_M)
        top_M = jnp.where(better_M, rise_M, top_M)
        bottom_M = jnp.where(better_M, c_new, bottom_M)
    return best_M


def visit_block(
    problem: Problem, codes: Fitted, scale_M, start, first, square_BxB, g_BxM, joint, precision
):
    """Chooses the codes of the block at `start` input by input: all codes, and the changes."""
    # `square_BxB` is the block's own part of A, `g_BxM` its part of A w at the old codes, both
    # without the ridge; s and c are those of all inputs. Inputs before `first` stay. Only the
    # changes d are written, and an input reads its row of A w as g_j + A_jJ d. Updating products
    # after every change took three times as long.
    block = len(g_BxM)
    old_BxM, q_BxM = (
        lax.dynamic_slice_in_dim(a, start, block) for a in (codes.w_NxM, problem.cross_NxM)
    )
    pruned_BxM = None
    if problem.pruned_NxM is not None:
        pruned_BxM = lax.dynamic_slice_in_dim(problem.pruned_NxM, start, block)
    square_BxB += problem.ridge * jnp.eye(block, dtype=square_BxB.dtype)
    g_BxM += problem.ridge * old_BxM

    def one_input(j, carry):
        d_BxM, g_M, s_M, c_M = carry
        # The change of the input before; 0 before the first.
        d_M = d_BxM[j - 1]
        s_M += d_M * q_BxM[j - 1]
        c_M += d_M * (2 * g_M + d_M * square_BxB[j - 1, j - 1])
        w_M, q_M, square = old_BxM[j], q_BxM[j], square_BxB[j, j]
        g_M = g_BxM[j] + dot(square_BxB[j], d_BxM, precision)
        if joint:
            new_M = _best_code(problem, s_M, c_M, w_M, q_M, g_M, square)
        else:
            new_M = _nearest_code(problem, scale_M, w_M, q_M, g_M, square)
        if pruned_BxM is not None:
            new_M = jnp.where(pruned_BxM[j], w_M, new_M)
        return lax.dynamic_update_index_in_dim(d_BxM, new_M - w_M, j, 0), g_M, s_M, c_M

    carry = (jnp.zeros_like(g_BxM), jnp.zeros_like(g_BxM[0]), codes.s_M, codes.c_M)
    d_BxM, g_M, s_M, c_M = lax.fori_loop(first, block, one_input, carry)
    s_M += d_BxM[-1] * q_BxM[-1]
    c_M += d_BxM[-1] * (2 * g_M + d_BxM[-1] * square_BxB[-1, -1])
    w_NxM = lax.dynamic_update_slice_in_dim(codes.w_NxM, old_BxM + d_BxM, start, 0)
    return Fitted(w_NxM, s_M, c_M), d_BxM
