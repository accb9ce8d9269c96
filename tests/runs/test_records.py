"""Run folders become values; whatever is none is listed with its reason."""

import json
import os
import shutil

import pytest

from bitjax.report.figures import FIGURES, figures_of
from bitjax.runs.files import is_number
from bitjax.runs.records import CACHE, read_runs
from tests.run_folders import write_run

PERPLEXITY = {"name": "perplexity", "value": 3.79, "higher_is_better": False}


def reason(folder):
    records, skipped = read_runs([folder])
    assert not records and len(skipped) == 1
    assert "\n" not in skipped[0].reason
    return skipped[0].reason


def edit(folder, name, **changes):
    path = folder / name
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps({k: v for k, v in value.items() if v != "gone"}))
    return folder


def test_a_finished_run_is_read_with_its_sites_and_curves(tmp_path):
    (record,), skipped = read_runs([write_run(tmp_path / "run", bits=(3, 2), seed=4)])
    assert not skipped
    assert (record.method, record.seed) == ("lsq", 4)
    assert record.score == ("accuracy", 0.9, True, "{:.2%}") and record.score.shown == "90.00%"
    assert record.sites[0] == ("conv1/kernel", "kernel", 3.25, 3, 9216, 144)
    assert len(record.metrics) == 20 and record.metrics[-1]["step"] == 200
    figures = figures_of(record)
    assert figures["bits_weights"] == figures["bits_weights_inner"] == 3
    assert figures["bits_activations_inner_fractional"] == 2.25
    assert list(figures) == ["accuracy", "loss", *(f.key for f in FIGURES if f.key != CACHE)]


def test_a_language_models_run_has_its_own_score_figures_and_cache(tmp_path):
    measured = {"perplexity": 3.79, "loss": 1.33, "token_accuracy": 0.6}
    (record,), _ = read_runs([write_run(tmp_path / "run", measured=measured, cache=40)])
    assert record.score == ("perplexity", 3.79, False, "{:.4f}")
    assert record.figures == measured and record.costs[CACHE] == 40
    assert record.stages == (("train", 200, 3.79),)
    assert list(figures_of(record)) == [*measured, *(f.key for f in FIGURES)]
    assert figures_of(record)[CACHE] == 40


@pytest.mark.parametrize(
    ("changes", "score"),
    [
        ({"score": "gone", "accuracy": 0.5}, ("accuracy", 0.5, True, "{:.2%}")),
        (
            {"score": {"name": "accuracy", "value": 0.9, "higher_is_better": True}},
            ("accuracy", 0.9, True, "{:.2%}"),
        ),
        (
            {"score": {"name": "loss", "value": 0.2, "higher_is_better": False}},
            ("loss", 0.2, False, "{:.6g}"),
        ),
        (
            {"score": {"name": "loss", "value": 2, "higher_is_better": False, "form": "{.real}"}},
            ("loss", 2, False, "{:.6g}"),
        ),
    ],
)
def test_scores_of_older_runs_and_forms_that_are_none_are_read(changes, score, tmp_path):
    folder = edit(write_run(tmp_path / "run"), "result.json", **changes)
    (record,), _ = read_runs([folder])
    assert record.score == score and record.figures[score[0]] == score[1]


def test_inner_bits_leave_out_the_first_and_the_last_layer(tmp_path):
    run = write_run(tmp_path / "run", bits=(4, 4))
    lines = (run / "bits.csv").read_text().splitlines()
    lines[1] = lines[1].replace("4.25,4", "8,8")  # conv1/kernel
    lines[3] = lines[3].replace("4.25,4", "3,2")  # conv2/kernel
    lines[8] = lines[8].replace("4.25,4", "6,6")  # head/input
    (run / "bits.csv").write_text("\n".join(lines))
    (record,), _ = read_runs([run])
    figures = figures_of(record)
    assert figures["bits_weights_inner"] == 3.0 and figures["bits_activations_inner"] == 4.0
    assert figures["bits_weights_inner_fractional"] == (3 + 4.25) / 2


def test_a_model_of_two_layers_has_no_inner_figures(tmp_path):
    layers = (("a", 10, 10, 5), ("b", 10, 10, 5))
    (record,), _ = read_runs([write_run(tmp_path / "run", layers=layers)])
    assert "bits_weights_inner" not in figures_of(record)


def test_folders_that_hold_runs_are_searched_and_none_is_read_twice(tmp_path):
    for seed in (0, 1):
        run = write_run(tmp_path / "results" / f"seed{seed}", seed=seed)
        (run / "checkpoints" / "10").mkdir(parents=True)
        (run / "checkpoints" / "10" / "config.json").write_text("{}")
    records, skipped = read_runs([tmp_path / "results", tmp_path / "results" / "seed1"])
    assert [r.seed for r in records] == [0, 1] and not skipped


