"""Runs side by side: what shares a group, what shares a row, and what a reader must be told."""

import csv
import io
import json
import math

import pytest
import scipy.stats

from bitjax.report.comparison import compare
from bitjax.report.figures import COSTS
from bitjax.report.tables import csv_text, json_value, markdown, number
from bitjax.runs.records import CACHE, Skipped, read_runs
from tests.run_folders import write_run


def records(tmp_path, *runs):
    folders = [write_run(tmp_path / f"run{i}", **run) for i, run in enumerate(runs)]
    found, skipped = read_runs(folders)
    assert not skipped
    return found


def seeds(method, accuracies, **rest):
    return [{"method": method, "seed": i, "accuracy": a, **rest} for i, a in enumerate(accuracies)]


FLOAT = seeds("full_precision", (0.95, 0.96, 0.97), bits=(32, 32))
LSQ = seeds("lsq", (0.90, 0.93, 0.93))


def test_seeds_share_a_row_with_mean_spread_and_difference_to_float(tmp_path):
    (group,) = compare(records(tmp_path, *FLOAT, *LSQ)).groups
    lsq = next(row for row in group.rows if row.method == "lsq")
    assert group.baseline == "digits/full_precision"
    assert lsq.figures["accuracy"].mean == pytest.approx(0.92)
    assert lsq.figures["accuracy"].std == pytest.approx(0.0173205, rel=1e-5)
    wanted = scipy.stats.ttest_rel((0.90, 0.93, 0.93), (0.95, 0.96, 0.97)).confidence_interval()
    assert lsq.difference.mean == pytest.approx(-0.04)
    assert (lsq.difference.low, lsq.difference.high) == pytest.approx((wanted.low, wanted.high))


def test_another_setting_of_a_method_is_another_row_and_its_label_says_which(tmp_path):
    wide = {"settings": {"method": {"name": "lsq", "steps": 400}}}
    found = records(tmp_path, LSQ[0], {**LSQ[1], **wide})
    labels = {row.label for row in compare(found).groups[0].rows}
    assert labels == {"digits/lsq [method.steps=200]", "digits/lsq [method.steps=400]"}


def test_tables_cut_a_folder_off_names_and_nothing_off_what_tells_rows_apart(tmp_path):
    rules = [{"rules": [["stage1/(conv1|conv2)/kernel", {"bits": bits}]]} for bits in (2, 3)]
    found = records(tmp_path, *({**r, "settings": s} for r, s in zip(LSQ, rules, strict=False)))
    text = markdown(compare(found))
    assert text.count("| `lsq [rules=[[") == 2
    assert "Settings are those of `digits/`." in text


def test_logging_and_the_run_that_weights_come_from_make_no_other_row(tmp_path):
    changes = [{"log_every": 10, "init_from": "runs/float-seed0"},
               {"log_every": 50, "init_from": "runs/float-seed1"}]  # fmt: skip
    found = records(tmp_path, *({**r, "settings": c} for r, c in zip(LSQ, changes, strict=False)))
    assert len(compare(found).groups[0].rows) == 1
    scratch = records(tmp_path / "more", {**LSQ[2], "settings": {"init_from": ""}})
    assert len(compare(found + scratch).groups[0].rows) == 2


def test_where_a_run_was_computed_and_keys_that_older_runs_lack_make_no_other_row(tmp_path):
    data = {"name": "digits", "eval_split": "test", "validation": 0}
    new = {"devices": 8, "parallel": "pmap", "steps_per_dispatch": 10, "keep_best": True,
           "keep_checkpoints": 3, "device_data_mb": 0, "accumulate": 1, "compute_dtype": "float32",
           "data": {**data, "image_size": 0, "splits": []}}  # fmt: skip
    found = records(tmp_path, LSQ[0], {**LSQ[1], "settings": new})
    assert len(compare(found).groups[0].rows) == 1
    half = {**LSQ[2], "settings": {**new, "compute_dtype": "bfloat16"}}
    found += records(tmp_path / "more", half)
    labels = {row.label for row in compare(found).groups[0].rows}
    assert labels == {f"digits/lsq [compute_dtype={d}]" for d in ("float32", "bfloat16")}


