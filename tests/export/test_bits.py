"""Streams of codes hold what a loop over single bits holds, at any width, place and granularity."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitjax.export import bits


def slow_stream(codes, widths):
    """The stream of some arrays, bit by bit."""
    found = []
    for array, wide in zip(codes, widths, strict=True):
        for width in range(1, bits.MOST + 1):
            for code in array[wide == width].tolist():  # in C order
                found += [code >> i & 1 for i in range(width)]
    found += [0] * (-len(found) % 8)
    rows = np.reshape(found, (-1, 8)).astype(int)
    return (rows << np.arange(8)).sum(axis=1).astype(np.uint8)


def spread(widths, shape):
    for axis, n in enumerate(shape):
        widths = np.repeat(widths, n // widths.shape[axis], axis)
    return widths


@st.composite
def arrays(draw):
    """Codes of some shape, and their widths by block."""
    blocks = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    shape = [n * draw(st.integers(1, 3)) for n in blocks]
    draws = np.random.default_rng(draw(st.integers(0, 2**32)))
    widths = draws.integers(draw(st.integers(0, 4)), 17, blocks).astype(np.uint8)
    if draw(st.booleans()):
        widths[:] = widths.flat[0]
    wide = spread(widths, shape)
    return draws.integers(0, 1 << wide.astype(int)).astype(np.uint16), widths, wide


@given(st.lists(arrays(), max_size=4))
def test_a_stream_is_that_of_a_loop_over_bits_and_gives_the_codes_back(drawn):
    stream = bits.join(part for codes, widths, _ in drawn for part in bits.pieces(codes, widths))
    wanted = slow_stream([codes for codes, _, _ in drawn], [wide for _, _, wide in drawn])
    assert stream.dtype == np.uint8 and stream.tolist() == wanted.tolist()
    start = 0
    for codes, widths, wide in drawn:
        assert bits.count_bits(codes.shape, widths) == wide.sum()
        assert (bits.codes_in(stream, start, codes.shape, widths) == codes).all()
        start += int(wide.sum())


@pytest.mark.parametrize("width", range(1, 17))
def test_every_width_is_packed_without_a_gap(width):
    codes = np.random.default_rng(width).integers(0, 1 << width, 1003)
    stream = bits.pack(codes, width)
    assert stream.size == -(-1003 * width // 8)
    assert (bits.unpack(stream, width, 1003) == codes).all()
    as_bits = np.unpackbits(stream, bitorder="little")[: 1003 * width].reshape(-1, width)
    assert ((as_bits.astype(int) << np.arange(width)).sum(axis=1) == codes).all()


def test_codes_of_no_bits_take_no_room():
    assert bits.join(bits.pieces(np.zeros((2, 3), np.uint16), np.zeros((1, 1), np.uint8))).size == 0
    assert bits.codes_in(np.zeros(0, np.uint8), 0, (2, 3), np.zeros((1, 1), np.uint8)).sum() == 0
