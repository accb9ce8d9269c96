r"""Fits codes to the patches themselves, for layers with more inputs than there are patches.

The minimum and the order of visits are those of `code_descent.py` (Two-Step Quantization, Wang et
al., CVPR 2018), without a Gram matrix: the filters' outputs on all patches are carried instead.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from bitjax.checks import ARRAY, NONE, SWITCH, checked, either, integer, number
from bitjax.solvers.base import Solution
from bitjax.solvers.checks import MASK, checked_arrays, checked_grid, checked_pruned
from bitjax.solvers.code_descent import Fit
from bitjax.solvers.code_rules import (
    alive,
    dot,
    measured,
    problem_of,
    scale_of,
    visit_block,
)
from bitjax.solvers.code_sweep import sweep_until_settled

_BLOCK = 64


@checked(
    x_TxN=ARRAY,
    z_TxM=ARRAY,
    grid_G=ARRAY,
    start_MxN=ARRAY,
    intercept=SWITCH,
    ridge=number(0),
    float_MxN=either(NONE, ARRAY),
    pruned_MxN=either(NONE, MASK),
    joint=SWITCH,
    max_sweeps=integer(1),
)
def fit_codes_to_samples(
    x_TxN: ArrayLike,
    z_TxM: ArrayLike,
    grid_G: ArrayLike,
    start_MxN: ArrayLike,
    *,
    intercept: bool = True,
    ridge: float = 0.0,
    float_MxN: ArrayLike | None = None,
    pruned_MxN: ArrayLike | None = None,
    joint: bool = True,
    max_sweeps: int = 30,
) -> Solution:
    r"""`fit_codes` from T patches in place of their statistics, for T below N.

    The products u = X w of all filters are carried; an input's part of them is q_j = x_j^T z / T
    g_j = x_j^T u / T, and a change of its code by d adds d x_j. A sweep costs 3 T N M multiply-adds
    and 64 T N for the Gram matrices of blocks, where `fit_codes` needs N^2 M and all of the matrix.

    Memory, beside the arguments: a centred copy of x, and two arrays [T, M]; five of the shape of
    `start_MxN`.

    Args:
        x_TxN: patches of inputs.
        z_TxM: targets.
        grid_G: codes in rising order.
        start_MxN: codes to start from, all of them in the grid.
        intercept: whether each filter has a free intercept; otherwise it is 0, the paper's form.
        ridge: strength of the pull to float filters, as in `fit_codes`; so few patches leave much
            undetermined.
        float_MxN: the float filters, as in `fit_codes`.
        pruned_MxN: the codes that stay 0, as in `fit_codes`.
        joint: (b') or (b), as in `fit_codes`.
        max_sweeps: largest number of sweeps.

    Returns:
        `value`: `Fit`. `objective`: the mean of (z - v)^2 over patches without the ridge, [M].
            `stats`: `per_sweep`, the mean over filters with the ridge after each sweep, NaN after
            the last, [max_sweeps]; `sweeps`; `converged`; `sparsity`, [M].

    Raises:
        ValueError: shapes do not fit, a value is not finite, the grid does not rise, a start is off
            the grid, `ridge` is negative, or `max_sweeps` is less than 1.

    Example:
        >>> x = jnp.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
        >>> z, start = [[3.0], [0.0], [-3.0]], [[1, 1, 1]]
        >>> fit = fit_codes_to_samples(x, z, [-1, 0, 1], start, intercept=False).value
        >>> fit.codes_MxN.tolist(), fit.scale_M.tolist()
        ([[1.0, 0.0, -1.0]], [3.0])

    Source: `fit_codes`, with residuals in place of second moments, which is ours.
    """
    x, z = jnp.asarray(x_TxN), jnp.asarray(z_TxM)
    dtype = jnp.result_type(x, z, jnp.float32)
    if x.ndim != 2 or z.ndim != 2 or 0 in (*x.shape, *z.shape):
        raise ValueError(
            "`x_TxN` and `z_TxM` must have shapes [patches, inputs] and [patches, filters], got "
            f"{x.shape} and {z.shape}."
        )
    (T, N), M = x.shape, z.shape[1]
    given = {
        "x_TxN": (x, (T, N)),
        "z_TxM": (z, (T, M)),
        "start_MxN": (start_MxN, (M, N)),
        "float_MxN": (float_MxN, (M, N)),
    }
    x, z, start, pull = checked_arrays(given, "x_TxN", dtype)
    grid = checked_grid(grid_G, start)
    pruned = checked_pruned(pruned_MxN, (M, N), grid)

    x_mean, z_mean = x.mean(0) * intercept, z.mean(0) * intercept
    x_NxT, z_TxM = (x - x_mean).T, z - z_mean
    cross_MxN = dot(z_TxM.T, x_NxT.T) / T
    square_N = (x_NxT**2).mean(1)
    problem = problem_of(None, cross_MxN, grid, ridge, pull, square_N, pruned)
    found = _descend(problem, x_NxT, start.T, joint=joint, max_sweeps=max_sweeps)
    codes_MxN = found.codes.w_NxM.T
    scale_M = scale_of(found.codes.s_M, found.codes.c_M, problem.floor)
    objective = ((z_TxM - scale_M * dot(x_NxT.T, codes_MxN.T)) ** 2).mean(0)
    stats = {
        "per_sweep": (z_TxM**2).mean() + problem.ridge * (pull**2).sum(1).mean() - found.gain_S,
        "sweeps": int(found.sweeps),
        "converged": bool(found.converged),
        "sparsity": (codes_MxN == 0).mean(1, dtype=dtype),
    }
    fit = Fit(codes_MxN, scale_M, z_mean - scale_M * (codes_MxN @ x_mean))
    return Solution(fit, objective, stats)


@partial(jax.jit, static_argnames=("joint", "max_sweeps"))
def _descend(problem, x_NxT, w_NxM, *, joint, max_sweeps):
    N, T = x_NxT.shape
    block = min(_BLOCK, N)

    def measured_products(w_NxM):
        product_TxM = dot(x_NxT.T, w_NxM)
        energy_M = (product_TxM**2).mean(0) + problem.ridge * (w_NxM**2).sum(0)
        return product_TxM, measured(problem, w_NxM, energy_M)

    def one_block(b, carry):
        product_TxM, codes, scale_M, changed = carry
        start = jnp.minimum(b * block, N - block)
        x_BxT = lax.dynamic_slice_in_dim(x_NxT, start, block)
        square_BxB, g_BxM = dot(x_BxT, x_BxT.T) / T, dot(x_BxT, product_TxM) / T
        place, how = (start, b * block - start), (joint, lax.Precision.HIGHEST)
        codes, d_BxM = visit_block(problem, codes, scale_M, *place, square_BxB, g_BxM, *how)
        changed |= (d_BxM != 0).any()
        return product_TxM + dot(x_BxT.T, d_BxM), codes, scale_M, changed

    def one_sweep(codes, scale_M):
        # Anew in every sweep, because each block's addition to the products adds rounding.
        product_TxM, codes = measured_products(codes.w_NxM)
        carry = product_TxM, codes, scale_M, jnp.array(False)
        _, codes, _, changed = lax.fori_loop(0, -(-N // block), one_block, carry)
        return codes, changed

    start = measured_products(alive(problem, w_NxM))[1]
    found = sweep_until_settled(problem, start, one_sweep, max_sweeps)
    return found._replace(codes=measured_products(found.codes.w_NxM)[1])
