r"""Rounds filters to codes one input after the other, each error spread over the inputs still open.

GPTQ: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023, arXiv 2210.17323.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from bitjax.checks import ARRAY, NONE, SWITCH, checked, either, integer, number
from bitjax.solvers.base import Solution
from bitjax.solvers.checks import MASK, checked_pruned, checked_rounding

_LEAST = 1e-7  # damping that makes any Gram matrix definite in float64


@checked(
    gram_NxN=ARRAY,
    filters_MxN=ARRAY,
    grid_G=ARRAY,
    scale_M=ARRAY,
    damping=number(0),
    act_order=SWITCH,
    pruned_MxN=either(NONE, MASK),
    block=integer(1),
)
def gptq_codes(
    gram_NxN: ArrayLike,
    filters_MxN: ArrayLike,
    grid_G: ArrayLike,
    scale_M: ArrayLike,
    *,
    damping: float = 0.01,
    act_order: bool = True,
    pruned_MxN: ArrayLike | None = None,
    block: int = 64,
) -> Solution:
    r"""Codes c with a small $(w - a c)^T A (w - a c)$ at given scales a, by one pass over inputs.

    With $A^{-1} = U^T U$, U upper triangular, input j takes the code nearest to $w_j / a$, and the
    others behind it move by $-(w_j - a c_j) / U_{jj} \cdot U_j$: what is best for them now.

    One Cholesky factorisation serves all filters. Time: that of a sweep of `fit_codes`.

    Args:
        gram_NxN: A, the second moments of the inputs.
        filters_MxN: w, the filters to round.
        grid_G: codes in rising order.
        scale_M: a, at least 0; a filter whose scale is 0 has the code nearest to 0.
        damping: what is added to A's diagonal, as a share of its mean.
        act_order: whether inputs are rounded by falling variance; otherwise in order.
        pruned_MxN: bool, the codes that stay 0, which must be in the grid; none by default. What
            such an input has taken over from others moves on, as in SparseGPT.
        block: number of inputs after which the others are moved; the codes do not depend on it.

    Returns:
        `value`: codes [M, N], as float64. `objective`: the error above without the damping, [M].
            `stats`: `order`, the inputs as they were rounded.

    Raises:
        ValueError: shapes do not fit, or a number is not finite.

    Example:
        The second input varies as the first one does, and makes up for its rounding.

        >>> gram = np.array([[1.0, 0.9], [0.9, 1.0]])
        >>> gptq_codes(gram, [[0.4, 0.4]], [-1, 0, 1], [1.0]).value.tolist()
        [[0.0, 1.0]]

    Source: the paper's algorithm 1, whose program dampens by 0.01 and can order inputs so.
    """
    gram, filters, grid, scale = checked_rounding(gram_NxN, filters_MxN, grid_G, scale_M, 1)
    M, N = filters.shape
    pruned = checked_pruned(pruned_MxN, (M, N), grid)
    variance = np.diagonal(gram)
    order = np.argsort(-variance, kind="stable") if act_order else np.arange(N)
    damped = gram[np.ix_(order, order)]
    damped = damped + max(damping, _LEAST) * (variance.mean() or 1.0) * np.eye(N)
    # Of A^-1 = U^T U, U is the inverse of A's own factor from behind.
    flipped = np.linalg.cholesky(damped[::-1, ::-1])
    upper = np.linalg.inv(flipped)[::-1, ::-1]
    codes = np.empty((M, N))
    stays = None if pruned is None else pruned[:, order].T
    codes[:, order] = np.asarray(
        _rounded(upper, filters[:, order].T, grid, scale, stays, block=min(block, N))
    ).T
    error = filters - scale[:, None] * codes
    return Solution(codes, ((error @ gram) * error).sum(1), {"order": order})


@partial(jax.jit, static_argnames=("block",))
def _rounded(upper_NxN, w_NxM, grid_G, scale_M, pruned_NxM, *, block):
    # Padded by inputs of their own, which nothing moves; filters last, so that vectors over them
    # are contiguous.
    N, M = w_NxM.shape
    extra = -N % block
    w_NxM = jnp.pad(w_NxM, ((0, extra), (0, 0)))
    if pruned_NxM is not None:
        pruned_NxM = jnp.pad(pruned_NxM, ((0, extra), (0, 0)))
    upper_NxN = jnp.pad(upper_NxN, ((0, extra), (0, extra)))
    pad = jnp.arange(N + extra) >= N
    upper_NxN += jnp.diag(pad.astype(upper_NxN.dtype))
    rate_M = jnp.where(scale_M > 0, 1 / jnp.where(scale_M > 0, scale_M, 1), 0)
    edges = (grid_G[1:] + grid_G[:-1]) / 2

    def nearest(v_M):
        return grid_G[(v_M[:, None] > edges).sum(1)]

    def one_block(b, carry):
        w_NxM, codes_NxM = carry
        start = b * block
        rows_BxN = lax.dynamic_slice_in_dim(upper_NxN, start, block)
        square_BxB = lax.dynamic_slice_in_dim(rows_BxN, start, block, axis=1)

        def one_input(j, carry):
            w_BxM, codes_BxM, error_BxM = carry
            code_M = nearest(w_BxM[j] * rate_M)
            if pruned_NxM is not None:
                code_M = jnp.where(pruned_NxM[start + j], 0, code_M)
            error_M = (w_BxM[j] - scale_M * code_M) / square_BxB[j, j]
            w_BxM -= square_BxB[j][:, None] * error_M
            return w_BxM, codes_BxM.at[j].set(code_M), error_BxM.at[j].set(error_M)

        w_BxM = lax.dynamic_slice_in_dim(w_NxM, start, block)
        none = jnp.zeros_like(w_BxM)
        _, codes_BxM, error_BxM = lax.fori_loop(0, block, one_input, (w_BxM, none, none))
        # Rows in front have no part in U's rows here; those of the block are done.
        w_NxM -= jnp.dot(rows_BxN.T, error_BxM, precision=lax.Precision.HIGHEST)
        return w_NxM, lax.dynamic_update_slice_in_dim(codes_NxM, codes_BxM, start, 0)

    carry = w_NxM, jnp.zeros_like(w_NxM)
    _, codes_NxM = lax.fori_loop(0, (N + extra) // block, one_block, carry)
    return codes_NxM[:N]
