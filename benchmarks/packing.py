"""Codes a second that NumPy packs to a stream of bits and unpacks, by their widths.

Run: python -m benchmarks.packing [--rounds 9]
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.timing import machine, median, show
from bitjax.export import bits

TARGET = 0.1  # G codes a second
SHAPE = 3, 3, 256, 512  # the largest kernel of VGG-small


def widths() -> dict[str, np.ndarray]:
    """Bits by block: one width for the kernel, or one for each filter."""
    draw = np.random.default_rng(0)
    same = {f"{n} bits": np.full((1, 1, 1, 1), n, np.uint8) for n in (1, 2, 3, 4, 8, 16)}
    mixed = draw.integers(2, 8, (1, 1, 1, SHAPE[-1]))
    return {**same, "2 to 7 bits by filter": mixed.astype(np.uint8)}


def measure(wide: np.ndarray, rounds: int) -> tuple[float, float]:
    """G codes a second packed and unpacked."""
    most = 1 << np.broadcast_to(wide, SHAPE).astype(int)
    codes = np.random.default_rng(1).integers(0, most).astype(np.uint16)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        began = time.perf_counter()
        stream = bits.join(bits.pieces(codes, wide))
        middle = time.perf_counter()
        again = bits.codes_in(stream, 0, SHAPE, wide)
        seconds[1].append(time.perf_counter() - middle)
        seconds[0].append(middle - began)
    assert (again == codes).all()
    packed, unpacked = (codes.size / median(taken[1:]) / 1e9 for taken in seconds)
    return packed, unpacked


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the flags say and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    flags = parser.parse_args(arguments)
    rows = [(name, *measure(wide, flags.rounds)) for name, wide in widths().items()]
    show(
        f"G codes a second for a kernel of shape {SHAPE}: medians of {flags.rounds} rounds; target "
        f"{TARGET}",
        ("codes", "packed", "unpacked"),
        rows,
    )
    print(machine())


if __name__ == "__main__":
    main()
