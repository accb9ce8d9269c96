"""A run folder is of one run, and says so where another one, or none, is found in it."""

import errno
import fcntl
import hashlib
import json
import os

import pytest
from bitjax.configs.base import get_config

from bitjax.launch.schema import plain
from bitjax.runs.folder import (
    CAME,
    EARLIER,
    LATER,
    check_holds_runs,
    config_hash,
    flatten,
    is_hash_of,
    open_run,
)
from bitjax.runs.lock import LOCK
from bitjax.runs.manifest import write_manifest

CONFIG = {"seed": 0, "method": {"steps": 3}}
OTHER = {"seed": 1, "method": {"steps": 3}}


def write_result(folder, config):
    (folder / "result.json").write_text(json.dumps({"config_hash": config_hash(config)}))


def write_checkpoint(folder, config):
    place = folder / "checkpoints" / "10"
    place.mkdir(parents=True)
    run = {"config_hash": config_hash(config)} if config else {}
    write_manifest(place, {"step": 10, "meta": {"run": run}, "leaves": {}})


@pytest.mark.parametrize("write", [write_result, write_checkpoint])
def test_what_a_run_left_tells_whose_it_is_where_its_config_is_gone(write, tmp_path):
    write(tmp_path, CONFIG)
    hashes = f"hash: {config_hash(CONFIG)} there, {config_hash(OTHER)} now"
    with pytest.raises(
        ValueError, match=rf"holds a run of a different config \({hashes}\). Choose"
    ):
        open_run(tmp_path, OTHER, True)
    assert not (tmp_path / "config.json").exists()
    open_run(tmp_path, CONFIG, True)
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


@pytest.mark.parametrize(
    "leave",
    [
        lambda folder: write_checkpoint(folder, None),
        lambda folder: (folder / "metrics.jsonl").write_text(""),
        lambda folder: (folder / "result.json").write_text("{"),
    ],
    ids=["checkpoint of an older version", "metrics", "damaged result"],
)
def test_a_run_that_nothing_names_is_left_alone(leave, tmp_path):
    leave(tmp_path)
    with pytest.raises(ValueError, match="is damaged: there is no config.json: restore the file"):
        open_run(tmp_path, CONFIG, True)
    assert not (tmp_path / "config.json").exists()


def test_a_result_is_not_overwritten_by_another_run(tmp_path):
    # As in results/, which keeps neither checkpoints nor metrics.
    open_run(tmp_path, CONFIG, True)
    write_result(tmp_path, CONFIG)
    with pytest.raises(ValueError, match=r"different config \(seed: 0 there, 1 now\)"):
        open_run(tmp_path, OTHER, True)


def test_a_folder_of_other_runs_is_no_run_but_a_run_that_is_one_goes_on(tmp_path):
    open_run(tmp_path / "first", CONFIG, True)
    with pytest.raises(
        ValueError, match=r"holds other runs, such as 'first'\. Choose one of its ow"
    ):
        open_run(tmp_path, CONFIG, True)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "metrics.jsonl").write_text("")
    open_run(tmp_path, CONFIG, True)


def test_runs_are_not_made_inside_of_a_run(tmp_path):
    check_holds_runs(tmp_path)
    open_run(tmp_path, CONFIG, True)
    with pytest.raises(ValueError, match="is a run's own. Choose another for the runs' folders"):
        check_holds_runs(tmp_path)


def test_a_folder_that_was_refused_is_free_for_others(tmp_path):
    open_run(tmp_path, CONFIG, True)
    write_result(tmp_path, CONFIG)
    with pytest.raises(ValueError, match="different config"):
        open_run(tmp_path, OTHER, True)
    with open(tmp_path / LOCK) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_folder_that_cannot_be_cleared_is_free_for_others(tmp_path):
    (tmp_path / f".{'0' * 16}.tmp").mkdir()  # no writer of ours leaves a folder
    with pytest.raises(ValueError, match="must be one that can be written, got"):
        open_run(tmp_path, CONFIG, True)
    with (tmp_path / LOCK).open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_full_disk_is_named_with_its_remedy(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="Free space or quota"):
        patch.setattr(os, "open", full)
        open_run(tmp_path / "run", CONFIG, True)
    open_run(tmp_path / "run", CONFIG, True)


def with_keys(config, keys, **values):
    """The config as a version has it that knows these keys, all of them or a few set."""
    found = json.loads(json.dumps(config))
    for key, value in {**keys, **values}.items():
        *sections, name = key.split(".")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return found


def test_the_hash_of_the_defaults_stays_with_every_key_that_comes():
    # A key that is new in configs/base.py goes into LATER, or every stored run is another's.
    assert config_hash(plain(get_config())) == "3e0319c93890"
    base = flatten(plain(get_config()))
    assert {key: base[key] for key in CAME} == CAME


@pytest.mark.parametrize("known", [{}, EARLIER, EARLIER | {"sums": False}], ids=len)
def test_a_folder_that_lacks_what_came_later_is_gone_on_with(known, tmp_path):
    then, now = with_keys(CONFIG, known), with_keys(CONFIG, CAME)
    digest = hashlib.sha256(json.dumps(then, sort_keys=True).encode()).hexdigest()[:12]
    assert is_hash_of(digest, now) and is_hash_of(digest, then)
    assert is_hash_of(config_hash(now), then) == bool(known)
    open_run(tmp_path, then, True)
    (tmp_path / "result.json").write_text(json.dumps({"config_hash": digest}))
    write_checkpoint(tmp_path, then)
    open_run(tmp_path, now, True).joinpath("config.json").unlink()
    open_run(tmp_path, now, True)
    assert not is_hash_of(digest, with_keys(OTHER, CAME))


@pytest.mark.parametrize("key", CAME)
def test_a_key_that_came_and_is_set_makes_another_run(key, tmp_path):
    now = with_keys(CONFIG, CAME, **{key: "set"})
    assert not is_hash_of(config_hash(CONFIG), now)
    open_run(tmp_path, CONFIG, True)
    write_result(tmp_path, CONFIG)
    with pytest.raises(ValueError, match=rf"different config \({key}: .* there, 'set' now\)"):
        open_run(tmp_path, now, True)


def test_a_hash_that_counted_sums_is_not_of_a_run_without_them():
    text = json.dumps({**CONFIG, "sums": True}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert is_hash_of(digest, with_keys(CONFIG, LATER, sums=True))
    assert not is_hash_of(digest, with_keys(CONFIG, LATER))
