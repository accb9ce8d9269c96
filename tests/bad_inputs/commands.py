"""Bad command lines: every flag that a command's help shows, and words that are none."""

import contextlib
import functools
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

from bitjax.cli.main import main
from tests.bad_inputs.judge import Case
from tests.run_folders import write_run

CONFIG = """
from bitjax.configs.base import get_config as base
def get_config():
    config = base()
    config.model = {"name": "mlp", "features": (4,), "num_classes": 10}
    config.data.name = "digits"
    config.method = {"name": "full_precision", "steps": 0}
    return config
"""

# Flags by what they take; the help names them all, a new one must be put here.
NUMBERS = {"--time_limit", "--hosts", "--host", "--slots", "--batch", "--confidence",
           "--trials", "--port", "--every"}  # fmt: skip
PATHS = {"--out", "--csv", "--markdown", "--json"}
TEXTS = {"--title", "--baseline", "--slurm", "--workdir", "--root", "--from", "--coordinator"}
CHOICES = {"--cost", "--executor", "--sampler"}
OTHER = {"--only", "--grid", "--sweep", "--range"}
SWITCHES = {"--group", "--no-model", "--help", "--once", "--watch"}

WRONG_NUMBERS = ("abc", "", "nan", "inf", "-1", "1e400", "-0.5", "0x", "3 4", "--", "None")
WRONG = {
    "--only": ("(", "*", "[a"),
    "--grid": ("", "seed", "seed=", "=3", "seed=a", "no.such=3", "seed=0,,1", "seed=0,0",
               "method=3", "seed=1e999", "seed=0\nmethod.steps=3"),
    "--range": ("", "seed", "seed=0:9", "method.steps=9:1", "method.steps=1:2:ln", "no.such=1:2"),
    "--sampler": ("", "optun", "OPTUNA"),
    "--sweep": ("nothing", "get_config", "a b", "__import__('os')"),
    "--cost": ("", "bopss", "accuracy", "BOPS"),
    "--executor": ("", "locall", "Slurm"),
    "--slurm": ("", "a", "=", "timeout_min=abc", "no_such_option=3"),
    "--coordinator": ("", "host", "host:port", ":", "host:99999"),
}  # fmt: skip


def flags_of(command: str) -> set[str]:
    """The flags in a command's help."""
    out = io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.suppress(SystemExit),
    ):  # what was said is judged
        main([command, "--help"])
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", out.getvalue())) - {"--config"}


@functools.cache
def _bases(folder: Path) -> dict[str, list[str]]:
    """A right command line of each command; none is ever run to its end."""
    config = folder / "own.py"
    config.write_text(CONFIG)
    run = write_run(folder / "right", rows=3)
    return {
        "train": ["train", str(config), "--workdir", str(folder / "run"), "--nodoctor"],
        "sweep": ["sweep", str(config), "--workdir", str(folder / "sweep"), "--grid", "seed=0,1",
                  "--executor", "print"],
        "watch": ["watch", str(run)],
        "compare": ["compare", str(run)],
        "inspect": ["inspect", str(run), "--no-model"],
        "prepare": ["prepare", "tfds:cifar10", "--root", str(folder / "tfds"), "--from", str(run)],
    }  # fmt: skip


def flags(folder: Path) -> Iterator[Case]:
    """Every flag of every command with wrong values, without one, and misspelt."""
    for command, base in _bases(folder).items():
        for flag in sorted(flags_of(command) - {"--help", "--verify", "--noverify"}):
            name = flag.removeprefix("--")
            names = (name, name.replace("_", " "), "words must be text")
            for value in wrong_of(flag, folder):
                words = [*base, flag, value] if value else [*base, f"{flag}="]
                yield Case(
                    f"{command} {flag} {value[:20]!r}",
                    functools.partial(main, words),
                    (*names, *value.split("=")[:1]),
                )
            if flag not in SWITCHES and wrong_of(flag, folder):
                yield Case(
                    f"{command} {flag} without a value",
                    functools.partial(main, [*base, flag]),
                    (name,),
                )
            for misspelt in (f"{flag}x", f"-{flag}", flag.upper()):
                yield Case(
                    f"{command} {misspelt}", functools.partial(main, [*base, misspelt]), (misspelt,)
                )
            if flag in SWITCHES:
                yield Case(
                    f"{command} {flag}=yes",
                    functools.partial(main, [*base, f"{flag}=yes"]),
                    (name,),
                )


def wrong_of(flag: str, folder: Path) -> tuple[str, ...]:
    """Wrong texts for a flag; none for a switch and for a free text."""
    if flag in NUMBERS:
        return WRONG_NUMBERS if flag != "--slots" else (*WRONG_NUMBERS, "2.5")
    if flag in PATHS:
        return (str(folder), str(folder / "no/such/folder/x"), "/dev/full", "a\0b", f"{'x' * 300}",
                str(folder / "right/config.json/x"))  # fmt: skip
    assert (
        flag in WRONG
        or flag in TEXTS | SWITCHES
        or flag.startswith(("--no", "--resume"))
        or (flag in ("--doctor", "--requeue", "--distributed", "--vectorize"))
    ), f"what does {flag} take? Say it in tests/bad_inputs/commands.py"
    return WRONG.get(flag, ())


def words(folder: Path) -> Iterator[Case]:
    """Commands that are none, and words that name nothing."""
    for text in ("trian", "TRAIN", "", "--", "-x", "--no", "train.py", "../cli", "__init__", "main",
                 "arguments", "os", "train\n", "tr ain"):  # fmt: skip
        yield Case(f"bitjax {text!r}", functools.partial(main, [text]), ("command", "bitjax"))
    fifo, loop = folder / "pipe.py", folder / "loop.py"
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    for command, base in _bases(folder).items():
        yield Case(f"{command} alone", functools.partial(main, [command]))
        # The table is of the folders that are runs; it lists the others with the reason.
        call = functools.partial(main, [*base, "no/such"])
        yield Case(f"{command} and one more", call, ("no/such",), may_pass=command == "compare")
        for text in ("", "no/such", "/dev/null", "a\nb", "x" * 5000, "\udcff", str(fifo),
                     str(loop), "digits", "digits/bitprunning", "configs/base.py:x"):  # fmt: skip
            args = [base[0], text, *base[2:]]
            yield Case(f"{command} {text[-16:]!r}", functools.partial(main, args))
    for said, program in PROGRAMS.items():
        path = folder / f"program{abs(hash(said))}.py"
        path.write_text(program)
        for command in ("train", "sweep"):
            args = [command, str(path), *_bases(folder)[command][2:]]
            yield Case(
                f"{command} a config that {said}", functools.partial(main, args), (path.name,)
            )


PROGRAMS = {
    "is empty": "",
    "is no Python": "def get_config(:",
    "raises": "def get_config():\n    raise RuntimeError('a\\nb')",
    "raises KeyError": "def get_config():\n    return {}['a']",
    "exits": "def get_config():\n    raise SystemExit(3)",
    "returns None": "def get_config():\n    pass",
    "returns a dict": "def get_config():\n    return {}",
    "imports nothing": "import no_such_module\ndef get_config():\n    pass",
    "recurs": "def get_config():\n    return get_config()",
    "has no function": "get_config = 3",
    "wants an argument": "def get_config(x):\n    pass",
    "lacks sections": "import ml_collections\nget_config = ml_collections.ConfigDict",
    "asserts": "assert 0\ndef get_config():\n    pass",
    "divides by zero": "1 / 0",
    "has a null byte": "a = '\0'",
}

SURFACES = {"flags": flags, "words": words}
