"""The command `bitjax`: one subcommand a file of this folder, imported when it is asked for."""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from absl import logging

import bitjax
from bitjax.cli.front import front_door

COMMANDS = {
    "train": "train one config and print its result",
    "sweep": "train a config many times: seeds, strengths, any key",
    "compare": "compare run folders: a table, a page, files",
    "inspect": "look into one run, site by site",
    "prepare": "prepare a data set of TensorFlow Datasets, once",
}
HELP = """\
usage: bitjax COMMAND ...

Finds out how few bits a neural network needs.

  bitjax train digits/bitpruning --workdir runs/d      a quantized network in a minute, on a CPU
  bitjax compare runs/d --out report.html              its figures, as a page

commands (each has --help):
{}
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a subcommand with the words behind its name."""
    with front_door():
        _run(*((sys.argv[1:] if argv is None else argv) or ["--help"]))


def _run(name: str, *words: str) -> None:
    if name in ("-h", "--help", "help"):
        print(HELP.format("\n".join(f"  {name:10}{about}" for name, about in COMMANDS.items())))
        return
    if name == "--version":
        print(f"bitjax {bitjax.__version__}")
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        asked = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(COMMANDS)}."
        raise ValueError(f"there is no command {name!r}; {asked} See bitjax --help.")
    # As `python -m` does: a user's models and configs may be in the folder that they are in.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    logging.set_verbosity(logging.WARNING)
    importlib.import_module(f"bitjax.cli.{name}").main(words)