def test_the_results_of_this_repository_are_all_read():
    records, skipped = read_runs(["results"])
    assert len(records) >= 56 and not skipped


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda run: shutil.rmtree(run), "does not exist"),
        (lambda run: (shutil.rmtree(run), run.write_text("hi")), "is a file, not a run's folder"),
        (lambda run: [f.unlink() for f in run.iterdir()], "is not a run's folder: it has none of"),
        (lambda run: (run / "result.json").unlink(), "is not finished: there is no result.json"),
        (lambda run: (run / "config.json").unlink(), "is damaged: there is no config.json"),
        (lambda run: (run / "bits.csv").unlink(), "is damaged: there is no bits.csv"),
        (lambda run: (run / "result.json").write_text('{"a": '), "result.json is not JSON"),
        (lambda run: (run / "result.json").write_bytes(b"\xff\xfe\x00"), "result.json is not JSON"),
        (lambda run: (run / "result.json").write_text("[" * 100_000), "result.json is not JSON"),
        (
            lambda run: edit(run, "result.json", device="\ud800"),
            "has the control character '\\ud800'",
        ),
        (lambda run: (run / "result.json").write_text("[1]"), "result.json holds no object"),
        (lambda run: edit(run, "config.json", seed=9), "config.json is not the one that"),
        (
            lambda run: edit(run, "result.json", status="failed", error="NonFinite: step\n3"),
            "is 'failed', not finished ('NonFinite: step 3')",
        ),
        (lambda run: edit(run, "result.json", status=["x"]), "not finished"),
        (lambda run: edit(run, "result.json", eval_split="gone"), "has no eval_split; run its"),
        (lambda run: edit(run, "result.json", cost={}), "has no cost.model_bytes"),
        (lambda run: edit(run, "result.json", bits=None), "has no bits.weights.fractional"),
        (lambda run: edit(run, "result.json", score={}), "result.json has no name"),
        (
            lambda run: edit(run, "result.json", score={**PERPLEXITY, "value": "Infinity"}),
            "score.value in result.json must be a finite number, got 'Infinity'",
        ),
        (
            lambda run: edit(run, "result.json", score={**PERPLEXITY, "higher_is_better": 0}),
            "result.json has no score.higher_is_better",
        ),
        (
            lambda run: edit(run, "result.json", score="gone", accuracy=90.1),
            "must be in [0, 1], got 90.1",
        ),
        (lambda run: edit(run, "result.json", seed=True), "seed in result.json must be a finite"),
        (lambda run: edit(run, "result.json", method=3), "method in result.json must be text"),
        (lambda run: edit(run, "result.json", stages={"a": 1}), "result.json has no stages"),
        (lambda run: edit(run, "config.json", model="gone"), "config.json has no model.name"),
        (lambda run: (run / "bits.csv").write_text("site,bits\n"), "bits.csv must begin with"),
        (
            lambda run: (run / "bits.csv").write_text(
                (run / "bits.csv").read_text().replace("conv2/kernel,kernel,4.25", "conv2/k,kernel")
            ),
            "line 4 of bits.csv is",
        ),
        (
            lambda run: (run / "bits.csv").write_text(
                (run / "bits.csv").read_text().replace("4.25", "nan")
            ),
            "line 2 of bits.csv is",
        ),
        (
            lambda run: (run / "bits.csv").write_text(
                (run / "bits.csv").read_text().splitlines()[0] + "\n"
            ),
            "bits.csv has no sites",
        ),
    ],
)
def test_a_folder_that_cannot_be_compared_says_why_and_stops_no_other(tmp_path, break_it, said):
    run = write_run(tmp_path / "run")
    break_it(run)
    assert said in reason(run)
    fine = write_run(tmp_path / "fine")
    records, skipped = read_runs([run, fine])
    assert [r.folder for r in records] == [str(fine)] and len(skipped) == 1


def test_a_folder_whose_name_is_no_text_can_be_shown(tmp_path):
    odd = tmp_path / os.fsdecode(b"run-\xff")
    write_run(odd)
    (record,), _ = read_runs([odd])
    assert record.folder.encode().endswith("run-\ufffd".encode())
    assert read_runs([odd / os.fsdecode(b"\xfe")])[1][0].folder.encode()


def test_a_half_written_last_row_of_metrics_is_left_out(tmp_path):
    run = write_run(tmp_path / "run", rows=3)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "acc')
    (record,), _ = read_runs([run])
    assert [row["step"] for row in record.metrics] == [10, 20, 30] and not record.notes


@pytest.mark.parametrize("line", ["not json", "[1, 2]", '{"loss": 1.0}', '"text"'])
def test_damaged_metrics_cost_the_curves_only(tmp_path, line):
    run = write_run(tmp_path / "run")
    path = run / "metrics.jsonl"
    path.write_text(line + "\n" + path.read_text())
    (record,), _ = read_runs([run])
    assert record.metrics == () and "no training curves: metrics.jsonl" in record.notes[0]


def test_a_run_that_several_commits_made_says_so(tmp_path):
    one = write_run(tmp_path / "one", commits=["0123456789ab"])
    two = write_run(tmp_path / "two", commits=["fedcba987654", "0123456789ab"])
    (first,), _ = read_runs([one])
    (second,), _ = read_runs([two])
    assert first.notes == ()
    assert second.notes == ("was made by several commits in turn: fedcba987654, 0123456789ab",)


def test_distortion_is_read_where_it_is_and_noted_where_it_is_damaged(tmp_path):
    run = write_run(tmp_path / "run")
    path = run / "distortion.json"
    path.write_text(json.dumps({"rates": [1, 2], "sqnr": {"uniform": [4.0, 9.5]}}))
    (record,), _ = read_runs([run])
    assert record.distortion == {"rates": [1, 2], "sqnr": {"uniform": [4.0, 9.5]}}
    for rates, sqnr in (
        ([1, 2], {"uniform": ["x", 9.5]}),
        ([1, 2], {"uniform": [9.5]}),
        ([], {}),
        ([1, 2], [4.0, 9.5]),
    ):
        path.write_text(json.dumps({"rates": rates, "sqnr": sqnr}))
        (record,), _ = read_runs([run])
        assert record.distortion is None and "distortion.json is damaged" in record.notes[0]


def test_a_number_is_finite_and_neither_a_truth_value_nor_text():
    values = (0.5, True, "1", 10**400, float("nan"))
    assert [is_number(value) for value in values] == [True, False, False, False, False]
