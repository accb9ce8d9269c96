"""Runs what a user wrote, a config file or a function that it names: it may raise anything.

Whatever it raises becomes one ValueError that says where: the config's key, file, line, function.
"""

import contextlib
import re
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
NOT_A_USERS = (*_LIBRARIES, str(Path(__file__).parents[1]))
Kinds = tuple[type[BaseException], ...]


@contextlib.contextmanager
def program(where: str, fix: str = "", *, kinds: Kinds = (BaseException,)) -> Iterator[None]:
    """Makes what a user's program raises a ValueError that begins with `where`; Ctrl-C passes.

    The kinds of SystemExit are caught, too. `fix` stands behind the reason.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except kinds as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        # A SyntaxError says its place itself, and what is raised in our own code is none of theirs.
        place = "" if isinstance(error, SyntaxError) else place_of(error, NOT_A_USERS)
        behind = f" ({place})" if place else ""
        behind += f"; {fix}" if fix else ""
        raise ValueError(f"{where}: {kind}{text_of(error)}{behind}") from error


@contextlib.contextmanager
def keys_named(keys: Mapping[str, str], otherwise: str = "") -> Iterator[None]:
    """Gives arguments that a ValueError names, as `steps`, the names of their keys in a config.

    A message that names none of them begins with `otherwise`, if that is given.
    """
    try:
        yield
    except ValueError as error:
        text = re.sub(r"`(\w+)`", lambda found: keys.get(found[1], found[0]), str(error))
        if text == str(error):
            if not otherwise:
                raise
            text = f"{otherwise}: {text}"
        # What a key stands in front of needs no other place.
        text = re.sub(r"^config\.\S+ \([^)]*\): (?=config\.)", "", text)
        raise ValueError(text) from error


def place_of(error: BaseException, hidden: tuple[str, ...] = _LIBRARIES) -> str:
    """The last frame that is not in a hidden folder, as 'own.py, line 3, in get_config'."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*hidden, "<"))
    ]
    return (
        f"{frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name}" if frames else ""
    )


def text_of(error: BaseException) -> str:
    """An error's message in one line; its type where it has none."""
    try:
        return " ".join(str(error).split()) or type(error).__name__
    except Exception:  # its `__str__` may be a user's, too
        return type(error).__name__


def shown(value: Any) -> str:
    """A value for a message: short, in one line, whatever its own `repr` does."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a user's, a cycle without an end, or a number of 5000 digits
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:90]} ..."


def is_text(value: str) -> bool:
    """Whether a text can be a name and be printed: it has no line break and no broken UTF-8."""
    return not any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in value)
