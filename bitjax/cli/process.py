"""A command among other processes: Ctrl-C while it starts, and a reader that goes away."""

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from typing import TextIO

_LOST = "what is printed is lost ({}); the work goes on"


class _Output(io.FileIO):
    """Standard output or error, which drops what cannot be written; `error` says why."""

    error: OSError | None = None
    notice = ""

    def write(self, data, /) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            if self.error is None and self.notice:
                _say(self.notice.format(error.strerror))
            self.error = error
            return len(data)


def _say(line: str) -> None:
    """Writes a line to standard error, if that can be; also in a signal's handler."""
    with contextlib.suppress(OSError):  # nobody may read it any more
        os.write(2, f"{line}\n".encode())


@contextlib.contextmanager
def ends_at_sigint() -> Iterator[None]:
    """Has SIGINT end a command at once, until the command listens to it by itself."""

    def end(number, frame):
        del number, frame
        _say("interrupted")
        # A KeyboardInterrupt that is raised while JAX's extension modules load dumps core, and one
        # that is raised in a callback is swallowed.
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # a shell's background job: Ctrl-C is for the others
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is end:
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def outlives_its_readers(works: bool) -> Iterator[None]:
    """Has a command do all its work, whoever stops to read what it prints.

    `bitjax train ... | head` trains to the end, and `bitjax compare ... --out page | head` writes
    the page. A command that `works` in a folder says in a line that its words are lost. Any other
    has failed if its words are lost to a full disk.
    """
    for number in range(3):  # Else a file that is opened later is mistaken for a closed output.
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    out, err = _Output(1, "w", closefd=False), _Output(2, "w", closefd=False)
    out.notice = _LOST if works else ""
    streams = contextlib.ExitStack()
    # A test's or a notebook's streams are their own affair.
    if sys.stdout is sys.__stdout__:
        streams.enter_context(contextlib.redirect_stdout(_text(out, sys.__stdout__)))
    if sys.stderr is sys.__stderr__:
        streams.enter_context(contextlib.redirect_stderr(_text(err, sys.__stderr__)))
    with streams:
        try:
            yield
        finally:
            print(end="", flush=True)
    if out.error is not None and out.error.errno != errno.EPIPE and not works:
        sys.exit(f"error: what is printed could not be written ({out.error.strerror}).")


def _text(output: _Output, like: TextIO | None) -> TextIO:
    """A stream of text like Python's own, None where that was closed."""
    if not isinstance(like, io.TextIOWrapper):
        return io.TextIOWrapper(output, write_through=True)
    like.flush()
    return io.TextIOWrapper(
        output if like.write_through else io.BufferedWriter(output),
        encoding=like.encoding,
        errors=like.errors,
        line_buffering=like.line_buffering,
        write_through=like.write_through,
    )
