"""A data set's fingerprint: the same in another place, another one after every change."""

import json
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.data import fingerprint, load
from tests.data.sets import encoded, picture, write_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITJAX_CACHE_DIR", str(tmp_path / "cache"))


def write_arrays(root, **changes):
    rng = np.random.default_rng(0)
    arrays = {f"x_{split}": rng.integers(256, size=(9, 4, 4), dtype=np.uint8) for split in SPLITS}
    arrays |= {f"y_{split}": np.arange(9) % 3 for split in SPLITS}
    root.mkdir(exist_ok=True)
    np.savez(root / "own.npz", **arrays | changes)


SPLITS = ("train", "test")


def write_images(root):
    write_folder(root, "train", (4, 3, 5))
    write_folder(root, "test", (2, 2, 2), start=50)


def found(kind, root):
    """The fingerprint of a set of each kind, as it comes back from a file."""
    options = {"folder": {}, "streamed": {"memory_limit": 0}, "npz": {}}[kind]
    name = "npz:own.npz" if kind == "npz" else "folder:."
    return json.loads(json.dumps(fingerprint(load(name, root=root, **options))))


def write(kind, root):
    (write_arrays if kind == "npz" else write_images)(root)


@pytest.mark.parametrize("kind", ["folder", "streamed", "npz"])
def test_a_copy_elsewhere_and_later_is_the_same_set(kind, tmp_path):
    write(kind, tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    for file in (tmp_path / "there").rglob("*.*"):
        os.utime(file, (1, 1))
    assert found(kind, tmp_path / "here") == found(kind, tmp_path / "there")


def swapped(one, other):
    one.rename(one.with_name("between"))
    other.rename(one)
    one.with_name("between").rename(other)


FILE = "class1/0004.png"
CHANGES = {
    "removed": lambda split: (split / FILE).unlink(),
    "added": lambda split: (split / "class1/9999.png").write_bytes(encoded(picture(9))),
    "renamed": lambda split: (split / FILE).rename(split / "class1/9999.png"),
    "moved": lambda split: (split / FILE).rename(split / "class2/0004.png"),
    "another size": lambda split: (split / FILE).write_bytes(encoded(picture(9)) + b"\0"),
    "classes swapped": lambda split: swapped(split / "class0", split / "class2"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["folder", "streamed"])
def test_every_change_of_a_folders_files_is_another_set(kind, change, tmp_path):
    write(kind, tmp_path)
    before = found(kind, tmp_path)
    CHANGES[change](tmp_path / "train")
    assert found(kind, tmp_path) != before


@pytest.mark.parametrize("array", ["x_train", "y_train", "x_test", "y_test"])
@pytest.mark.parametrize("change", ["one number", "one fewer"])
def test_every_change_of_arrays_is_another_set(array, change, tmp_path):
    write_arrays(tmp_path)
    before = found("npz", tmp_path)
    with np.load(tmp_path / "own.npz") as arrays:
        changed = dict(arrays)
    if change == "one number":
        changed[array][5] = 1 if array[0] == "y" else changed[array][5] ^ 1
    else:
        split = array[2:]
        changed |= {f"{each}_{split}": changed[f"{each}_{split}"][:-1] for each in "xy"}
    write_arrays(tmp_path, **changed)
    assert found("npz", tmp_path) != before


def test_a_class_that_comes_first_gives_other_labels_to_the_splits_that_lack_it(tmp_path):
    # The evaluation split's own files are the same as before: its labels are not.
    write_images(tmp_path)
    before = load("folder:.", root=tmp_path)
    shutil.copytree(tmp_path / "train/class0", tmp_path / "train/an_earlier_class")
    (tmp_path / "test/an_earlier_class").mkdir()
    after = load("folder:.", root=tmp_path)
    assert after.eval_labels.tolist() == (before.eval_labels + 1).tolist()
    assert fingerprint(after)["content"] != fingerprint(before)["content"]


def test_what_is_held_out_is_told_by_the_labels(tmp_path):
    write_images(tmp_path)
    whole, held = (load("folder:.", root=tmp_path, validation=count) for count in (0, 3))
    assert fingerprint(whole)["content"] == fingerprint(held)["content"]
    assert fingerprint(whole) != fingerprint(held)


def test_the_numbers_of_an_own_task_are_told_apart():
    # They have no class: a half and a quarter were both 0.
    digits = load("digits", limit=10)
    found = [
        fingerprint(digits._replace(labels=np.full(10, value, dtype)))["labels"]
        for value in (0.25, 0.5)
        for dtype in (np.float32, jnp.bfloat16)
    ]
    assert len({*found}) == 4
