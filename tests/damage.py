"""Damages files at random, in every way that a disk, an editor or an enemy may."""

import copy
import json
import os
import random
from pathlib import Path

# What stands where something else is expected; the first go into the text as they are.
RAW = ("NaN", "1e999", "-Infinity", "9" * 5000, "[" * 100_000)
NASTY = (None, True, [], {}, [1], {"name": "x"}, "", "x", "NaN", -1, 0, 0.5, 10**400, 1e308,
         "\x1b[2J", "a\nb", "\u202e", "\ud800", "\x00", "=1+1", "[red]", "$x_{$", "-f", "../../x",
         "![a](http://b)", "<b>")  # fmt: skip


def damage(file: Path, draw: random.Random) -> None:
    """Flips bits of a file, cuts it, or puts something else in its place."""
    content = bytearray(file.read_bytes()) or bytearray(b"x")
    kind = draw.choice(["flip", "flip", "cut", "pipe", "device", "folder", "text", "huge"])
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    elif kind == "text":
        file.write_bytes(b"\x1b[2J" + b"[" * 100_000)
    else:
        if kind == "flip":
            for _ in range(draw.randint(1, 9)):
                content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del content[draw.randrange(len(content)) :]
        file.write_bytes(content)
        if kind == "huge":
            os.truncate(file, 1 << 42)  # of holes, which take no space


def paths(value, path=()):
    """The path of everything inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, below in inside:
        yield (*path, key)
        if isinstance(below, dict | list):
            yield from paths(below, (*path, key))


def swapped(value, draw: random.Random, *, raw: bool = True) -> str:
    """The text of a JSON value in which one thing is another, is gone, or is too much.

    With `raw` it may be no JSON.
    """
    value = copy.deepcopy(value)
    *above, key = draw.choice(list(paths(value)))
    inner = value
    for step in above:
        inner = inner[step]
    kind = draw.choice(["gone", "more", "raw" if raw else "other", "other", "other", "other"])
    if kind == "gone":
        del inner[key]
    elif kind == "more" and isinstance(inner, dict):
        inner[f"a\x1b{draw.random()}"] = draw.choice(NASTY)
    else:
        inner[key] = "RAW" if kind == "raw" else draw.choice(NASTY)
    return json.dumps(value).replace('"RAW"', draw.choice(RAW))
