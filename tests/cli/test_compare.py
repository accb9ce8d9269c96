"""The command that compares, from its words to its files."""

import contextlib
import json
import random
import re
import shlex
import subprocess

import pytest

from bitjax.cli import compare, inspect
from bitjax.cli.show import print_result
from bitjax.launch.command import command_of
from bitjax.launch.config_files import load_config
from bitjax.launch.schema import plain
from bitjax.runs.folder import config_hash
from bitjax.runs.records import read_runs
from tests.damage import damage, swapped
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


def test_of_fifty_folders_the_damaged_are_a_line_each_and_the_others_are_compared(tmp_path, capsys):
    draw, root = random.Random(0), tmp_path / "runs"
    folders = [write_run(root / f"{n:02}", seed=n, rows=2) for n in range(50)]
    for folder in folders[::2]:
        name = draw.choice(
            ["result.json", "result.json", "config.json", "bits.csv", "metrics.jsonl"]
        )
        if name.endswith(".json") and draw.random() < 0.7:
            value = json.loads((folder / name).read_text())
            (folder / name).write_text(swapped(value, draw))
            if name == "config.json" and draw.random() < 0.7:
                hash_again(folder)
        else:
            damage(folder / name, draw)
    files = [tmp_path / f"report.{kind}" for kind in ("html", "csv", "md", "json")]
    flags = zip(("out", "csv", "markdown", "json"), files, strict=True)
    call(root, "--group", *(f"--{flag}={file}" for flag, file in flags))
    printed = capsys.readouterr().out
    assert all(line.isprintable() for line in printed.split("\n"))
    told = re.findall(rf"^not compared: {root}/(\d\d) .+$", printed, re.MULTILINE)
    assert told == sorted({*told}) and 10 < len(told) < 25 and all(int(n) % 2 == 0 for n in told)
    compared = json.loads(files[3].read_text())["runs"]
    assert len(compared) == 50 - len(told)
    assert {str(folder) for folder in folders[1::2]} <= {run["folder"] for run in compared}
    for file in files:
        assert all(line.isprintable() for line in file.read_text().split("\n"))
    for number in told[::3]:
        with pytest.raises(
            ValueError, match="^.*is damaged.*|^.*is .*not finished.*|^.*is of"
        ) as found:
            inspect.main([str(root / number), "--no-model"])
        assert str(found.value).isprintable()


def test_a_runs_name_is_no_markup(tmp_path, capsys):
    run = write_run(tmp_path / "run", name="[/x] [red]", method="[/y]", data="[/z]")
    print_result(json.loads((run / "result.json").read_text()), None)
    call(run)
    inspect.main([str(run), "--no-model"])
    assert capsys.readouterr().out.count("[/x] [red]") == 3


def hash_again(folder):
    """Has result.json vouch for a config.json that was changed."""
    with contextlib.suppress(ValueError, RecursionError, AttributeError):  # of any damage
        result = json.loads((folder / "result.json").read_text())
        result["config_hash"] = config_hash(json.loads((folder / "config.json").read_text()))
        (folder / "result.json").write_text(json.dumps(result))


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


def test_a_language_models_run_is_shown_by_its_perplexity(tmp_path, capsys):
    measured = {"perplexity": 3.79, "loss": 1.33, "[/x]": 0.5}
    run = write_run(tmp_path / "run", measured=measured, cache=1280, name="stories/w4")
    print_result(json.loads((run / "result.json").read_text()), None)
    printed = capsys.readouterr().out
    assert re.search(r"test perplexity after train [ │]+3\.7900 ", printed)
    assert re.search(r"cache, bytes per token [ │]+1280\.0 ", printed)
    inspect.main([str(run), "--no-model"])
    printed = capsys.readouterr().out
    assert re.search(r"  perplexity   3\.7900  .* Less is better\.\n", printed)
    assert "cache B/token   1280.0" in printed and "        [/x]   0.5000" in printed
    call(run, write_run(tmp_path / "images"), "--group")
    printed = capsys.readouterr().out
    assert "perplexity" in printed and "top-1 %" in printed and "less perplexity is" in printed


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
    assert lines[0] == "git checkout --detach 0123456789ab"
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
    assert """# config.rules was '[[".*", null]]'""" in command_of(run)


@pytest.mark.parametrize(
    "config", ["configs/gone.py", "../outside.py", "../outside.py:x; rm -rf y", "x $(rm -rf y).py"]
)
def test_a_config_that_is_not_shipped_is_never_run(tmp_path, monkeypatch, config):
    (tmp_path / "here").mkdir()
    (tmp_path / "outside.py").write_text("raise SystemExit('run!')")
    monkeypatch.chdir(tmp_path / "here")
    text = command_of(record(tmp_path, config))
    assert "not a shipped one" in text and "--config.seed=0" in text
    assert shlex.split(text.splitlines()[-1])[2] == config


@pytest.mark.parametrize("config", ["/etc/passwd", "-f.py", "--out=x.py", "digits/../base", ""])
def test_what_is_no_name_of_a_config_is_not_given_to_a_shell(tmp_path, config):
    text = command_of(record(tmp_path, config))
    assert "bitjax train" not in text and "is no name of a config file" in text


CALLS = ("# ", "git checkout --detach 0123456789ab", "bitjax train ")
NASTY = ["\n", "\r", "; touch pasted", "$(touch pasted)", "`touch pasted`", "| touch pasted #",
         "> pasted", "'", "!!", "\x1b[2J", "\x16\x04", "\u2028", "\\", '"', "-f", "--", "\t", " ",
         "&", "*", "~"]  # fmt: skip


def test_nothing_of_a_run_folder_is_a_word_of_the_shell(tmp_path):
    fine, draw, lines = record(tmp_path, "configs/digits/lsq.py"), random.Random(0), []

    def nasty():
        return "".join(draw.choices(NASTY, k=draw.randint(1, 4)))

    for _ in range(200):
        run = fine._replace(
            name=nasty(),
            commit=draw.choice([nasty(), "-f", "0123456789ab", "0123456789ab" + nasty()]),
            config=draw.choice([fine.config, f"{fine.config}:{nasty()}", nasty(), nasty() + ".py"]),
            settings={**fine.settings, nasty(): nasty(), "name": nasty(), "data": nasty()},
        )
        lines += command_of(run).splitlines()
    assert all(line.isprintable() and line.startswith(CALLS) for line in lines)
    # A shell that is typed into may not know comments: zsh does not.
    script = ["git() { :; }; bitjax() { :; }", *(line.replace("# ", ": ", 1) for line in lines)]
    done = subprocess.run(["sh", "-c", "\n".join(script)], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert not list(tmp_path.glob("*pasted*"))


def test_a_variant_that_its_config_refuses_tells_nothing(tmp_path):
    run = record(tmp_path, "configs/cifar10/resnet20_uniform.py:eight")
    assert "not known" in command_of(run)


def test_a_commit_with_changes_is_said_to_have_them(tmp_path):
    run = record(tmp_path, "configs/gone.py", commit="abcdef0+changes")
    lines = command_of(run).splitlines()
    assert lines[:2] == [
        "git checkout --detach abcdef0",
        "# its working tree had changes that no commit has",
    ]
