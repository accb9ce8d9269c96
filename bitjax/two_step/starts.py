"""Codes to start a layer's descent from: rounded, GPTQ's, AdaRound's, or the best of each filter.

The start decides at 3 bits and more: descent from rounded codes stops early (ResNet-20, one layer,
held-out error at 4 and 3 bits: GPTQ 0.140 and 0.736 %, descent from rounded codes 0.182 and 0.788,
from GPTQ's 0.129 and 0.639). GPTQ: Frantar et al., ICLR 2023, arXiv 2210.17323.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.frameworks.compiled import compile_quickly, jit_arrays
from bitjax.quantizers.base import Axes, Codes, Quantizer
from bitjax.solvers.adaround import adaround_codes
from bitjax.solvers.code_descent import Fit, fit_codes
from bitjax.solvers.gptq import gptq_codes
from bitjax.two_step.moments import PatchMoments, Sums, errors_of, less, moments_of

STARTS = ("best", "all", "rounded", "gptq", "adaround")
_JUDGED = {"best": ["rounded", "gptq"], "all": ["rounded", "gptq", "adaround"]}
# Shares of the scale of least squared error that GPTQ is run at, where the best of them is taken.
_SHARES = (1.0, 0.9, 0.8, 1.1)
_TRIED, _ALTERNATIONS = 17, 4  # of a search for scales at other bits than the quantizer's


class Rounded(NamedTuple):
    """Filters on the codes nearest to them."""

    codes_MxN: np.ndarray
    scale_M: np.ndarray


def pruned_of(float_MxN: np.ndarray, grid: np.ndarray) -> np.ndarray | None:
    """Weights that are exactly 0, which stay so: pruning is meant. None: there are none."""
    pruned = float_MxN == 0
    return pruned if 0 in grid and pruned.any() else None


def grid_of(quantizer: Quantizer, bits: Any) -> np.ndarray:
    """The quantizer's codes of so many bits, in rising order."""
    every = np.arange(2 ** round(float(bits)))[:, None]
    given = np.float32(bits), every
    return np.unique(np.asarray(_once(_decoded, quantizer, *given), np.float64))


def rounded(quantizer: Quantizer, filters_MxN: Any, grid: np.ndarray) -> Rounded:
    """Filters at the scales that the quantizer gives them itself, or those of least squared error.

    The latter where the grid is of other bits than the quantizer starts from.
    """
    given = np.asarray(filters_MxN, np.float32), np.asarray(grid, np.float32)
    codes, scale = map(np.asarray, _once(_coded, quantizer, *given))
    if 0 not in grid:
        codes = np.where(codes == 0, 1, codes)
    return Rounded(codes.astype(np.float64), scale.astype(np.float64)[:, 0])


def _once(function, quantizer, *arrays):
    """A quantizer's operations as one program; each by itself would be compiled for every shape."""
    return jit_arrays(function, *arrays, static=(quantizer,), **compile_quickly(exact=True))


def _decoded(quantizer, bits, codes):
    return quantizer.decode({"bits": bits, "scale": jnp.ones((1, 1))}, {}, Codes(codes))


def _coded(quantizer, filters, grid):
    params, _ = quantizer.init(filters, Axes((0,), -1))
    scale = params["scale"]
    ratio = jnp.rint(quantizer.apply(params, {}, filters) / scale)
    own = jnp.where(scale > 0, ratio, 0), scale
    levels = 2.0 ** jnp.rint(params["bits"])
    same = (levels / 2 < grid.size) & (grid.size <= levels)
    return jax.tree.map(partial(jnp.where, same), own, _on_grid(filters, grid))


def _on_grid(filters, grid):
    """Codes and scales by alternate rounding, from shares of the largest scale that is of use."""
    most = jnp.max(jnp.abs(filters), axis=1, keepdims=True) / jnp.max(grid)
    edges = (grid[1:] + grid[:-1]) / 2

    def codes_at(scale):
        ratio = filters / jnp.where(scale > 0, scale, 1)
        return grid[jnp.searchsorted(edges, ratio)]

    def tried(share):
        scale = most * share
        for _ in range(_ALTERNATIONS):
            codes = codes_at(scale)
            square = jnp.sum(codes**2, axis=1, keepdims=True)
            dot = jnp.sum(codes * filters, axis=1, keepdims=True)
            scale = jnp.where(square > 0, dot / jnp.maximum(square, 1), scale)
        codes = codes_at(scale)
        return codes, scale, jnp.sum((scale * codes - filters) ** 2, axis=1, keepdims=True)

    codes, scales, errors = jax.lax.map(tried, jnp.linspace(0.3, 1.1, _TRIED))
    best = jnp.argmin(errors, axis=0)[None]
    return tuple(jnp.take_along_axis(x, best, axis=0)[0] for x in (codes, scales))


