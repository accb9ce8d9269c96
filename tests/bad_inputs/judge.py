"""Judges a call with a bad input: is it refused in one deliberate line that names the culprit?"""

import argparse
import contextlib
import dis
import io
import os
import re
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import bitjax

SECONDS = 20  # for one case, most of which take milliseconds
MEMORY = 3 << 30  # bytes that a case may take besides what the process has
HOUSE = str(Path(bitjax.__file__).parent)
# Words of Python's and of libraries: an address, advice to read files unsafely, a fault of code.
FOREIGN = re.compile(
    r" at 0x|allow_pickle|unsafely|pickle\.load|'NoneType'|unhashable|not supported between"
    r"|object is not|has no attribute|Nothing foresaw|Traceback"
)
KINDS = (ValueError, TypeError, OSError, ImportError)


class Case(NamedTuple):
    """A call with one bad input.

    Attributes:
      name: what identifies the case to a reader.
      call: makes it.
      names: words of which the message must have one: the argument, the key or the file.
      good: whether the call must be accepted instead.
      may_pass: whether it may be accepted too, where nobody can tell that the input is bad.
    """

    name: str
    call: Callable[[], Any]
    names: tuple[str, ...] = ()
    good: bool = False
    may_pass: bool = False


class Hang(BaseException):
    """A case took too long; a BaseException, so that nothing takes it for an error."""


def fault_of(case: Case) -> str | None:
    """What is wrong with how a case ends, in one line; None if nothing is."""
    out = io.StringIO()
    try:
        with _bounded(), warnings.catch_warnings(), contextlib.redirect_stderr(out):
            warnings.simplefilter("ignore")  # what is refused may warn before
            with contextlib.redirect_stdout(io.StringIO()):
                case.call()
    except Hang:
        return f"hangs for more than {SECONDS} s"
    except BaseException as error:  # whatever a case ends with is judged
        if isinstance(error, KeyboardInterrupt):
            raise
        found = _fault_of_error(error, case.names, out.getvalue())
        return f"is refused: {_short(error)}" if case.good else found
    return None if case.good or case.may_pass else "is accepted"


def _fault_of_error(error: BaseException, names: tuple[str, ...], printed: str) -> str | None:
    text = str(error)
    if isinstance(error, SystemExit):
        text = error.code if isinstance(error.code, str) else printed.strip()
        inner = error.__context__
        if not re.match(r"error: ", text):
            return f"ends with {error.code!r} and prints {text[-200:]!r}"
        if isinstance(inner, Exception) and not isinstance(inner, argparse.ArgumentError):
            if leaked := _leak(inner):
                return leaked
    elif leaked := _leak(error):
        return leaked
    if len(text.splitlines()) != 1:
        return f"is refused in {len(text.splitlines())} lines: {text!r}"
    if FOREIGN.search(text):
        return f"is refused in a library's words: {text}"
    if names and not any(name in text for name in names):
        return f"is refused without naming {' or '.join(names)}: {text}"
    return None


def _leak(error: BaseException) -> str | None:
    """What is said of an error that no `raise` of bitjax made, or that is of another kind."""
    at, trace = None, error.__traceback__
    while trace is not None:
        at, trace = trace, trace.tb_next
    if at is None:
        return f"no traceback: {_short(error)}"
    code = at.tb_frame.f_code
    place = f"{os.path.relpath(code.co_filename, Path(HOUSE).parent)}:{at.tb_lineno}"
    raised = code.co_code[at.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    if not (code.co_filename.startswith(HOUSE) and raised and isinstance(error, KINDS)):
        return f"traceback: {_short(error)} at {place}{_ours(error)}"
    return None


def _ours(error: BaseException) -> str:
    """The innermost line of bitjax on the way to an error."""
    at, trace = "", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name.startswith(HOUSE):
            at = f" from {os.path.relpath(name, Path(HOUSE).parent)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return at


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Bounds the time and the memory of what is run inside."""

    def stop(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
