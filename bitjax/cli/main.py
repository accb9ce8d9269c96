"""The command `bitjax`: one subcommand a file of this folder, imported when it is asked for.

This file imports next to nothing: Ctrl-C is minded before JAX loads, which takes a second.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from bitjax import __version__
from bitjax.cli.front import front_door
from bitjax.cli.process import ends_at_sigint, outlives_its_readers
from bitjax.files.cache import cache_folder

COMMANDS = {
    "train": "train one config and print its result",
    "sweep": "train a config many times: seeds, strengths, any key",
    "watch": "watch runs while they go on: progress, loss, bits, time left",
    "compare": "compare run folders: a table, a page, files",
    "inspect": "look into one run, site by site",
    "export": "write a run's model to files that other tools run",
    "prepare": "prepare a data set of TensorFlow Datasets, once",
}
COMPILES = ("train", "sweep", "inspect", "export")
WORKS = ("train", "sweep")  # in a folder, which has more than what is printed
HELP = """\
usage: bitjax COMMAND ...

Finds out how few bits a neural network needs.

  bitjax train digits/bitpruning --workdir runs/d      a quantized network in a minute, on a CPU
  bitjax compare runs/d --out report.html              its figures, as a page

commands (each has --help):
{}

Compiled programs and decoded data are kept for later runs; the folder is {}.
BITJAX_CACHE_DIR in the environment names another, or none where it is empty.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a subcommand with the words behind its name."""
    with ends_at_sigint():
        name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
        with outlives_its_readers(works=name in WORKS), front_door(compiles=name in COMPILES):
            _run(name, words)


def _run(name: str, words: list[str]) -> None:
    if name in ("-h", "--help", "help"):
        commands = "\n".join(f"  {name:10}{about}" for name, about in COMMANDS.items())
        print(HELP.format(commands, cache_folder() or "none"))
        return
    if name == "--version":
        print(f"bitjax {__version__}")
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        asked = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(COMMANDS)}."
        raise ValueError(f"there is no command {name!r}; {asked} See bitjax --help.")
    # As `python -m` does: a user's models and configs may be in the folder that they are in.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    from absl import logging

    logging.set_verbosity(logging.WARNING)
    importlib.import_module(f"bitjax.cli.{name}").main(words)
