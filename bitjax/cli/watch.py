"""Watches runs while they go on: how far each is, its loss, score and bits, the time it will take.

bitjax watch runs/sweep

It looks at all runs below the folders until q or Ctrl-C is pressed, and changes nothing there.
`~` marks a score of the last training batch; without it, it is of the evaluation set.
"""

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from rich.live import Live

from bitjax.cli.arguments import Parser, a_folder
from bitjax.cli.show import console_of
from bitjax.report.live import live_table
from bitjax.runs.watch import Watch

try:
    import termios
    import tty
except ImportError:  # Windows has no such terminals: Ctrl-C ends the view
    termios = tty = None


@contextlib.contextmanager
def keys() -> Iterator[Callable[[float], bool]]:
    """A function that waits some seconds for q, Ctrl-C or SIGTERM; whether one came."""
    ended = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    # A shell's background job ignores Ctrl-C, which is for others.
    numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    # A read end and a write end: what a signal writes ends the wait at once.
    woken, wakes = os.pipe()

    def end(number, frame):
        del number, frame
        ended.append(True)
        os.write(wakes, b".")

    before = {number: signal.signal(number, end) for number in numbers}
    inputs = [woken]
    terminal = _terminal()
    kept = None
    try:
        if terminal is not None and termios is not None and tty is not None:
            kept = termios.tcgetattr(terminal)
            tty.setcbreak(terminal)
            inputs.append(terminal)

        def wait(seconds: float) -> bool:
            until = time.monotonic() + seconds
            while not ended and (left := until - time.monotonic()) > 0:
                ready = select.select(inputs, (), (), left)[0]
                if terminal in ready and os.read(terminal, 64).lower() in (b"q", b""):
                    return True  # the second: its end, where somebody closed the terminal
            return bool(ended)

        yield wait
    finally:
        if kept is not None and termios is not None and terminal is not None:
            termios.tcsetattr(terminal, termios.TCSADRAIN, kept)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(woken)
        os.close(wakes)


def _terminal() -> int | None:
    """The terminal that keys are pressed at; None where it is another job's, or there is none."""
    if termios is None or sys.stdin is None or not sys.stdin.isatty():
        return None
    number = sys.stdin.fileno()
    return number if os.tcgetpgrp(number) == os.getpgrp() else None


def main(argv: Sequence[str] | None = None) -> None:
    """Draws the runs below the folders, on a terminal until it is told to end."""
    parser = Parser(__doc__, "bitjax watch")
    add = parser.add_argument
    add("folders", nargs="+", type=a_folder, help="run folders, or folders that hold some")
    add("--once", action="store_true", help="print one picture and end, as into a pipe")
    parser.add_count("every", "seconds between two looks", default=2, most=3600)
    args = parser.read(argv)
    if missing := [folder for folder in args.folders if not os.path.isdir(folder)]:
        raise ValueError(f"there is no folder {missing[0]!r} to watch: name one that holds runs.")
    watch = Watch(args.folders)
    console = console_of()
    plain = console.options.ascii_only
    if args.once or not console.is_terminal:
        console.print(live_table(watch.look(), width=console.width, plain=plain))
        return
    with keys() as ended, Live(console=console, auto_refresh=False) as live:
        shown: object = None
        while True:
            now = (watch.look(), console.size)
            if now != shown:  # else there is nothing to draw
                runs, (width, lines) = shown = now
                table = live_table(runs, width=width, lines=lines, plain=plain)
                live.update(table, refresh=True)
            if ended(args.every):
                return
