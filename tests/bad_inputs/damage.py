"""Damages a file in every way that a disk, a copy or a stranger does."""

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Damage = Callable[[Path], None]


def replaced(content: bytes) -> Damage:
    """Writes other content in the file's place."""

    def do(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(content)

    return do


def _instead(make: Callable[[Path], None]) -> Damage:
    def do(path: Path) -> None:
        path.unlink(missing_ok=True)
        make(path)

    return do


SPECIAL: dict[str, Damage] = {
    "missing": lambda path: path.unlink(),
    "a folder": _instead(lambda path: path.mkdir()),
    "a FIFO": _instead(lambda path: os.mkfifo(path)),
    "a link to itself": _instead(lambda path: path.symlink_to(path)),
    "a link to nowhere": _instead(lambda path: path.symlink_to("/no/such/file")),
    "a link to a device": _instead(lambda path: path.symlink_to("/dev/zero")),
}


def damages(content: bytes, seed: int = 0, flips: int = 12) -> Iterator[tuple[str, Damage]]:
    """Names and deeds: special files, cuts, other content, flipped bits."""
    yield from SPECIAL.items()
    size = len(content)
    for share in (0.0, 0.1, 0.5, 0.9):
        yield f"cut to {share:.0%}", replaced(content[: int(size * share)])
    yield "cut by a byte", replaced(content[:-1])
    yield "zeros", replaced(bytes(size))
    yield "ones", replaced(b"\xff" * size)
    yield "doubled", replaced(content * 2)
    yield "text", replaced(b"not what you think\n")
    yield "without its first byte", replaced(content[1:])
    draw = random.Random(seed)
    for _ in range(flips if size else 0):
        place, bit = draw.randrange(size), draw.randrange(8)
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        yield f"bit {bit} of byte {place} flipped", replaced(bytes(flipped))


WRONG = (
    None, True, -1, 0, 2.5, 10**400, 1e308, "abc", "a\nb", "\ud800", "x" * 5000, [], {}, [[[]]],
    {"a": {"b": []}}, float("nan"), float("inf"), "../../etc", "-f", "$(touch x)",
)  # fmt: skip


def wrong_json(value: Any, wrong: tuple[Any, ...] = WRONG) -> Iterator[tuple[str, Any]]:
    """Names and copies of a JSON value in which one place has another value, or none."""
    for path in _places(value):
        for other in (*wrong, ...):
            copy = json.loads(json.dumps(value))
            node = copy
            for key in path[:-1]:
                node = node[key]
            if other is ...:
                del node[path[-1]]
            elif repr(node[path[-1]]) == repr(other):
                continue
            else:
                node[path[-1]] = other
            said = "gone" if other is ... else ascii(other)[:20]
            yield f"{'.'.join(map(str, path))} is {said}", copy


def _places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = (
        value.items() if isinstance(value, dict)
        else enumerate(value) if isinstance(value, list) else ()
    )  # fmt: skip
    for key, inner in entries:
        yield (*above, key)
        yield from _places(inner, (*above, key))


WRONG_JSON_TEXTS = (
    b"", b"{", b"[]", b"null", b"3", b'"abc"', b"\xff\xfe{}", b"{" * 100_000, b"[" * 100_000,
    b'{"a": 1e999}', b'{"a": ' + b"9" * 6000 + b"}", b'{"a": 1, "a": 2}', b"\x00" * 64,
)  # fmt: skip
