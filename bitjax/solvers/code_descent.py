r"""The codes and the scale of every filter that best give a target from the layer's inputs.

The linear step of Two-Step Quantization: Wang et al., "Two-Step Quantization for Low-bit Neural
Networks", CVPR 2018. The patches enter by their Gram matrix, which all filters share.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from bitjax.solvers.base import Solution
from bitjax.solvers.code_sweep import Codes, Problem, descend, gain_of, scale_of
from bitjax.solvers.pair_moves import improve_pairs


class Fit(NamedTuple):
    """Quantized filters: v = scale * codes @ x + intercept.

    Attributes:
        codes_MxN: from the grid, as floats.
        scale_M: at least 0, in units of the target over units of x.
        intercept_M: in units of the target.
    """

    codes_MxN: jax.Array
    scale_M: jax.Array
    intercept_M: jax.Array


def fit_codes(
    gram_NxN: ArrayLike,
    cross_MxN: ArrayLike,
    energy_M: ArrayLike,
    grid_G: ArrayLike,
    start_MxN: ArrayLike,
    *,
    mean_N: ArrayLike | None = None,
    target_mean_M: ArrayLike | None = None,
    ridge: float = 0.0,
    float_MxN: ArrayLike | None = None,
    joint: bool = True,
    pair_moves: bool = False,
    starts: int = 1,
    key: jax.Array | None = None,
    block: int = 64,
    max_sweeps: int = 30,
    precision: Any = lax.Precision.HIGHEST,
) -> Solution:
    r"""Codes from a grid and a scale >= 0 for every filter, by coordinate descent from a start.

    $$\min_{a_i \ge 0,\; w_i \in S^N} E\,(z_i - a_i w_i^T x - b_i)^2$$

    Statistics are means over patches, and centred where there is an intercept: A = E x x^T - xbar
    xbar^T, q_i = E z_i x - zbar_i xbar and E z_i^2 - zbar_i^2. For given codes the best scale is
    a = q^T w / w^T A w, which leaves the energy less (q^T w)^2 / w^T A w. Inputs are visited in
    order until no code changes. An input that never varies has the grid's smallest code.

    Memory, beside the arguments: `block` rows of the Gram matrix, and about eight arrays of the
    shape of `start_MxN`. Time: N^2 M multiply-adds a sweep, and two such products at either end.

    Args:
        gram_NxN: A, with x in any unit.
        cross_MxN: q, in the target's unit times that of x.
        energy_M: of the target.
        grid_G: codes in rising order: [-1, 0, 1] ternary, [-1, 1] binary, any other.
        start_MxN: codes to start from, all of them in the grid.
        mean_N: xbar; with `target_mean_M`, for the intercept zbar - a w^T xbar. Without them
            statistics are not centred, and the intercept is 0: the paper's form.
        target_mean_M: zbar.
        ridge: c of the pull mu |a w - w_f|^2 to float filters, with mu = c trace(A) / N. It stands
            in for patches that are missing: 0.3 never hurt.
        float_MxN: w_f, the float filters in units of the target; of zeros where not given.
        joint: (b'), every code at its own best scale; else (b), a scale for each sweep. Only the
            former leaves a start that explains nothing.
        pair_moves: then change codes by twos where that helps, at the cost that `pair_moves.py`
            states; needs `joint`.
        starts: how many; the first is `start_MxN`. The others are by turns random and half random
            half the best so far, the same for all filters. Each filter keeps its best.
        key: of the other starts.
        block: inputs to a block; the codes do not depend on it, up to rounding.
        max_sweeps: from any start.
        precision: of matrix products.

    Returns:
        `value`: `Fit`, of the arguments' float dtype. `objective`: E (z - v)^2, without the ridge,
            [M]. `stats`: `ridge objective`, with it, [M]; `per_sweep`, the mean over filters of the
            latter after each sweep from `start_MxN`, NaN after the last, [max_sweeps]; `sweeps`
            from there; `converged`, whether every start came to its end; `sparsity`, the share of
            codes that are 0, [M]; `start`, which was best, int [M]; `pair moves`, how many
            helped from all starts, int [M].

    Raises:
        ValueError: shapes do not fit, a statistic is not finite, the grid does not rise, a start
            is off the grid, or an argument is out of its range.

    Example:
        >>> codes = np.array([[1.0, 0.0, -1.0]])
        >>> gram = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> cross, energy = 3 * codes @ gram, 9 * np.array([3.0])
        >>> fit = fit_codes(gram, cross, energy, [-1, 0, 1], np.ones((1, 3))).value
        >>> fit.codes_MxN.tolist(), fit.scale_M.tolist()
        ([[1.0, 0.0, -1.0]], [3.0])

    Source: section 2.2 of our notes on the paper: (2.2a) the scale, (b) the codes. (b') and the
        ridge are ours.
    """
    gram, cross, energy, grid, start = _checked(gram_NxN, cross_MxN, energy_M, grid_G, start_MxN)
    dtype = gram.dtype
    mean, target_mean = _checked_means(mean_N, target_mean_M, cross.shape, dtype)
    pull = jnp.zeros_like(cross) if float_MxN is None else jnp.asarray(float_MxN, dtype)
    if pull.shape != cross.shape or not bool(jnp.isfinite(pull).all()):
        raise ValueError(f"`float_MxN` must be finite, of shape {cross.shape}, got {pull.shape}.")
    if not (ridge >= 0 and np.isfinite(ridge)):
        raise ValueError(f"`ridge` must be a finite number >= 0, got {ridge}.")
    for name, number in (("starts", starts), ("block", block), ("max_sweeps", max_sweeps)):
        if number < 1:
            raise ValueError(f"`{name}` must be at least 1, got {number}.")
    if pair_moves and not joint:
        raise ValueError("`pair_moves` needs `joint=True`: pairs are judged at their best scale.")
    if starts > 1 and key is None:
        raise ValueError(f"`key` must be given where `starts` is {starts}: jax.random.key(0).")

    problem, dead_N = problem_of(gram, cross, grid, ridge, pull)
    search = {"joint": joint, "block": block, "max_sweeps": max_sweeps, "precision": precision}
    smallest = problem.grid_G[0]

    def alive(w_NxM):
        return jnp.where(dead_N[:, None], smallest, w_NxM)

    def search_from(w_NxM):
        found = descend(problem, alive(w_NxM), **search)
        if not pair_moves:
            return found, found.codes, jnp.zeros(energy.shape, int)
        return found, *improve_pairs(problem, found.codes, precision=precision)

    first, best, moves_M = search_from(start.T)
    converged = first.converged
    which_M = jnp.zeros(energy.shape, int)
    for i in range(1, starts):
        key, draw = jax.random.split(key)
        w_NxM = _another_start(draw, problem.grid_G, best.w_NxM, perturb=i % 2 == 0)
        found, codes, moves = search_from(w_NxM)
        best, better_M = _better(problem.floor, best, codes)
        which_M, moves_M = jnp.where(better_M, i, which_M), moves_M + moves
        converged &= found.converged

    scale_M = scale_of(best.s_M, best.c_M, problem.floor)
    codes_MxN = best.w_NxM.T
    # The ridge's parts taken off again: q = q_plain + mu w_f, c = c_plain + mu |w|^2.
    s_M = best.s_M - problem.ridge * (codes_MxN * pull).sum(1)
    c_M = best.c_M - problem.ridge * (codes_MxN**2).sum(1)
    objective = jnp.maximum(energy - 2 * scale_M * s_M + scale_M**2 * c_M, 0)
    ridged_M = energy + problem.ridge * (pull**2).sum(1)
    stats = {
        "ridge objective": ridged_M - gain_of(best.s_M, best.c_M, problem.floor),
        "per_sweep": ridged_M.mean() - first.gain_S,
        "sweeps": int(first.sweeps),
        "converged": bool(converged),
        "sparsity": (codes_MxN == 0).mean(1),
        "start": which_M,
        "pair moves": moves_M,
    }
    intercept_M = target_mean - scale_M * (codes_MxN @ mean)
    return Solution(Fit(codes_MxN, scale_M, intercept_M), objective, stats)


def problem_of(gram_NxN, cross_MxN, grid_G, ridge, pull_MxN) -> tuple[Problem, jax.Array]:
    """The problem with its ridge, and which inputs are dead, bool [N]."""
    square_N = jnp.diagonal(gram_NxN)
    # Variances of centred statistics are differences: of a constant input rounding is left.
    floor = 4 * jnp.finfo(gram_NxN.dtype).eps * square_N.max()
    dead_N = square_N <= floor
    mu = jnp.asarray(ridge, gram_NxN.dtype) * square_N.mean()
    cross_NxM = jnp.where(dead_N, 0, cross_MxN + mu * pull_MxN).T
    by_magnitude = np.lexsort((-grid_G, np.abs(grid_G)))
    symmetric = bool((grid_G == -grid_G[::-1]).all())
    grid = jnp.asarray(grid_G[by_magnitude], gram_NxN.dtype)
    return Problem(gram_NxN, mu, cross_NxM, grid, jnp.asarray(symmetric), floor), dead_N


def _another_start(key, grid_G, best_NxM, *, perturb):
    """Codes drawn once for all filters, so that a filter's answer depends on no other filter."""
    draw, mask = jax.random.split(key)
    random_Nx1 = jax.random.choice(draw, grid_G, (best_NxM.shape[0], 1))
    if not perturb:
        return jnp.broadcast_to(random_Nx1, best_NxM.shape)
    return jnp.where(jax.random.bernoulli(mask, 0.5, random_Nx1.shape), random_Nx1, best_NxM)


def _better(floor, old: Codes, new: Codes) -> tuple[Codes, jax.Array]:
    better_M = gain_of(new.s_M, new.c_M, floor) > gain_of(old.s_M, old.c_M, floor)
    return jax.tree.map(lambda a, b: jnp.where(better_M, b, a), old, new), better_M


def _checked(gram_NxN, cross_MxN, energy_M, grid_G, start_MxN):
    """The statistics as arrays of one dtype, the grid as NumPy's."""
    given = jnp.asarray(gram_NxN), jnp.asarray(cross_MxN)
    dtype = jnp.result_type(*given, jnp.float32)
    grid = np.asarray(grid_G, dtype)
    if grid.ndim != 1 or grid.size == 0 or not (np.diff(grid) > 0).all():
        raise ValueError(f"`grid_G` must be one axis of codes in rising order, got {grid_G}.")
    named = {
        "gram_NxN": gram_NxN,
        "cross_MxN": cross_MxN,
        "energy_M": energy_M,
        "start_MxN": start_MxN,
    }
    gram, cross, energy, start = (jnp.asarray(a, dtype) for a in named.values())
    if cross.ndim != 2 or 0 in cross.shape:
        raise ValueError(f"`cross_MxN` must have shape [filters, inputs], got {cross.shape}.")
    M, N = cross.shape
    arrays = dict(zip(named, (gram, cross, energy, start), strict=True))
    wanted = {"gram_NxN": (N, N), "energy_M": (M,), "start_MxN": (M, N)}
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise ValueError(
                f"`{name}` must have shape {shape} to go with `cross_MxN`, "
                f"got {arrays[name].shape}."
            )
    for name, array in arrays.items():
        if not bool(jnp.isfinite(array).all()):
            raise ValueError(f"`{name}` must be finite, got NaN or inf.")
    if not bool(jnp.isin(start, jnp.asarray(grid)).all()):
        raise ValueError("`start_MxN` must hold codes of `grid_G` only: round to the grid first.")
    return gram, cross, energy, grid, start


def _checked_means(mean_N, target_mean_M, shape, dtype):
    M, N = shape
    if (mean_N is None) != (target_mean_M is None):
        raise ValueError("`mean_N` and `target_mean_M` must be given both or neither.")
    if mean_N is None:
        return jnp.zeros(N, dtype), jnp.zeros(M, dtype)
    mean, target_mean = jnp.asarray(mean_N, dtype), jnp.asarray(target_mean_M, dtype)
    if mean.shape != (N,) or target_mean.shape != (M,):
        raise ValueError(
            f"`mean_N` and `target_mean_M` must have shapes {(N,)} and {(M,)}, got "
            f"{mean.shape} and {target_mean.shape}."
        )
    if not bool(jnp.isfinite(mean).all() & jnp.isfinite(target_mean).all()):
        raise ValueError("`mean_N` and `target_mean_M` must be finite, got NaN or inf.")
    return mean, target_mean
