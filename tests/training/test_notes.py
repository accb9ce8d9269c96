"""What a checkpoint notes is read, or is one line that says that it cannot be."""

import json
import random

import numpy as np
import pytest

from bitjax.data import load
from bitjax.methods import full_precision
from bitjax.models import MLP
from bitjax.training.keeper import Keeper
from bitjax.training.notes import read_notes, read_place
from bitjax.training.work import make_work
from tests.damage import swapped

NOTES = {
    "place": [1, "train", 3],
    "run": {"name": "a", "data": {"train": 10}},
    "stages": [{"name": "a", "steps": 10, "wall_seconds": 1.5, "accuracy": 0.5}],
    "fractional": {"a/kernel": 2.5, "b/kernel": [1.0, 2.0]},
    "seconds": 3.0,
    "stage_began": 1.5,
    "best": [0, 0.5],
    "commits": ["0123456789ab"],
}


def test_notes_come_back_and_those_of_older_versions_lack_some():
    found = read_notes(NOTES)
    assert found.stages[0].figures == {"accuracy": 0.5} and found.best == (0, 0.5)
    assert read_notes({k: v for k, v in NOTES.items() if k not in ("best", "commits", "run")})
    assert read_place(NOTES["place"], 2) == (1, "train", 3)


@pytest.mark.parametrize(
    "place",
    [None, [], 3, "abc", [2, "train", 0], [-1, "enter", 0], [0, "sleep", 0], [0, "train", -1],
     [0, "train", "1"], [{}, [], {}]],
)  # fmt: skip
def test_a_place_that_the_method_does_not_have_is_refused(place):
    with pytest.raises(ValueError, match="notes are not those of this version"):
        read_place(place, 2)


def test_notes_that_say_anything_are_read_or_one_line():
    draw, refused = random.Random(0), 0
    for _ in range(400):
        notes = json.loads(swapped(NOTES, draw, raw=False))
        try:
            found = read_notes(notes)
        except ValueError as error:
            refused += 1
            assert str(error).isprintable() and len(str(error)) < 600
        else:
            assert all(isinstance(stage.steps, int) for stage in found.stages)
            assert all(x.dtype == np.float32 for x in found.learned.values())
            assert found.seconds - found.stage_began + found.best[1] is not None
    assert refused > 100


def test_a_hash_of_an_older_version_is_of_the_same_run():
    work = make_work(
        full_precision(steps=1), MLP(()), load("digits", limit=20), facts={"config_hash": "new"}
    )
    work = work._replace(known_as=("new", "old"))
    keeper = Keeper(work)
    notes = NOTES | {"run": keeper.identity | {"config_hash": "old"}}
    keeper.check_own(notes, None)
    notes["run"]["config_hash"] = "other"
    with pytest.raises(ValueError, match="another run .config_hash: 'other' there, 'new' now"):
        keeper.check_own(notes, None)
