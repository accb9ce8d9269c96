"""Streams of bits: codes of 1 to 16 bits without gaps, the least significant bit of each first.

Bit i of a stream is bit `i % 8` of its byte `i // 8`. Codes of one width lie together, the
narrowest first; among those of one width the order is that of the array (C order).
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

MOST = 16  # bits of a code


class Piece(NamedTuple):
    """The codes of one width of an array, before they are put behind others."""

    content: np.ndarray  # uint8; what is left of the last byte is 0
    bits: int


def pack(codes: np.ndarray, width: int) -> np.ndarray:
    """A row of codes as a stream of uint8, each of `width` bits."""
    rows = -(-codes.size // 8)  # eight codes take `width` bytes
    padded = np.zeros(rows * 8, "<u2")
    padded[: codes.size] = codes.ravel()
    # Neighbours are joined, so that 32 bits hold two codes, and then 64 bits four.
    pairs = _joined(padded.view("<u4"), 16, width)
    fours = _joined(pairs.view("<u8"), 32, 2 * width)
    low, high = fours[0::2], fours[1::2]
    eights = np.empty((rows, 2), "<u8")
    eights[:, 0] = low | (high << np.uint64(4 * width))  # what is shifted out by 64 is gone
    eights[:, 1] = high >> np.uint64(64 - 4 * width)
    stream = eights.view(np.uint8)[:, :width].reshape(-1)
    return stream[: -(-codes.size * width // 8)]


def unpack(stream: np.ndarray, width: int, count: int) -> np.ndarray:
    """The first codes of a stream, uint16; what lies behind them does not matter."""
    rows = -(-count // 8)
    whole = min(stream.size // width, rows)
    padded = np.zeros((rows, 16), np.uint8)
    padded[:whole, :width] = stream[: whole * width].reshape(whole, width)
    if whole < rows:
        rest = stream[whole * width :]
        padded[whole, : rest.size] = rest
    eights, mask = padded.view("<u8"), np.uint64((1 << 4 * width) - 1)
    fours = np.empty((rows, 2), "<u8")
    fours[:, 0] = eights[:, 0] & mask
    fours[:, 1] = (
        (eights[:, 0] >> np.uint64(4 * width)) | (eights[:, 1] << np.uint64(64 - 4 * width))
    ) & mask
    pairs = _parted(fours.reshape(-1), 32, 2 * width).view("<u4")
    return _parted(pairs, 16, width).view("<u2")[:count]


def _joined(words, half, used):
    """In each word, what the upper half holds put directly behind what the lower one holds."""
    kind, mask = words.dtype.type, (1 << used) - 1
    return (words & kind(mask)) | ((words >> kind(half - used)) & kind(mask << used))


def _parted(words, half, used):
    """The inverse of `_joined`."""
    kind, mask = words.dtype.type, (1 << used) - 1
    return (words & kind(mask)) | ((words << kind(half - used)) & kind(mask << half))


def pieces(codes: np.ndarray, widths: np.ndarray) -> list[Piece]:
    """An array of codes by width; `widths` has the array's rank and a number for each block."""
    cut, of_axis = _axis_of(codes.shape, widths)
    cube, found = codes.reshape(cut), []
    for width, where in _by_width(of_axis):
        chosen = cube if where is None else cube[:, where]
        found.append(Piece(pack(chosen, width), chosen.size * width))
    return found


def codes_in(
    stream: np.ndarray, start: int, shape: Sequence[int], widths: np.ndarray
) -> np.ndarray:
    """The array of codes, uint16, that begins at a bit of a stream; codes of no bits are 0."""
    cut, of_axis = _axis_of(shape, widths)
    cube = np.zeros(cut, np.uint16)
    for width, where in _by_width(of_axis):
        count = cube.size if where is None else cut[0] * len(where) * cut[2]
        row = unpack(_from_bit(stream, start, count * width), width, count)
        if where is None:
            cube = row
        else:
            cube[:, where] = row.reshape(cut[0], len(where), cut[2])
        start += count * width
    return cube.reshape(shape)


def count_bits(shape: Sequence[int], widths: np.ndarray) -> int:
    """The bits of an array of codes; takes no memory for them."""
    return sum(map(int, widths.ravel())) * (math.prod(shape) // widths.size)


def _axis_of(shape, widths):
    """The array as three axes, of which the middle one has a width for each of its places."""
    # Filters of several widths are moved as they are. Element by element they take 4 times as long.
    shape = tuple(shape)
    mixed = (widths != widths.flat[0]).any()
    several = [axis for axis, n in enumerate(widths.shape) if n > 1]
    if not mixed:
        return (1, 1, math.prod(shape)), widths.ravel()[:1]
    if len(several) == 1:
        (axis,) = several
        cut = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
        return cut, np.repeat(widths.ravel(), shape[axis] // widths.size)
    for axis in several:
        widths = np.repeat(widths, shape[axis] // widths.shape[axis], axis)
    return (1, math.prod(shape), 1), np.broadcast_to(widths, shape).ravel()


def _by_width(widths):
    """Each width but 0 and the places that have it, None where all have."""
    for width in np.unique(widths[widths > 0]).tolist():
        where = np.flatnonzero(widths == width)
        yield width, None if len(where) == len(widths) else where


def join(parts: Iterable[Piece]) -> np.ndarray:
    """One stream of all pieces, the first bit of each directly behind the last one before it."""
    parts = list(parts)
    end = sum(part.bits for part in parts)
    stream, at = np.zeros(-(-end // 8), np.uint8), 0
    for content, bits in parts:
        begin, shift = divmod(at, 8)
        if not shift:
            stream[begin : begin + content.size] = content
        else:
            stream[begin : begin + content.size] |= content << np.uint8(shift)
            behind = stream[begin + 1 : begin + 1 + content.size]
            behind |= content[: behind.size] >> np.uint8(8 - shift)
        at += bits
    return stream


def _from_bit(stream, start, bits):
    """The bytes that begin at a bit of a stream; some further bits may follow them."""
    begin, shift = divmod(start, 8)
    part = stream[begin : -(-(start + bits) // 8)]
    if not shift:
        return part
    moved = part >> np.uint8(shift)
    moved[:-1] |= part[1:] << np.uint8(8 - shift)
    return moved
