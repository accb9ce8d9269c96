"""Granularity: parameters whose shape says which block of a tensor each entry serves.

A parameter is `[]`, or has the tensor's rank with every axis a divisor of the tensor's; entry i of
an axis serves the i-th block of neighbours. `[1, 1, 1, C]` is per channel, `[in / 32, out]` is a
group of 32 inputs of each filter.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from bitjax.checks import NONE, choice, either, integer
from bitjax.quantizers.base import Axes

GRANULARITIES = ("per_tensor", "per_channel", "per_group")
GRANULARITY = choice(*GRANULARITIES)
GROUP_SIZE = either(NONE, integer(1))


def check_granularity(granularity: str, group_size: int | None) -> None:
    """Raises a ValueError for a group size that does not go with the granularity."""
    if granularity == "per_group" and group_size is None:
        raise ValueError("`group_size` must be 1 or more with per_group, got None.")
    if granularity != "per_group" and group_size is not None:
        raise ValueError(f"`group_size` goes with granularity='per_group', not {granularity!r}.")


def block_shape(
    shape: Sequence[int], axes: Axes, granularity: str, group_size: int | None = None
) -> tuple[int, ...]:
    """The shape of a parameter of the given granularity.

    Args:
      shape: shape of the tensor.
      axes: the channel and group axes of the tensor.
      granularity: what shares an entry: `per_tensor`, `per_channel` or `per_group`.
      group_size: elements of the group axis that share an entry.

    Raises:
      ValueError: the tensor is empty; or the group axis is not a multiple of `group_size`.

    Example:
      >>> block_shape((3, 3, 16, 32), Axes((-1,), -2), "per_group", 8)
      (1, 1, 2, 32)
    """
    if 0 in shape:
        raise ValueError(
            f"a quantizer needs at least one element, got a tensor of shape {tuple(shape)}."
        )
    if granularity == "per_tensor":
        return ()
    rank = len(shape)
    channel = {axis % rank for axis in axes.channel}
    kept = [n if axis in channel else 1 for axis, n in enumerate(shape)]
    if granularity == "per_group":
        axis, size = axes.group % rank, group_size or 1
        if shape[axis] % size:
            raise ValueError(
                f"`group_size` must divide the {shape[axis]} elements of axis {axis} of a tensor "
                f"of shape {tuple(shape)}, got {size}."
            )
        kept[axis] = shape[axis] // size
    return tuple(kept)


def spread(param: jax.Array, shape: Sequence[int]) -> jax.Array:
    """`param` in a form that broadcasts against `shape`; repeated only where blocks need it.

    Example:
      >>> spread(jnp.array([1.0, 2.0]), (4,)).tolist()
      [1.0, 1.0, 2.0, 2.0]
    """
    if param.ndim == 0:
        return param
    for axis, (have, want) in enumerate(zip(param.shape, shape, strict=True)):
        if have not in (1, want):
            param = jnp.repeat(param, want // have, axis=axis, total_repeat_length=want)
    return param


def split(x: jax.Array, block: Sequence[int]) -> tuple[jax.Array, tuple[int, ...]]:
    """x with every axis cut in (entries, neighbours), and the axes of the neighbours.

    Example:
      >>> cut, inner = split(jnp.zeros((4, 6)), (2, 1))
      >>> cut.shape, inner
      ((2, 2, 1, 6), (1, 3))
    """
    block = tuple(block) or (1,) * x.ndim
    cut = [
        n for entries, size in zip(block, x.shape, strict=True) for n in (entries, size // entries)
    ]
    return x.reshape(cut), tuple(range(1, 2 * x.ndim, 2))


def fold(x: jax.Array, like: jax.Array, where: jax.Array) -> jax.Array:
    """Sums x over the blocks of the parameter `like`, to its shape and dtype, where it says."""
    # Keep the `where`: without it XLA on the CPU splits the fused reduction into one pass per
    # operation (4 to 30 times slower).
    cut, inner = split(jnp.where(where, x, 0.0), like.shape)
    return jnp.sum(cut, axis=inner).reshape(like.shape).astype(like.dtype)


def flatten(x: jax.Array, block: Sequence[int]) -> jax.Array:
    """x as `[entries, elements of one block]`, for statistics that sort."""
    cut, inner = split(x, block)
    outer = tuple(axis for axis in range(cut.ndim) if axis not in inner)
    return cut.transpose(outer + inner).reshape(max(1, math.prod(block)), -1)
