r"""Fits filters to a layer's output codes, through its activation quantizer.

The non-linear step of Two-Step Quantization: Wang et al., "Two-Step Quantization for Low-bit Neural
Networks", CVPR 2018. Each target moves to a value with the right code, unless staying is cheaper.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from bitjax.checks import ARRAY, NONE, SWITCH, checked, either, instance, integer, number, several
from bitjax.solvers.base import Solution
from bitjax.solvers.checks import MASK, checked_arrays
from bitjax.solvers.code_descent import Fit, fit_codes
from bitjax.solvers.code_rules import dot
from bitjax.solvers.targets import check_quantizer, output_of, z_step


@checked(
    x_TxN=ARRAY,
    y_TxM=ARRAY,
    start=instance(Fit),
    grid_G=ARRAY,
    step=number(0, above=True),
    threshold=number(),
    levels=either(NONE, integer(1)),
    strengths=several(number(0, above=True), 1),
    iterations=integer(1),
    held_out=either(number(0, 1, below=True), several(ARRAY, 2, 2)),
    intercept=SWITCH,
    ridge=number(0),
    float_MxN=either(NONE, ARRAY),
    pruned_MxN=either(NONE, MASK),
    max_sweeps=integer(1),
    chunk=integer(1),
)
def fit_output_codes(
    x_TxN: ArrayLike,
    y_TxM: ArrayLike,
    start: Fit,
    grid_G: ArrayLike,
    *,
    step: float = 1.0,
    threshold: float = 0.0,
    levels: int | None,
    strengths: Sequence[float] = (1.0,),
    iterations: int = 10,
    held_out: tuple[ArrayLike, ArrayLike] | float = 0.2,
    intercept: bool = True,
    ridge: float = 0.0,
    float_MxN: ArrayLike | None = None,
    pruned_MxN: ArrayLike | None = None,
    max_sweeps: int = 30,
    chunk: int = 4096,
) -> Solution:
    r"""Alternates targets (c), codes (b') and scales (a), and keeps each filter's best iterate.

    $$\min_{a, b, w, z} E\,(y - Q(z))^2 + \lambda (z - a w^T x - b)^2$$

    This falls in every iteration. The true loss E (y - Q(v))^2 need not fall, and on patches that
    were not fitted it often rises. So the true loss of every iterate, the start included, is
    measured on held-out patches, and a filter keeps the iterate with its least loss.

    Patches keep their dtype (uint8 is fine) and are read in chunks: memory, beside them, is
    N^2 + 8 M N + 4 `chunk` (N + M). An iteration costs 2 T M N multiply-adds and a few sweeps.

    Args:
        x_TxN: patches of inputs, from quantized layers before this one.
        y_TxM: wanted codes of the outputs, 0 to `levels`; wanted floats if `levels` is None.
        start: the solution of `fit_codes` for the float pre-activations.
        grid_G: the filters' codes in rising order.
        step: distance of Q's levels, in units of v.
        threshold: v at most this has code 0; below 1.5 `step`, or a level is never reached.
        levels: number of Q's levels above 0. None for the last layer, whose output is the float
            max(v, 0).
        strengths: lambdas, used in turn, each from the best iterates so far. At 1 and above, only
            targets near a change of code move.
        iterations: number of iterations for every strength.
        held_out: patches `(x, y)` to judge iterates by, or the share of the given patches, the last
            ones, to hold out. 0 judges by the fitted patches.
        intercept: whether to fit an intercept; otherwise b stays 0.
        ridge: strength of the pull to float filters, as in `fit_codes`.
        float_MxN: the float filters, as in `fit_codes`.
        pruned_MxN: the codes that stay 0, as in `fit_codes`.
        max_sweeps: largest number of sweeps of an iteration.
        chunk: number of patches that are read at a time.

    Returns:
        `value`: `Fit`. `objective`: the true loss on held-out patches, [M]. `stats`, all but the
            last two over iterates [I + 1], the start first: `train` and `held out`, mean true
            losses; `mismatch`, the share of held-out outputs with another code (NaN for floats);
            `penalised`, the mean of the alternated objective at the present strength, at the best
            z; `kept`, the iterate of each filter, int [M]; `sparsity`, [M].

    Raises:
        ValueError: shapes do not fit, a value is not finite, or an argument is out of its range.

    Example:
        Outputs are max(x_1 + x_2 - 1, 0), and the start reads x_1 alone.

        >>> x = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 1], [1, 2], [3, 0], [3, 3]])
        >>> y = jnp.maximum(x.sum(1, keepdims=True) - 1, 0)
        >>> start = Fit(jnp.array([[1.0, 0.0]]), jnp.array([0.9]), jnp.array([0.2]))
        >>> solution = fit_output_codes(
        ...     x, y, start, [0, 1], levels=None, held_out=0.0, iterations=30
        ... )
        >>> solution.value.codes_MxN.tolist(), float(solution.value.scale_M[0])
        ([[1.0, 1.0]], 1.000)

    Source: the paper's second step, as far as it is known; its schedule of lambda and which
        iterate it takes are not. On synthetic patches the last of 30 was worse than the start.
    """
    x, y = jnp.asarray(x_TxN), jnp.asarray(y_TxM)
    data, judged = _checked(x, y, start, held_out)
    check_quantizer(step, threshold, levels)
    dtype = start.scale_M.dtype
    quantizer = {"step": step, "threshold": threshold, "levels": levels}
    read = partial(_read, **quantizer, chunk=chunk)
    x_mean = _mean(data[0], dtype, chunk) * intercept
    gram_NxN = _gram(data[0], x_mean, chunk)

    best, history = start, []
    least_M = read(*judged, start, x_mean, strengths[0]).loss_M
    kept_M = np.zeros(least_M.shape, int)
    for strength in strengths:
        fit = best
        for i in range(iterations + 1):
            seen, held = (read(*d, fit, x_mean, strength) for d in (data, judged))
            if i or not history:
                history.append((seen.loss_M, held.loss_M, held.mismatch_M, seen.penalised_M))
            better_M = held.loss_M < least_M
            best = _chosen(better_M, fit, best)
            least_M = jnp.where(better_M, held.loss_M, least_M)
            kept_M = np.where(better_M, len(history) - 1, kept_M)
            if i == iterations:
                break
            z_mean = seen.mean_M * intercept
            fit = fit_codes(
                gram_NxN, seen.cross_MxN, seen.square_M - z_mean**2, grid_G, fit.codes_MxN,
                mean_N=x_mean, target_mean_M=z_mean, ridge=ridge, float_MxN=float_MxN,
                pruned_MxN=pruned_MxN, max_sweeps=max_sweeps,
            ).value  # fmt: skip
    names = ("train", "held out", "mismatch", "penalised")
    rows = zip(*history, strict=True)
    stats = {n: np.array([a.mean() for a in row]) for n, row in zip(names, rows, strict=True)}
    sparsity = (best.codes_MxN == 0).mean(1, dtype=dtype)
    return Solution(best, least_M, stats | {"kept": kept_M, "sparsity": sparsity})


class _Seen(NamedTuple):
    """Means over patches of a fit's targets z and of its errors."""

    mean_M: jax.Array
    square_M: jax.Array
    cross_MxN: jax.Array  # E z (x - xbar)
    loss_M: jax.Array
    mismatch_M: jax.Array
    penalised_M: jax.Array


