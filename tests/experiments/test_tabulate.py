"""Finished runs become rows of a table; nothing else does."""

import itertools
import json

import pytest

from bitjax.runs.rows import read_rows
from experiments.tabulate import ROOT, insert, keep, read, table
from tests.run_folders import write_run


def test_seeds_of_a_config_share_a_row_of_means_and_spreads(tmp_path):
    for seed, accuracy in enumerate((0.90, 0.92)):
        run = write_run(tmp_path / f"run{seed}", seed=seed, accuracy=accuracy, bits=(3, 3))
        keep(run, tmp_path / "kept")
    (row,) = table(read(tmp_path / "kept")).splitlines()[2:]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:6] == ["`configs/digits/lsq.py`", "91.00 ± 1.41", "2", "3.00", "3.00", "3.00"]
    assert "±" not in cells[-1], "seconds of two seeds say little"


def test_configs_of_another_score_have_a_table_of_their_own(tmp_path):
    for name in ("lsq", "pact"):
        keep(write_run(tmp_path / name, method=name), tmp_path / "kept")
    measured = {"perplexity": 3.79, "loss": 1.33}
    run = write_run(tmp_path / "text", name="stories/float", measured=measured, cache=1280)
    keep(run, tmp_path / "kept")
    images, text = table(read(tmp_path / "kept")).split("\n\n")
    assert images.startswith("| config | top-1 % |") and "cache" not in images
    assert text.startswith("| config | perplexity | seeds | bits w |") and "| 1280.0 |" in text
    assert text.splitlines()[-1].startswith("| `configs/stories/float.py` | 3.7900 | 1 |")


def test_a_kept_run_has_its_curves_in_at_most_20_kilobytes(tmp_path):
    run = write_run(tmp_path / "run", rows=2000)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 20000, "eval_accuracy": 0.123456}) + "\n")
    folder = keep(run, tmp_path / "kept")
    assert 10_000 < (folder / "metrics.jsonl").stat().st_size <= 20_000
    rows = read_rows(folder / "metrics.jsonl")
    assert rows[-1] == {"step": 20000, "eval_accuracy": 0.12346} and rows[-2]["step"] == 20000
    steps = [row["step"] for row in rows[:-1]]
    assert len({b - a for a, b in itertools.pairwise(steps)}) == 1, "evenly"


def test_a_short_run_keeps_every_row_and_one_without_metrics_none(tmp_path):
    run = write_run(tmp_path / "run", rows=7)
    folder = keep(run, tmp_path / "kept")
    assert len(read_rows(folder / "metrics.jsonl")) == 7
    (run / "metrics.jsonl").unlink()
    assert not (keep(run, tmp_path / "kept") / "metrics.jsonl").exists()


def test_a_run_that_stopped_early_is_not_kept(tmp_path):
    run = write_run(tmp_path / "run")
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "status": "stopped"}))
    with pytest.raises(ValueError, match="is 'stopped', not finished: run its config again"):
        keep(run, tmp_path / "kept")


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out"])
def test_a_runs_name_leads_to_no_other_folder(name, tmp_path):
    run = write_run(tmp_path / "run", name=name)
    with pytest.raises(ValueError, match="has the name '.*', which leads out of"):
        keep(run, tmp_path / "kept")


def test_the_committed_table_is_that_of_the_committed_runs():
    written = (ROOT / "results" / "README.md").read_text("utf-8")
    assert table(read(ROOT / "results")) in written


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