@pytest.mark.parametrize(
    "other",
    [
        {"model": {"name": "resnet20", "num_classes": 10}},
        {"model": {"name": "small_cnn", "num_classes": 10, "width": 8}},
        {"data": "cifar10"},
        {"split": "validation"},
    ],
)
def test_what_is_not_comparable_is_refused_and_named_unless_it_is_grouped(tmp_path, other):
    found = records(tmp_path, LSQ[0], {**LSQ[1], **other})
    with pytest.raises(ValueError, match=r"2 different models, data .*run1\). .*option group"):
        compare(found)
    groups = compare(found, group=True).groups
    assert [len(group.rows) for group in groups] == [1, 1]
    assert len({group.title for group in groups}) == 2


def test_a_model_that_drops_out_while_it_is_trained_is_the_same_model(tmp_path):
    dropping = {"name": "small_cnn", "num_classes": 10, "dropout": 0.5}
    (group,) = compare(records(tmp_path, FLOAT[0], {**LSQ[0], "model": dropping})).groups
    assert len(group.rows) == 2 and "dropout" not in group.title


def test_runs_on_different_validation_sets_are_not_comparable(tmp_path):
    sizes = [{"data": {"name": "digits", "eval_split": "validation", "validation": n}}
             for n in (100, 200)]  # fmt: skip
    found = records(tmp_path, *({**r, "split": "validation", "settings": s}
                                for r, s in zip(LSQ, sizes, strict=False)))  # fmt: skip
    with pytest.raises(ValueError, match="100 validation examples.*200 validation examples"):
        compare(found)


def test_a_seed_that_was_run_twice_counts_once_and_is_told(tmp_path):
    found = records(tmp_path, *LSQ, {**LSQ[0], "accuracy": 0.92})
    (group,) = compare(found).groups
    (row,) = group.rows
    assert row.figures["accuracy"].count == 3 and len(row.runs) == 4
    assert row.figures["accuracy"].mean == pytest.approx((0.91 + 0.93 + 0.93) / 3)
    assert any("seeds [0] were run more than once" in text for text in group.warnings)


def test_costs_more_than_twice_apart_are_told(tmp_path):
    def warnings(bits):
        runs = records(tmp_path / str(bits), *FLOAT, {"method": "lsq", "bits": (4, 4)},
                       {"method": "tsq", "bits": bits})  # fmt: skip
        return " ".join(compare(runs).groups[0].warnings)

    assert "read accuracies along with the cost" in warnings((2, 2))
    assert "4.0x (MBOPs)" in warnings((2, 4 * 0.5))
    assert "cost" not in warnings((4, 3))


def test_a_row_is_compared_with_plain_bits_of_equal_cost_where_there_are_any(tmp_path):
    cheap = {"method": "lsq", "name": "cheap", "bits": (3, 3)}
    runs = [*seeds("uniform", (0.90, 0.91)), *seeds("lsq", (0.92, 0.92)), cheap]
    comparison = compare(records(tmp_path, *runs))
    rows = {row.label: row for row in comparison.groups[0].rows}
    assert {label: row.rival for label, row in rows.items()} == {
        "digits/uniform": None, "digits/lsq": "digits/uniform", "cheap": None
    }  # fmt: skip
    assert rows["digits/lsq"].ahead.mean == pytest.approx(0.015)
    assert "| +1.50 [-4.85, 7.85] (2) |" in markdown(comparison)


def test_without_a_float_run_there_is_no_difference_and_the_reader_is_told(tmp_path):
    (group,) = compare(records(tmp_path, *LSQ)).groups
    assert group.rows[0].difference is None and "no float run" in group.warnings[0].lower()


def test_of_several_float_rows_the_one_with_most_seeds_is_the_baseline(tmp_path):
    better = {"method": "full_precision", "accuracy": 0.99, "bits": (32, 32), "name": "digits/best"}
    found = records(tmp_path, *FLOAT, better, *LSQ)
    (group,) = compare(found).groups
    assert group.baseline == "digits/full_precision"
    assert any("Of 2 float rows" in text for text in group.warnings)
    assert compare(found, baseline="digits/best").groups[0].baseline == "digits/best"
    with pytest.raises(ValueError, match="`baseline` must be the label of a row: .*digits/best"):
        compare(found, baseline="best")


