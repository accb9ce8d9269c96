"""Finished runs become rows of a table; nothing else does."""

import json

import pytest

from experiments.tabulate import insert, keep, read, table


def result(seed, accuracy, **changes):
    bits = {k: {"integer": 3.0} for k in ("weights", "activations", "all", "inner")}
    return {
        "status": "finished",
        "name": "digits/method",
        "config": "configs/digits/method.py",
        "seed": seed,
        "accuracy": accuracy,
        "bits": bits,
        "cost": {"model_bytes": 2048.0, "bops": 1.5e6},
        "steps": 10,
        "wall_seconds": 3.0,
        **changes,
    }


def finished_run(folder, **fields):
    folder.mkdir()
    for name in ("bits.csv", "config.json"):
        (folder / name).write_text("{}")
    (folder / "result.json").write_text(json.dumps(result(**fields)))
    return folder


def test_seeds_of_a_config_share_a_row_of_means_and_spreads(tmp_path):
    for seed, accuracy in enumerate((0.90, 0.92)):
        keep(finished_run(tmp_path / f"run{seed}", seed=seed, accuracy=accuracy), tmp_path / "kept")
    row = table(read(tmp_path / "kept")).splitlines()[-1]
    assert row.startswith("| `configs/digits/method.py` | 91.00 ± 1.41 | 2 | 3.00 | 3.00 | 3.00 |")
    assert "| 2.0 | 1.5 | 10 | 3 |" in row


def test_a_run_that_stopped_early_is_not_kept(tmp_path):
    run = finished_run(tmp_path / "run", seed=0, accuracy=0.5, status="stopped")
    with pytest.raises(ValueError, match="is stopped, not finished: run its config again"):
        keep(run, tmp_path / "kept")


def test_the_table_replaces_what_stands_between_the_marks(tmp_path):
    path = tmp_path / "README.md"
    first, last = "<!-- results: written by a command -->", "<!-- end of results -->"
    path.write_text(f"before\n{first}\nold\n{last}\nafter\n")
    insert(path, "new")
    assert path.read_text() == f"before\n{first}\n\nnew\n\n{last}\nafter\n"


def test_a_mark_without_its_end_is_an_error_and_what_follows_it_stays(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(whole := "before\n<!-- results: written by a command -->\nafter: ±\n", "utf-8")
    with pytest.raises(ValueError, match="but no '<!-- end of results -->' behind it"):
        insert(path, "new")
    assert path.read_text("utf-8") == whole
