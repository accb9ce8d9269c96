"""The command itself, and that what is installed is whole and typed."""

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bitjax
from bitjax.cli.front import REFUSED
from bitjax.cli.main import COMMANDS, main
from tests.kept import cache_in

ROOT = Path(__file__).parents[2]


def said(capsys, *words):
    main(words)
    return capsys.readouterr().out


def test_the_help_lists_every_command_and_is_shown_without_words(capsys):
    text = said(capsys, "--help")
    assert text == said(capsys) and all(f"\n  {name} " in text for name in COMMANDS)
    assert said(capsys, "--version") == f"bitjax {bitjax.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_own_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and text.startswith(f"usage: bitjax {name} ")
    if name in ("train", "sweep"):
        assert "  digits/bitpruning " in text, "a newcomer finds the shipped configs"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_compiles_keeps_its_programs_for_the_next(name, tmp_path, capsys):
    with cache_in(tmp_path), pytest.raises(SystemExit):
        main([name, "--help"])
    assert (tmp_path / "programs").exists() == (name not in ("watch", "compare", "prepare"))


@pytest.mark.parametrize(
    ("word", "message"),
    [("trian", "'trian'; did you mean train?"), ("run!", "'run!'; it is one of train, sweep, ")],
)
def test_an_unknown_command_ends_in_one_line_with_the_nearest(word, message, capsys):
    with pytest.raises(SystemExit) as end:
        main([word])
    said = capsys.readouterr().err
    assert end.value.code == REFUSED and said.startswith(f"error: there is no command {message}")
    assert said.count("\n") == 1


def test_control_c_before_a_run_begins_ends_without_a_traceback(capsys, monkeypatch):
    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr("bitjax.cli.train.main", interrupted)
    with pytest.raises(SystemExit) as end:
        main(["train"])
    assert (end.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def test_every_folder_of_code_and_of_configs_is_in_the_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    folders = {p.parent for p in ROOT.glob("bitjax/**/*.py")}
    folders |= {p.parent for p in ROOT.glob("configs/**/*.py") if p.parent.name != "tables"}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    names = {f"bitjax.{n}" if n.startswith("configs") else n for n in names}
    assert set(setup["options"]["packages"].split()) == names


@pytest.mark.slow
def test_a_wrong_type_in_a_users_file_is_reported(tmp_path):
    pyrefly = shutil.which("pyrefly", path=Path(sys.executable).parent)
    assert pyrefly, "install the extra dev"
    file = tmp_path / "mine.py"
    file.write_text("import bitjax as bj\n\nbj.uniform(bits=4)\nbj.uniform(bits='four')\n")
    command = [pyrefly, "check", file, "--preset=default", f"--site-package-path={ROOT}"]
    # Of a package that is not marked by py.typed such a user's checker sees nothing.
    command += [f"--python-interpreter-path={sys.executable}"]
    command += ["--replace-untyped-imports-with-any=*"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "mine.py:4" in done.stdout and "mine.py:3" not in done.stdout, done.stdout
