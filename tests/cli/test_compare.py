"""The command that compares, from its words to its files."""

import json
import shlex

import pytest

from bitjax.cli import compare
from bitjax.launch.command import command_of
from bitjax.launch.config_files import load_config
from bitjax.launch.schema import plain
from bitjax.runs.records import read_runs
from tests.run_folders import write_run


def call(*words):
    """The command in this process."""
    compare.main([str(word) for word in words])


def error_of(*words):
    with pytest.raises(ValueError) as found:
        call(*words)
    assert "\n" not in str(found.value)
    return str(found.value)


@pytest.fixture
def runs(tmp_path):
    return [
        write_run(tmp_path / "runs" / f"{method}{seed}", method=method, seed=seed,
                  accuracy=accuracy - 0.01 * seed, bits=bits)
        for method, accuracy, bits in (("full_precision", 0.95, (32, 32)), ("lsq", 0.9, (4, 4)))
        for seed in (0, 1)
    ]  # fmt: skip


def test_the_table_is_printed_and_every_file_asked_for_is_written(tmp_path, runs, capsys):
    names = [tmp_path / f"report.{kind}" for kind in ("html", "csv", "md", "json")]
    flags_ = [f"--{flag}={name}" for flag, name in zip(("out", "csv", "markdown", "json"), names,
                                                       strict=True)]  # fmt: skip
    call(*runs, *flags_)
    printed = capsys.readouterr().out
    assert "lsq" in printed and "89.50 ± 0.71" in printed and "baseline" in printed
    assert all(name.stat().st_size > 500 for name in names)
    assert len(json.loads(names[3].read_text())["runs"]) == 4
    assert "bitjax train" in names[0].read_text()


def test_unfit_folders_are_listed_and_the_rest_is_compared(tmp_path, runs, capsys):
    (runs[1] / "result.json").unlink()
    call(*runs, tmp_path / "missing")
    printed = capsys.readouterr().out
    assert f"not compared: {runs[1]} is not finished" in printed
    assert f"not compared: {tmp_path / 'missing'} does not exist" in printed
    assert "lsq" in printed and "89.50 ± 0.71" in printed


def test_an_empty_selection_says_what_was_looked_for(tmp_path, runs):
    (tmp_path / "empty").mkdir()
    said = error_of(*runs, "--only=tsq")
    assert "a result.json of status 'finished' and a name with 'tsq'" in said
    assert str(runs[0]) in said and "4 are finished" in said
    assert "looked for folders with a result.json" in error_of(tmp_path / "empty")
    assert "the following arguments are required: runs" in error_of()


def test_only_some_runs_may_be_chosen(runs, capsys):
    call(*runs, "--only=lsq")
    assert "no float run" in capsys.readouterr().out


def test_wrong_words_end_in_one_line(runs):
    assert "invalid choice: 'watts' (choose from" in error_of(*runs, "--cost=watts")
    assert "--confidence must be in (0, 1), got 2.0" in error_of(*runs, "--confidence=2")
    assert "unknown arguments ['--nothing']" in error_of(*runs, "--nothing")
    assert "--only must be a regular expression, got '(': " in error_of(*runs, "--only=(")
    assert "--csv: must be a file in a folder that is" in error_of(*runs, "--csv=/no/such/file")


def test_groups_must_be_asked_for(tmp_path, runs, capsys):
    other = write_run(tmp_path / "other", data="cifar10", name="cifar10/lsq")
    assert "option group" in error_of(*runs, other)
    call(*runs, other, "--group")
    printed = capsys.readouterr().out
    assert "on digits" in printed and "on cifar10" in printed


def record(tmp_path, config, changes=(), commit="0123456789ab", **settings):
    """A run's record: the settings of a shipped config with some of them changed."""
    spec = plain(load_config("digits/lsq")) | settings
    spec["method"] = {**spec["method"], **dict(changes)}
    folder = write_run(tmp_path / "run", seed=spec["seed"], config=config, settings=spec)
    return read_runs([folder])[0][0]._replace(commit=commit)


def test_a_command_has_the_seed_and_every_setting_that_was_overridden(tmp_path):
    changes = {"learning_rate": 0.5}
    run = record(tmp_path, "configs/digits/lsq.py", changes, seed=3, name="it's b")
    lines = command_of(run).splitlines()
    assert lines[0] == "git checkout 0123456789ab"
    assert shlex.split(lines[-1]) == [
        *"bitjax train configs/digits/lsq.py --workdir runs/digits-lsq-seed3".split(),
        *("--config.method.learning_rate=0.5", "--config.name=it's b", "--config.seed=3"),
    ]


def test_a_variant_is_compared_with_its_own_settings(tmp_path):
    config = "configs/cifar10/resnet20_uniform.py:w4a4"
    spec = plain(load_config(config))
    run = record(tmp_path, config)._replace(settings=json.loads(json.dumps(spec)))
    assert command_of(run).splitlines()[-1].split()[-2] == "--workdir"


def test_what_no_override_can_say_is_said_in_a_comment(tmp_path):
    run = record(tmp_path, "configs/digits/lsq.py", rules=[[".*", None]])
    assert '# config.rules was [[".*", null]]' in command_of(run)


@pytest.mark.parametrize(
    "config", ["configs/gone.py", "../outside.py", "/etc/passwd", "x; rm -rf y", "digits/../base"]
)
def test_a_config_that_is_not_shipped_is_never_run(tmp_path, monkeypatch, config):
    (tmp_path / "here").mkdir()
    (tmp_path / "outside.py").write_text("raise SystemExit('run!')")
    monkeypatch.chdir(tmp_path / "here")
    text = command_of(record(tmp_path, config))
    assert "not a shipped one" in text and "--config.seed=0" in text
    assert shlex.split(text.splitlines()[-1])[2] == config


def test_a_variant_that_its_config_refuses_tells_nothing(tmp_path):
    run = record(tmp_path, "configs/cifar10/resnet20_uniform.py:eight")
    assert "not known" in command_of(run)


def test_a_commit_with_changes_is_said_to_have_them(tmp_path):
    run = record(tmp_path, "configs/gone.py", commit="abc+changes")
    lines = command_of(run).splitlines()
    assert lines[:2] == ["git checkout abc", "# its working tree had changes that no commit has"]