class Problem(NamedTuple):
    """What a group's start is chosen for."""

    quantizer: Quantizer
    float_MxN: np.ndarray
    grid: np.ndarray
    settings: Any  # `SolveOptions`


def start_of(problem: Problem, sums: Sums, held: Sums | None, group: int, intercept: bool) -> Fit:
    """The start that `settings.start` names; of several, each filter's by held-out patches."""
    kind = problem.settings.start
    if not is_judged(kind):
        moments = moments_of(sums, group, intercept=intercept)
        (found,) = _candidates(problem, moments, [kind])
        return found
    # Without patches to hold out, those that are fitted judge.
    seen = sums if held is None else less(sums, held)
    moments = moments_of(seen, group, intercept=intercept)
    found = list(_candidates(problem, moments, _JUDGED[kind]))
    judges = seen if held is None else held
    errors = [errors_of(judges, group, *map(np.asarray, fit)) for fit in found]
    best_M, filters = np.argmin(errors, axis=0), np.arange(len(problem.float_MxN))
    return Fit(*(np.stack(leaves)[best_M, filters] for leaves in zip(*found, strict=True)))


def is_judged(start: str) -> bool:
    """Whether a start is chosen among several by held-out patches."""
    return start in _JUDGED


def _candidates(problem: Problem, moments: PatchMoments, kinds: list[str]) -> Iterator[Fit]:
    """Each start as a fit, refined by descent where more than one is to be judged."""
    for kind in kinds:
        if kind == "rounded":
            own = rounded(problem.quantizer, problem.float_MxN, problem.grid)
        elif kind == "adaround":
            own = _adaround(problem, moments)
        else:
            own = _gptq(problem, moments, _SHARES if len(kinds) > 1 else _SHARES[:1])
        if len(kinds) > 1 and problem.settings.max_sweeps:
            yield _descended(problem, moments, own.codes_MxN)
        else:
            yield as_it_is(own, moments)


def as_it_is(own: Rounded, moments: PatchMoments) -> Fit:
    """Codes at their own scale, with the intercept that goes with them."""
    intercept = np.zeros(len(own.scale_M))
    if moments.mean_N is not None and moments.target_mean_M is not None:
        intercept = moments.target_mean_M - own.scale_M * (own.codes_MxN @ moments.mean_N)
    return Fit(*map(jnp.asarray, (own.codes_MxN, own.scale_M, intercept)))


def _descended(problem, moments, codes_MxN):
    settings = problem.settings
    return fit_codes(
        moments.gram_NxN, moments.cross_MxN, moments.energy_M, problem.grid, codes_MxN,
        mean_N=moments.mean_N, target_mean_M=moments.target_mean_M, ridge=settings.ridge,
        float_MxN=problem.float_MxN, pruned_MxN=pruned_of(problem.float_MxN, problem.grid),
        joint=settings.joint, max_sweeps=settings.max_sweeps,
    ).value  # fmt: skip


def _adaround(problem, moments) -> Rounded:
    """AdaRound's codes of the float filters, at the scales that rounding gives them."""
    filters = problem.float_MxN
    scale = rounded(problem.quantizer, filters, problem.grid).scale_M
    found = adaround_codes(
        moments.gram_NxN, filters, problem.grid, scale,
        cross_MxN=moments.cross_MxN, pruned_MxN=pruned_of(filters, problem.grid),
    )  # fmt: skip
    return Rounded(found.value, scale)


def _gptq(problem, moments, shares) -> Rounded:
    """GPTQ's codes of the float filters that explain the targets best, near the ones there are."""
    settings, gram = problem.settings, moments.gram_NxN
    mean = np.diagonal(gram).mean()
    # The ridge's pull is at least the damping, without which the best float filters may be any.
    damping = max(settings.ridge, settings.damping, 1e-6)
    pull = damping * (mean or 1.0)
    filters = problem.float_MxN
    pruned = pruned_of(filters, problem.grid)
    lacks_MxN = moments.cross_MxN - filters @ gram
    filters = filters + np.linalg.solve(gram + pull * np.eye(len(gram)), lacks_MxN.T).T
    if pruned is not None:
        filters = np.where(pruned, 0, filters)
    own, count = rounded(problem.quantizer, filters, problem.grid), len(filters)
    scale = np.concatenate([share * own.scale_M for share in shares])
    every = np.tile(filters, (len(shares), 1))
    stays = None if pruned is None else np.tile(pruned, (len(shares), 1))
    codes = gptq_codes(gram, every, problem.grid, scale, damping=damping, pruned_MxN=stays).value
    # What the codes explain, with the pull, at their best scales.
    product = every @ gram + pull * every
    s, c = (codes * product).sum(1), ((codes @ gram + pull * codes) * codes).sum(1)
    gain = np.where((s > 0) & (c > 0), s**2 / np.where(c > 0, c, 1), 0).reshape(len(shares), count)
    at = gain.argmax(0) * count + np.arange(count)
    return Rounded(codes[at], scale[at])
