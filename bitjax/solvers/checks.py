"""Checks the arrays of solvers, with one line for each error, before they start."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpy import typing as npt
from numpy.typing import NDArray

from bitjax.checks import instance

MASK = instance(np.ndarray, jax.Array)  # of bools, which are no numbers


def checked_grid(grid_G: ArrayLike, start_MxN: jax.Array) -> NDArray:
    """The grid in the start's dtype, if it has one axis, rises and holds all codes of the start."""
    grid = np.asarray(grid_G, start_MxN.dtype)
    if grid.ndim != 1 or grid.size == 0 or not (np.diff(grid) > 0).all():
        raise ValueError(f"`grid_G` must be one axis of codes in rising order, got {grid_G}.")
    if not np.isin(np.asarray(start_MxN), grid).all():
        raise ValueError("`start_MxN` must hold codes of `grid_G` only: round to the grid first.")
    return grid


def checked_pruned(
    pruned_MxN: ArrayLike | None, shape: tuple[int, int], grid: NDArray
) -> NDArray | None:
    """Which codes stay 0, if any: of this shape, with 0 in the grid."""
    if pruned_MxN is None:
        return None
    pruned = np.asarray(pruned_MxN)
    if pruned.shape != shape or pruned.dtype != bool:
        raise ValueError(
            f"`pruned_MxN` must be bool of shape {shape}, got {pruned.dtype} {pruned.shape}."
        )
    if 0 not in grid:
        raise ValueError("`pruned_MxN` needs 0 in `grid_G`: a filter of other codes has no zeros.")
    return pruned if pruned.any() else None


def checked_rounding(
    gram_NxN: ArrayLike, filters_MxN: ArrayLike, grid_G: ArrayLike, scale_M: ArrayLike, least: int
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """What a solver rounds to a grid of `least` codes or more: as float64, fitting and finite."""
    gram, filters, grid, scale = (
        np.asarray(a, np.float64) for a in (gram_NxN, filters_MxN, grid_G, scale_M)
    )
    M, N = filters.shape if filters.ndim == 2 else (0, 0)
    if gram.shape != (N, N) or scale.shape != (M,) or 0 in (M, N):
        raise ValueError(
            "`gram_NxN`, `filters_MxN` and `scale_M` must be [N, N], [M, N] and [M], got "
            f"{gram.shape}, {filters.shape} and {scale.shape}."
        )
    if grid.ndim != 1 or grid.size < least or not (np.diff(grid) > 0).all():
        many = "two or more " if least == 2 else ""
        raise ValueError(f"`grid_G` must be one axis of {many}codes in rising order, got {grid_G}.")
    check_finite(gram_NxN=gram, filters_MxN=filters, scale_M=scale)
    return gram, filters, grid, scale


def checked_arrays(
    given: Mapping[str, tuple[ArrayLike | None, tuple[int, ...]]], leader: str, dtype
) -> list[jax.Array]:
    """Arrays of the shapes they must have, finite and of one dtype; None is an array of zeros."""
    for name, (array, shape) in given.items():
        if array is not None and np.shape(array) != shape:
            raise ValueError(
                f"`{name}` must have shape {shape} to go with `{leader}`, got {np.shape(array)}."
            )
    arrays = [
        jnp.asarray(np.zeros(shape) if array is None else array, dtype)
        for array, shape in given.values()
    ]
    for name, array in zip(given, arrays, strict=True):
        # On the host: a program of its own would be compiled for every layer's shapes.
        if not np.isfinite(np.asarray(array)).all():
            raise ValueError(f"`{name}` must be finite, got NaN or inf.")
    return arrays


def check_finite(**arrays: NDArray) -> None:
    """Refuses NaN and inf."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"`{name}` must be finite, got NaN or inf.")


def checked_sample(values_M: npt.ArrayLike, weights_M: npt.ArrayLike) -> tuple[NDArray, NDArray]:
    """A weighted sample of |x| as float64, if its values are finite, at least 0 and rising."""
    values, weights = np.asarray(values_M, np.float64), np.asarray(weights_M, np.float64)
    if values.ndim != 1 or values.size == 0 or values.shape != weights.shape:
        raise ValueError(
            "`values_M` and `weights_M` must be of one shape [M], M at least 1, got "
            f"{values.shape} and {weights.shape}."
        )
    if not (values[0] >= 0 and (np.diff(values) >= 0).all() and np.isfinite(values[-1])):
        raise ValueError("`values_M` must be finite, at least 0 and rising: sort them.")
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f"`weights_M` must be finite and at least 0, got {weights.min()}.")
    return values, weights
