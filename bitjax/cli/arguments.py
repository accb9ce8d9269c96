"""Command lines without a config: argparse, whose complaints end in one line as everyone's here.

Flags of absl are global to a process, where two commands may not both have an `--out`.
"""

import argparse
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """A parser that shows its module's docstring as help.

    Args:
      text: the docstring.
    """

    def __init__(self, text: str | None):
        super().__init__(
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Ends the program with one line."""
        sys.exit(f"error: {message}. See --help.")