@jax.jit
def _chosen(better_M, new: Fit, old: Fit) -> Fit:
    return Fit(*map(jnp.where, (better_M[:, None], better_M, better_M), new, old))


def _summed(of_rows, arrays, chunk):
    """The sum of `of_rows(weights, *rows)` over chunks of rows; the last chunk is a whole one."""
    T = len(arrays[0])
    chunk = min(chunk, T)

    def one(i):
        start = jnp.minimum(i * chunk, T - chunk)
        rows = (lax.dynamic_slice_in_dim(a, start, chunk) for a in arrays)
        return of_rows(jnp.arange(chunk) >= i * chunk - start, *rows)

    def add(i, total):
        return jax.tree.map(jnp.add, total, one(i))

    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(one, 0))
    return lax.fori_loop(0, -(-T // chunk), add, zero)


@partial(jax.jit, static_argnames=("dtype", "chunk"))
def _mean(x_TxN, dtype, chunk):
    return _summed(lambda new, x: (x * new[:, None].astype(dtype)).sum(0), (x_TxN,), chunk) / len(
        x_TxN
    )


@partial(jax.jit, static_argnames=("chunk",))
def _gram(x_TxN, x_mean, chunk):
    def of_rows(new, x):
        x = jnp.where(new[:, None], x - x_mean, 0)
        return dot(x.T, x)

    return _summed(of_rows, (x_TxN,), chunk) / len(x_TxN)


@partial(jax.jit, static_argnames=("step", "threshold", "levels", "chunk"))
def _read(x_TxN, y_TxM, fit: Fit, x_mean, strength, *, step, threshold, levels, chunk) -> _Seen:
    """One pass over patches: step (c), and the statistics of its targets for (a) and (b')."""

    def of_rows(new, x, y):
        new = new[:, None].astype(x_mean.dtype)
        v = fit.scale_M * dot(x.astype(x_mean.dtype), fit.codes_MxN.T) + fit.intercept_M
        z, z_codes = z_step(v, y, step, threshold, levels, strength)
        codes = output_of(v, step, threshold, levels)
        unit = 1 if levels is None else step
        loss = unit**2 * (y - codes) ** 2
        penalised = unit**2 * (y - z_codes) ** 2 + strength * (z - v) ** 2
        wrong = jnp.full_like(v, jnp.nan) if levels is None else (y != codes).astype(v.dtype)
        z = z * new
        mean_M, square_M = z.sum(0), (z**2).sum(0)
        # NaN times 0 stays NaN, the mismatch of floats.
        parts = ((new * a).sum(0) for a in (loss, wrong, penalised))
        return _Seen(mean_M, square_M, dot(z.T, x - x_mean), *parts)

    return jax.tree.map(lambda a: a / len(x_TxN), _summed(of_rows, (x_TxN, y_TxM), chunk))


def _checked(x, y, start, held_out):
    """The patches to fit and the patches to judge by."""
    if x.ndim != 2 or y.ndim != 2 or 0 in (*x.shape, *y.shape):
        raise ValueError(
            "`x_TxN` and `y_TxM` must have shapes [patches, inputs] and [patches, filters], got "
            f"{x.shape} and {y.shape}."
        )
    (T, N), M = x.shape, y.shape[1]
    names = ("start.codes_MxN", "start.scale_M", "start.intercept_M")
    shapes = ((M, N), (M,), (M,))
    given = {n: (a, s) for n, a, s in zip(names, start, shapes, strict=True)}
    dtype = jnp.asarray(start.scale_M).dtype
    checked_arrays({"y_TxM": (y, (T, M)), **given}, "x_TxN", dtype)
    if not isinstance(held_out, list | tuple):
        last = round(T * held_out)
        if last == 0:
            return (x, y), (x, y)
        return (x[:-last], y[:-last]), (x[-last:], y[-last:])
    x_held, y_held = (jnp.asarray(a) for a in held_out)
    if x_held.shape[1:] != (N,) or y_held.shape != (len(x_held), M) or len(x_held) == 0:
        raise ValueError(
            f"`held_out` must have shapes [patches, {N}] and [patches, {M}], got "
            f"{x_held.shape} and {y_held.shape}."
        )
    return (x, y), (x_held, y_held)