@pytest.mark.parametrize("cost", COSTS)
def test_the_front_is_of_the_score_against_the_chosen_cost(tmp_path, cost):
    found = records(
        tmp_path,
        *({**run, "cache": 32} for run in FLOAT),
        {"method": "lsq", "accuracy": 0.94, "bits": (8, 8), "cache": 8},
        {"method": "pact", "accuracy": 0.93, "bits": (8, 8), "cache": 8},
        {"method": "tsq", "accuracy": 0.92, "bits": (2, 2), "cache": 2},
    )
    front = {row.method for row in compare(found, cost=cost).groups[0].rows if row.front}
    assert front == {"full_precision", "lsq", "tsq"}


def test_a_cost_that_no_run_has_is_refused(tmp_path):
    with pytest.raises(ValueError, match="one that a run has, and none has 'cache_bytes_per_tok"):
        compare(records(tmp_path, *LSQ), cost="cache_bytes_per_token")


def told(method, perplexity, bits, **rest):
    """A language model's run."""
    measured = {"perplexity": perplexity, "loss": math.log(perplexity), "token_accuracy": 0.5}
    model = {"name": "llama", "layers": 5}
    return {"method": method, "bits": bits, "measured": measured, "model": model,
            "data": "tokens", "name": f"stories/{method}", "cache": 40.0, **rest}  # fmt: skip


STORIES = [
    told("full_precision", 3.79, (32, 32)),
    told("full_precision", 3.81, (32, 32), seed=1),
    told("full_precision", 9.0, (32, 32), name="stories/worse", settings={"seed": 1}),
    told("lsq", 3.9795, (4, 32)),
    told("lsq", 4.191, (4, 32), seed=1),
    told("pact", 4.5, (8, 32)),
    told("tsq", 6.0, (2, 32)),
]


def test_where_less_is_better_fronts_and_baselines_are_the_least_and_a_rise_is_a_plus(tmp_path):
    found = records(tmp_path, *STORIES)
    (group,) = compare(found, cost="bits_weights").groups
    rows = {row.label: row for row in group.rows}
    assert group.baseline == "stories/full_precision"
    front = {label for label, row in rows.items() if row.front}
    assert front == {"stories/full_precision", "stories/lsq", "stories/tsq"}
    lsq = rows["stories/lsq"]
    assert lsq.difference.mean == pytest.approx((0.1895 + 0.381) / 2)
    assert lsq.ratio == pytest.approx((1.05 + 1.1) / 2)
    text = markdown(compare(found, cost="bits_weights"), ("bits_weights", CACHE))
    head = "seeds | perplexity | difference to float, 95 % interval (pairs) | x float | bits w |"
    assert f"| {head} cache B/token | front |" in text
    assert "| tsq | `tsq` | 1 | 6.0000 | +2.2100 (1) | 1.583 | 2.00 | 40.0 | yes |" in text
    assert "| full_precision | `full_precision` | 2 | 3.8000 ± 0.0141 | baseline | 1.000 |" in text
    assert "- Front: of perplexity against bits w; less of both is better." in text
    assert "read perplexities along with the cost" in " ".join(group.warnings)


def test_where_more_is_better_there_is_no_ratio(tmp_path):
    (group,) = compare(records(tmp_path, *FLOAT, *LSQ)).groups
    assert {row.ratio for row in group.rows} == {None}
    assert "x float" not in markdown(compare(records(tmp_path / "again", *FLOAT, *LSQ)))


def test_runs_of_several_scores_have_a_table_each(tmp_path):
    images = records(tmp_path / "images", *FLOAT, *LSQ)
    stories = records(tmp_path / "stories", *STORIES)
    with pytest.raises(ValueError, match="of 2 different models, data or .* sets, or scores"):
        compare([*images, *stories])
    comparison = compare([*images, *stories], group=True)
    assert [group.score.title for group in comparison.groups] == ["top-1 %", "perplexity"]
    keys = [figure.key for figure in comparison.figures]
    assert keys[:4] == ["accuracy", "perplexity", "loss", "token_accuracy"] and CACHE in keys
    rows = list(csv.DictReader(io.StringIO(csv_text(comparison))))
    assert (rows[0]["accuracy"], rows[0]["perplexity"]) == ("0.95", "")
    assert {row["perplexity"] for row in rows if row["method"] == "tsq"} == {"6.0"}
    value = json.loads(json.dumps(json_value(comparison)))
    assert [g["higher_is_better"] for g in value["groups"]] == [True, False]


def test_scores_of_one_model_are_told_apart_by_their_names(tmp_path):
    error = {**LSQ[0], "measured": {"error": 0.1}}
    groups = compare(records(tmp_path, LSQ[0], error), group=True).groups
    ends = [group.title.partition("examples")[2] for group in groups]
    assert ends == [", by accuracy, more is better", ", by error, less is better"]


