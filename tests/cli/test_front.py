"""Whatever goes wrong, a command ends with one line, an exit code, and a traceback for who asks."""

import gc
import os
import re
from pathlib import Path

import pytest

from bitjax.cli.front import FAILED, REFUSED, front_door
from bitjax.cli.main import main
from tests.kept import cache_in


def ended(capsys, *words):
    """The command's exit code and the only line that it says."""
    with pytest.raises(SystemExit) as end:
        main(list(words))
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1, said
    return end.value.code, said


class Odd(Exception):
    def __str__(self):
        raise RuntimeError("not even this")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("two\nlines"), REFUSED, "two lines"),
        (ValueError("a \x1b[2J bell \x07"), REFUSED, r"a \x1b[2J bell \x07"),
        (ValueError("\udcff"), REFUSED, r"\udcff"),
        (ValueError(), REFUSED, "ValueError"),
        (FileNotFoundError(2, "No such file", "x.npz"), REFUSED, "[Errno 2] No such file: 'x.npz'"),
        (ImportError("install it"), REFUSED, "install it"),
        (OSError("the disk is full"), FAILED, "the disk is full"),
        (FloatingPointError("step 3 is not finite"), FAILED, "step 3 is not finite"),
    ],
    ids=repr,
)
def test_an_error_is_one_line_that_any_terminal_shows(error, code, line, capsys):
    with pytest.raises(SystemExit) as end, front_door():
        raise error
    assert (end.value.code, capsys.readouterr().err) == (code, f"error: {line}\n")


def test_a_long_line_is_cut_in_its_middle(capsys):
    with pytest.raises(SystemExit), front_door():
        raise ValueError("begins" + "x" * 100_000 + "ends")
    said = capsys.readouterr().err
    assert len(said) < 2100 and said.startswith("error: begins") and said.endswith("ends\n")


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError(), MemoryError(), Odd()], ids=repr)
def test_what_nobody_foresaw_is_one_line_that_says_where_its_traceback_is(error, capsys):
    with pytest.raises(SystemExit) as end, front_door():
        raise error
    said = capsys.readouterr().err
    assert end.value.code == FAILED and said.count("\n") == 1
    assert f"{type(error).__name__}: " in said and "test_front.py, line " in said
    path = Path(re.search(r"in (\S+\.traceback)\.", said)[1])
    kept = path.read_text()
    path.unlink()
    assert kept.startswith("bitjax ") and "Traceback (most recent call last)" in kept


def test_a_program_that_a_config_names_does_not_end_the_command_in_silence(capsys):
    with pytest.raises(SystemExit) as end, front_door():
        raise SystemExit(0)
    said = capsys.readouterr().err
    assert end.value.code == FAILED and "SystemExit: 0 (" in said and "test_front.py, line " in said


def test_a_traceback_is_shown_to_who_asks_for_it(capsys, monkeypatch):
    monkeypatch.setenv("BITJAX_TRACEBACK", "1")
    with pytest.raises(SystemExit), front_door():
        raise ValueError("no")
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said and said.endswith("error: no\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a\nb"], r"words must be text without control characters, got 'a\nb'"),
        (["\udcff.py"], r"got '\udcff.py'"),
        (["digits/float", "--workdir=a\0"], r"got '--workdir=a\x00'"),
        (["digits/float", "--workdir="], "--workdir must be given"),
        (["x" * 5000], "it is neither a file nor a shipped config"),
        (["digits/float", "--hosts=0"], "--hosts: must be an integer in [1, 10000], got '0'"),
        (["digits/float", "--hosts=2"], "`hosts` and `host` are of a run of several hosts"),
        (["digits/float", "--time_limit=nan"], "the time limit must be 0 (none) or more"),
        (["digits/float", "--time_limit=x"], "--time_limit: invalid float value: 'x'"),
    ],
    ids=str,
)
def test_a_command_line_that_cannot_be_meant_is_refused(words, message, capsys):
    if not any(word.startswith("--workdir") for word in words):
        words = [*words, "--workdir=X"]
    code, said = ended(capsys, "train", *words)
    assert code == REFUSED and message in said


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/x", "y" * 300, "/dev/null"])
def test_a_folder_that_cannot_be_is_refused_by_runs_and_sweeps(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    small = ["--config.model.name=mlp", f"--workdir={name}"]
    for words in (["train", "digits/float"], ["sweep", "digits/float", "--grid=seed=0,1"]):
        code, said = ended(capsys, *words, *small)
        assert code == REFUSED and f"the folder {name!r} must be one that can be written" in said


@pytest.mark.parametrize("name", ["folder.py", "pipe.py", "zero.py", "loop.py"])
def test_what_is_no_file_is_no_config_and_nothing_hangs(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("folder.py")
    os.mkfifo("pipe.py")
    os.symlink("/dev/zero", "zero.py")
    os.symlink("loop.py", "loop.py")
    code, said = ended(capsys, "train", name, "--workdir=X")
    assert code == REFUSED and f"config {name}: it is neither a file nor" in said


def test_the_help_says_that_a_config_is_run(capsys):
    for name in ("train", "sweep"):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert "name only files whose code you would run" in " ".join(
            capsys.readouterr().out.split()
        )


@pytest.mark.parametrize("compiles", [True, False])
def test_a_command_that_compiles_seldom_looks_for_cycles_and_leaves_all_as_it_was(
    compiles, tmp_path
):
    ours = gc.get_threshold()
    gc.set_threshold(700, 10, 10)  # Python's own
    try:
        with cache_in(tmp_path), front_door(compiles):
            assert (gc.get_threshold()[0] > 10_000) == compiles
        assert gc.get_threshold() == (700, 10, 10)
    finally:
        gc.set_threshold(*ours)
