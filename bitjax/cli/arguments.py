"""Parses what the command lines share: switches, the config that they name, its overrides."""

import argparse
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import NoReturn

from bitjax.launch.programs import is_text, shown


def a_folder(text: str) -> str:
    """A folder's name; the empty one would be the folder that the command is called in."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name names no folder, '.' is this one")
    return text


class Parser(argparse.ArgumentParser):
    """A parser that shows its module's docstring as help and complains in one line."""

    def __init__(self, text: str | None, command: str):
        super().__init__(
            prog=command,
            description="\n".join(map(_fill, (text or "").split("\n\n"))),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._takes_config = False

    def add_switch(self, name: str, help: str, *, default: bool = False) -> None:
        """Adds `--name` and `--noname`."""
        for word, value in ((name, True), (f"no{name}", False)):
            about = argparse.SUPPRESS if value == default else help if value else f"do not {help}"
            self.add_argument(
                f"--{word}",
                action="store_const",
                const=value,
                dest=name,
                default=default,
                help=about,
            )

    def add_count(
        self, name: str, help: str, *, least: int = 1, most: int = 10_000, default: int | None = 0
    ) -> None:
        """Adds `--name` with an integer in its bounds."""

        def count(text: str) -> int:
            try:
                value = int(text)
            except ValueError:
                value = least - 1
            if not least <= value <= most:
                wanted = f"an integer in [{least}, {most}]"
                raise argparse.ArgumentTypeError(f"must be {wanted}, got {shown(text)}")
            return value

        self.add_argument(f"--{name}", type=count, default=default, help=help, metavar="N")

    def add_file(self, name: str, help: str, *, default: str = "", kinds: str = "") -> None:
        """Adds `--name`, a file to write in a folder that is there; of one of the kinds, if any."""

        def file(text: str) -> str:
            folder = os.path.dirname(text) or "."
            if not os.access(folder, os.W_OK | os.X_OK) or os.path.isdir(text):
                why = "must be a file in a folder that is there and can be written"
                raise argparse.ArgumentTypeError(f"{why}, got {shown(text)}")
            if kinds and not text.endswith(tuple(kinds.split())):
                raise argparse.ArgumentTypeError(f"must end in one of {kinds}, got {shown(text)}")
            return text

        self.add_argument(f"--{name}", type=file, default=default, help=help, metavar="FILE")

    def add_config(self, workdir: str = "") -> None:
        """Adds the config, by position or as `--config`, its overrides and perhaps `--workdir`."""
        self._takes_config = True
        if workdir:
            self.add_argument("--workdir", default="", help=workdir)
        self.usage = f"{self.prog} CONFIG [--config.key=value ...] [options]"
        what = "a shipped config's name, or a file NAME.py, perhaps with :VARIANT. "
        what += "It is a program, which is run: name only files whose code you would run"
        self.add_argument("config", nargs="?", help=what, default="")
        self.add_argument("--config", dest="named", help=argparse.SUPPRESS, default="")

    def read(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """The arguments; `config` as records name it, `overrides` the `--config.key=value` ones."""
        argv = list(sys.argv[1:] if argv is None else argv)
        if strange := [word for word in argv if not is_text(word)]:
            self.error(f"words must be text without control characters, got {strange[0]!r}")
        overrides = [a for a in argv if self._takes_config and re.match(r"--?(no)?config\.", a)]
        args, unknown = self.parse_known_args([a for a in argv if a not in overrides])
        if unknown:
            self.error(f"unknown arguments {unknown}")
        if self._takes_config:
            self._find_config(args)
        return argparse.Namespace(**vars(args), overrides=overrides)

    def format_help(self) -> str:
        """The help, with the shipped configs below it where one is to be chosen."""
        text = super().format_help()
        return f"{text}\n{_shipped()}" if self._takes_config else text

    def error(self, message: str) -> NoReturn:
        """Refuses the command line."""
        raise ValueError(f"{message}. See {self.prog} --help.")

    def _find_config(self, args: argparse.Namespace) -> None:
        from bitjax.launch.config_files import recorded_name

        if args.config and args.named:
            self.error(f"one config at a time, got {args.config} and {args.named}")
        if not (args.config or args.named):
            self.error("name a config, such as digits/bitpruning; the help lists the shipped ones")
        if not getattr(args, "workdir", "none"):
            self.error("--workdir must be given")
        args.config = recorded_name(args.config or args.named)


def _width() -> int:
    """Letters of a line of help."""
    return min(100, shutil.get_terminal_size().columns) - 2


def _fill(paragraph: str) -> str:
    """A paragraph of help; one with a command's line stays as it is."""
    lines = paragraph.strip().splitlines()
    if any(line.startswith(("bitjax ", " ")) for line in lines):
        return paragraph.strip() + "\n"
    return textwrap.fill(" ".join(lines), _width()) + "\n"


def _shipped() -> str:
    """Names of the shipped configs, a folder's in a paragraph."""
    from bitjax.launch.config_files import shipped_configs

    folders: dict[str, list[str]] = {}
    for name in shipped_configs():
        folders.setdefault(name.split("/")[0], []).append(name)
    paragraphs = [
        textwrap.fill(" ".join(names), _width(), initial_indent="  ", subsequent_indent="  ")
        for names in folders.values()
    ]
    return "\n".join(["shipped configs, whose files say what they reproduce:", *paragraphs, ""])