@pytest.mark.parametrize("name", ["seed", "bits_all", "device"])
def test_a_score_that_is_called_as_another_figure_hides_none(tmp_path, name):
    (record,) = records(tmp_path, {**LSQ[0], "measured": {name: 7.5}})
    comparison = compare([record])
    (row,) = csv.DictReader(io.StringIO(csv_text(comparison)))
    assert (row["seed"], row["steps"], row["bits_all"]) == ("0", "200", "4.0")
    assert row[f"task_{name}"] == "7.5" and comparison.groups[0].score.key == f"task_{name}"


@pytest.mark.parametrize(
    ("form", "shown", "title"),
    [
        ("{:.3f}", "0.088 ± 0.012", "mean error"),
        ("{:.2g}", "0.088 ± 0.012", "mean error"),
        ("{:.1%}", "8.8 ± 1.2", "mean error %"),
        ("{:.1f} dB", "0.1", "mean error, dB"),
        ("{:9999999999.1f}", "0.0879000 ± 0.0121622", "mean error"),
        (None, "0.0879000 ± 0.0121622", "mean error"),
    ],
)
def test_a_score_has_the_digits_and_the_unit_of_its_form(tmp_path, form, shown, title):
    runs = []
    for seed, value in enumerate((0.0793, 0.0965)):
        score = {"name": "mean_error", "value": value, "higher_is_better": False, "form": form}
        runs.append({**LSQ[seed], "measured": {"mean_error": value}, "score": score})
    (group,) = compare(records(tmp_path, *runs)).groups
    assert number(group.rows[0].figures["mean_error"], group.score) == shown
    assert group.score.title == title and group.score.about.endswith("Less is better.")


def test_evaluations_of_other_tokens_are_not_compared(tmp_path):
    cut = {"name": "tokens", "eval_split": "test", "validation": 0, "eval_limit": 120, "context": 9}
    few = told("lsq", 3.9, (4, 32), settings={"data": cut})
    groups = compare(records(tmp_path, STORIES[0], few), group=True).groups
    ends = [group.title.partition(" on ")[2] for group in groups]
    assert ends == ["tokens, test examples", "tokens, first 120 test examples, context 9"]


def test_an_unknown_cost_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="`cost` must be one of .*bops.*stripes.*got 'watts'"):
        compare(records(tmp_path, LSQ[0]), cost="watts")


def test_the_files_hold_every_run_and_every_row(tmp_path):
    comparison = compare(
        records(tmp_path, *FLOAT, *LSQ), skipped=[Skipped("x|y", "is <b>`gone`</b>")]
    )
    rows = list(csv.DictReader(io.StringIO(csv_text(comparison))))
    assert len(rows) == 6 and {row["seed"] for row in rows} == {"0", "1", "2"}
    assert float(rows[-1]["accuracy"]) == 0.93 and float(rows[-1]["loom"]) > 1
    value = json.loads(json.dumps(json_value(comparison)))
    assert len(value["runs"]) == 6 and len(value["groups"][0]["rows"]) == 2
    assert value["skipped"] == [{"folder": "x|y", "reason": "is <b>`gone`</b>"}]
    text = markdown(comparison)
    assert "- Settings are those of `digits/`." in text
    assert "| lsq | `lsq` | 3 | 92.00 ± 1.73 | -4.00 [-6.48, -1.52] (3) |" in text
    assert "- `x\\|y`: is &lt;b&gt;`gone`&lt;/b&gt;" in text


def test_a_runs_text_is_no_formula_in_a_spreadsheet_and_no_picture_on_a_page(tmp_path):
    odd = {"method": "![x](//y)", "name": "=1+1", "commit": "-f", "measured": {"=f|": 1.0}}
    found = records(tmp_path, odd)
    comparison = compare(found, skipped=[Skipped("x", "[a][b] c\\|d")])
    (row,) = csv.DictReader(io.StringIO(csv_text(comparison)))
    assert (row["row"], row["commit"], row["method"]) == ("'=1+1", "'-f", "![x](//y)")
    assert row["'=f|"] == "1.0" and "| =f\\| |" in markdown(comparison)
    text = markdown(comparison)
    assert "| ![x]\\(//y) |" in text and "[a]\\[b] c\\\\\\|d" in text
