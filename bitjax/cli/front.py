"""How every command ends: what went wrong is one line on stderr and an exit code, no traceback.

2: what was given is wrong, or something that it needs is not here. 1: it failed on the way. 75: it
was stopped and can be resumed. 130: it was interrupted.
"""

import contextlib
import gc
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Iterator

import bitjax
from bitjax.launch.programs import NOT_A_USERS, place_of, text_of

REFUSED, FAILED, INTERRUPTED = 2, 1, 130
TRACEBACK = "BITJAX_TRACEBACK"  # in the environment: show the traceback of every error
_LONGEST = 2000  # letters of a line; a message may quote what a user wrote
# Objects between two looks for cycles; Python's 700 take a fifth of the time of tracing, which
# makes many objects that last.
_RARELY = (50_000, 20, 50)


@contextlib.contextmanager
def front_door(compiles: bool = False) -> Iterator[None]:
    """Ends the program with one line at any error; around everything that a command does.

    A command that `compiles` keeps its programs, and finds those of earlier ones. Meanwhile Python
    looks for cycles of objects less often.
    """
    often = gc.get_threshold()
    try:
        if compiles:
            gc.set_threshold(*_RARELY)
            from bitjax.files.programs import keep_programs  # it loads JAX

            keep_programs()
        yield
    except KeyboardInterrupt:  # a run that has begun stops by itself, saved
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except SystemExit as error:  # ours, or that of a program that a config names, which is silent
        command = getattr(sys.modules["__main__"], "__file__", None) or "<"
        if place := place_of(error, (*NOT_A_USERS, command)):
            _end(error, f"SystemExit: {error} ({place}) ended the command.", FAILED)
        raise
    except (ValueError, FileNotFoundError, ImportError) as error:
        _end(error, _line(error), REFUSED)
    except (OSError, FloatingPointError) as error:  # the second: a run that diverged
        _end(error, _line(error), FAILED)
    except Exception as error:  # nobody foresaw it: a fault of ours, or of code that a config names
        _end(error, _unforeseen(error), FAILED)
    finally:
        gc.set_threshold(*often)


def _end(error: BaseException, line: str, code: int) -> None:
    if os.environ.get(TRACEBACK, "0") not in ("", "0"):
        traceback.print_exception(error)
    print(f"error: {line}", file=sys.stderr)
    sys.exit(code)


def _line(error: BaseException) -> str:
    """An error's message in one line that any terminal can show."""
    text = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text_of(error)
    )
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 500]} ... {text[-500:]}"


def _unforeseen(error: Exception) -> str:
    """What to say of an error that should not have come here, and where its traceback is."""
    return (
        f"{type(error).__name__}: {_line(error)[:500]} ({place_of(error)}). Nothing foresaw this. "
        f"If it is bitjax's fault, please report it with the traceback {_keep(error)}."
    )


def _keep(error: Exception) -> str:
    """Writes the traceback to a file of its own; where it is."""
    words = f"bitjax {bitjax.__version__}, Python {platform.python_version()}: {sys.argv}\n"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="bitjax-", suffix=".traceback", delete=False, errors="backslashreplace"
        ) as file:
            file.write(words + "".join(traceback.format_exception(error)))
    except OSError:
        return f"which {TRACEBACK}=1 in the environment shows"
    return f"in {file.name}"
