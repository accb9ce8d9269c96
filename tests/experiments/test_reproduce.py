"""One command makes a results table; what is committed is what such a command wrote."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from bitjax.launch.devices import Devices
from bitjax.launch.grid import SweepRun
from bitjax.launch.registry import METHODS
from bitjax.report.comparison import comparable, compare
from bitjax.runs.folder import config_hash
from bitjax.runs.records import CACHE, read_runs
from experiments import reproduce, results_tables
from experiments.results_tables import (
    ResultsTable,
    document,
    known_tables,
    plan_table,
    rows_alone,
)
from experiments.tabulate import ROOT, insert
from tests.run_folders import write_run

EVALUATED = {"data": "any", "eval_split": "test"}
CONFIG = """
from bitjax.configs.digits.float import get_config as base

def get_config(arg="float"):
    config = base()
    config.name = f"small/{arg}"
    config.model.name = "mlp"
    config.method = {"name": "full_precision", "steps": 20, "learning_rate": 0.05}
    config.checkpoint_every = 5
    if arg != "float":
        config.method = {"name": arg, "steps": 10, "learning_rate": 0.05}
        config.rules = ((".*", {"name": "uniform", "bits": 4, "range": "minmax"}),)
    return config
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A table of a float run and one that starts from it, two seeds; gives its arguments."""
    path = tmp_path / "small.py"
    path.write_text(CONFIG)
    table = {
        "title": "A small table",
        "about": "About it.",
        "seeds": (0, 1),
        "configs": (f"{path}:uniform", f"{path}:float"),
        "starts": {f"{path}:uniform": f"{path}:float"},
    }
    monkeypatch.setattr(results_tables, "known_tables", lambda: {"small": table})
    monkeypatch.chdir(ROOT)
    folders = {name: tmp_path / name for name in ("runs", "kept")}
    folders["kept"].mkdir()
    (folders["kept"] / "README.md").write_text(
        "<!-- results: written by a command -->\n<!-- end of results -->\n"
    )
    yield ["small", "--workdir", str(folders["runs"]), "--results", str(folders["kept"])], folders


def run(arguments):
    """The command's exit code."""
    with pytest.raises(SystemExit) as end:
        reproduce.main(arguments)
    return end.value.code


@pytest.mark.parametrize("name", known_tables())
def test_every_run_of_every_table_is_a_config_that_its_method_accepts(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    table = plan_table(name, tmp_path)
    assert len({run.folder for run in table.runs}) == len(table.runs)
    assert {run.spec["method"]["name"] for run in table.runs} & {"full_precision"}
    compared = {comparable(SimpleNamespace(settings=run.spec, **EVALUATED)) for run in table.runs}
    assert len(compared) == 1, "its page would be refused after all that training"
    for run in table.runs:
        start = run.overrides.get("init_from")
        assert not start or Path(start) in {other.folder for other in table.waves[0]}


# These two train nothing: they quantize a network that is there.
TRAINED = [name for name in METHODS if name not in ("solved", "measured")]


def test_the_digits_are_compared_by_every_method_with_ten_seeds(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = plan_table("digits", tmp_path).runs
    assert sorted((r.spec["method"]["name"], r.spec["seed"]) for r in runs) == sorted(
        (method, seed) for method in TRAINED for seed in range(10)
    )


def test_resnet20_has_two_points_of_every_method_in_at_most_250_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = plan_table("cifar10-resnet20", tmp_path).runs
    points = {run.spec["name"]: run.spec["method"]["name"] for run in runs}
    assert sorted(points.values()) == sorted(2 * [*TRAINED, "uniform"])  # W4A4, W3A3; W8A4, W8A3
    assert max(run.steps for run in runs) == 250


def test_a_table_can_have_more_seeds_and_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    table = plan_table("cifar10-resnet20", tmp_path, seeds=2)
    assert len(table.runs) == 2 * len(set(table.configs.values()))
    assert {run.spec["seed"] for run in table.runs} == {0, 1}
    assert table.making == "python -m experiments.reproduce cifar10-resnet20 --seeds=2"
    assert table.name == "cifar10-resnet20-2-seeds"  # the table of one seed stays
    assert plan_table("digits", tmp_path, seeds=10).name == "digits"


def test_a_row_can_have_more_seeds_than_the_others(small):
    table = results_tables.known_tables()["small"]
    uniform, full = table["configs"]
    table["seeds"] = {uniform: (0, 1, 2), full: (0,)}
    assert [run.name for run in plan_table("small", small[1]["runs"]).runs] == [
        "small-float-seed0", "small-uniform-seed0", "small-uniform-seed1", "small-uniform-seed2"
    ]  # fmt: skip


@pytest.mark.slow
def test_a_table_is_made_kept_skipped_and_its_broken_runs_are_resumed(small, capsys):
    arguments, folders = small
    assert run(arguments) == 0
    text = (folders["kept"] / "small.md").read_text()
    assert text.startswith("# A small table\n\nAbout it.")
    assert "python -m experiments.reproduce small" in text
    assert "| uniform | `uniform` | 2 |" in text and "| full_precision | `float` | 2 |" in text
    assert "commit " in text and "jax " in text and "small-uniform-seed1" in text
    assert "small.py:uniform" in (folders["kept"] / "README.md").read_text()
    assert "<html" in (folders["runs"] / "report.html").read_text()

    started = folders["runs"] / "small-uniform-seed0"
    first = json.loads((started / "result.json").read_text())
    (started / "result.json").unlink()
    shutil.rmtree(folders["runs"] / "small-float-seed1")
    capsys.readouterr()
    assert run(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.count("not repeated") == 2
    second = json.loads((started / "result.json").read_text())
    assert second["accuracy"] == first["accuracy"]


@pytest.mark.slow
def test_runs_that_the_results_keep_are_taken_from_there_only_when_asked(small, monkeypatch):
    table = plan_table("small", small[1]["runs"])
    [first, changed, *_] = table.waves[0]
    for made, spec in ((first, first.spec), (changed, changed.spec | {"calibration_size": 7})):
        kept = small[1]["kept"] / made.spec["name"] / f"seed{made.spec['seed']}"
        write_run(kept, config_hash=config_hash(spec))
    started = []
    monkeypatch.setattr(
        reproduce,
        "run_table",
        lambda table, _: started.append([r.finished for r in table.runs]) or 1,
    )
    for options in ([], ["--kept"]):
        run([*small[0], *options])
    assert started == [[False] * 4, [True] + [False] * 3]


def test_a_table_of_which_a_run_fails_is_not_written(small, capsys, tmp_path):
    arguments, folders = small
    table = results_tables.known_tables()["small"]
    table["configs"], table["starts"] = table["configs"][1:], {}
    (tmp_path / "small.py").write_text(
        CONFIG.replace('"learning_rate": 0.05', '"learning_rate": 1e20')  # it diverges
    )
    assert run(arguments) == 1
    shown = capsys.readouterr().out
    assert "not all runs are finished: no table. To go on: python -m experiments" in shown
    assert not (folders["kept"] / "small.md").exists()


def test_a_finished_run_that_cannot_be_read_is_told_and_no_table_is_written(tmp_path):
    folders = [write_run(tmp_path / name) for name in ("whole", "damaged")]
    (folders[1] / "bits.csv").write_text("site,role\n")
    runs = [SweepRun(folder.name, folder, {}, {}, 0) for folder in folders]
    table = ResultsTable("small", "", "", "", "", False, False, (), (tuple(runs),), {})
    with pytest.raises(ValueError, match="no table: .*damaged is of another version.*Remove"):
        reproduce.write_table(table, tmp_path, tmp_path / "kept")
    assert not (tmp_path / "kept").exists() and not (tmp_path / "report.html").exists()


def test_a_table_of_a_language_model_shows_the_columns_that_it_names(tmp_path):
    runs = []
    for method, perplexity, bits in (("full_precision", 3.79, 32), ("solved", 4.169, 3)):
        folder = write_run(tmp_path / method, method=method, bits=(bits, 32), cache=8.0 * bits,
                           measured={"perplexity": perplexity, "loss": 1.4})  # fmt: skip
        runs.append(SweepRun(method, folder, {}, {}, 0))
    table = ResultsTable("small", "the command", "Title", "About.", "", False, False, (),
                         (tuple(runs),), {}, ("loss", "bits_weights", CACHE), CACHE)  # fmt: skip
    reproduce.write_table(table, tmp_path, tmp_path / "kept")
    text = (tmp_path / "kept" / "small.md").read_text()
    assert "Perplexity is on the test set, of the final integer model." in text
    assert "Loom" not in text and "top-1" not in text
    assert "- Front: of perplexity against cache B/token; less of both is better." in text
    head = "difference to float, 95 % interval (pairs) | x float | loss | bits w | cache B/token |"
    assert head in text
    assert "| 4.1690 | +0.3790 (1) | 1.100 | 1.4000 | 3.00 | 24.0 | yes |" in text


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("columns", ("bits_weight",), "'bits_weight'; it may have"), ("cost", "bop", "got 'bop'")],
)
def test_what_no_run_can_show_is_refused_before_any_runs(small, key, value, said):
    arguments, folders = small
    results_tables.known_tables()["small"][key] = value
    with pytest.raises(ValueError, match=said):
        reproduce.main(arguments)
    assert not folders["runs"].exists()


def test_a_file_that_runs_read_is_made_once_by_its_command(small, tmp_path, monkeypatch):
    made = tmp_path / "made.txt"
    maker = "import sys; open(sys.argv[-1].partition('=')[2], 'x').write(sys.argv[1])"
    (tmp_path / "maker.py").write_text(maker)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    results_tables.known_tables()["small"]["files"] = {str(made): ("maker", "words")}
    table = plan_table("small", tmp_path)
    reproduce.make_files(table)
    reproduce.make_files(table)
    assert made.read_text() == "words"
    gone = table._replace(files={str(tmp_path / "no" / "x"): table.files[str(made)]})
    with pytest.raises(ValueError, match="no table: .*x was not made"):
        reproduce.make_files(gone)


@pytest.mark.parametrize(("devices", "slots"), [(Devices("cpu", 1), None), (Devices("gpu", 3), 3)])
def test_runs_that_are_small_have_a_core_each(small, monkeypatch, devices, slots):
    arguments, _ = small
    results_tables.known_tables()["small"]["small"] = True
    seen = []
    monkeypatch.setattr(reproduce, "find_devices", lambda: devices)
    monkeypatch.setattr(reproduce, "run_table", lambda table, places: seen.extend(places) or 1)
    assert run(arguments) == 1
    assert len(seen) == (slots or len(os.sched_getaffinity(0)))


@pytest.mark.slow
def test_a_run_without_planes_has_no_distortion_to_draw(small, tmp_path):
    table = results_tables.known_tables()["small"]
    table["distortion"] = table["configs"][1:]
    planned = plan_table("small", tmp_path / "runs", seeds=1)
    assert planned.distortion == ("small-float-seed0",)
    planned.runs[0].folder.mkdir(parents=True)
    with pytest.raises(ValueError, match="distortion of small-float-seed0: error: the config has"):
        reproduce.draw_distortion(planned)


def test_a_table_for_accelerators_says_what_it_would_take_without_one(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(reproduce, "find_devices", lambda: Devices("cpu", 1))
    with pytest.raises(ValueError, match="imagenet-resnet18 is made for an accelerator.*--anyway"):
        reproduce.main(["imagenet-resnet18", "--workdir", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_name_that_no_table_has_is_answered_with_those_there_are(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match="must be one of cifar10-resnet20, "):
        reproduce.main(["cifar10"])


def test_without_a_name_the_tables_are_listed(capsys):
    reproduce.main([])
    assert "digits " in (listed := capsys.readouterr().out)
    assert len(listed.splitlines()) == len(known_tables())


def test_a_runs_own_folder_is_no_place_for_a_tables_runs(small):
    arguments, folders = small
    folders["runs"].mkdir()
    (folders["runs"] / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is a run's own. Choose another for the runs' folders"):
        reproduce.main(arguments)


def test_a_folder_that_holds_another_run_stops_the_table_before_it_starts(small):
    arguments, folders = small
    folder = folders["runs"] / "small-float-seed0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"seed": 5}))
    (folder / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="holds a run of another config"):
        reproduce.main(arguments)


@pytest.mark.parametrize(
    "name", sorted({p.stem for p in (ROOT / "results").glob("*.md")} & known_tables().keys())
)
def test_committed_tables_are_those_of_the_committed_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    written = (ROOT / "results" / f"{name}.md").read_text("utf-8")
    table = plan_table(name, tmp_path)
    named = [r.spec["name"] or table.configs[r.name][8:-3] for r in table.runs]
    folders = [
        f"results/{name}/seed{r.spec['seed']}" for name, r in zip(named, table.runs, strict=True)
    ]
    runs, skipped = read_runs(folders)
    assert not skipped and [run.folder for run in runs] == folders
    for kept, planned in zip(runs, table.runs, strict=True):
        spec = json.loads(json.dumps(planned.spec))
        for key in ("model", "method", "rules", "budgets"):
            assert kept.settings[key] == spec[key], f"{kept.folder} is of another config: {key}"
    comparison = compare(runs, baseline=table.baseline, cost=table.cost)
    # Records are kept under other names than they were run under.
    assert document(table, comparison).split("Made by:")[0] == written.split("Made by:")[0]
    shown = (ROOT / "docs" / "results.md").read_text("utf-8")
    assert rows_alone(table, comparison) in shown or f"<!-- {name}:" not in shown


def test_the_tables_that_are_for_a_cpu_are_committed():
    assert {p.stem for p in (ROOT / "results").glob("*.md")} >= {"digits", "cifar10-resnet20"}


@pytest.mark.parametrize("name", ["digits", "cifar10-resnet20"])
def test_the_results_page_has_marks_that_the_command_writes_a_table_between(name, tmp_path):
    shown = (ROOT / "docs" / "results.md").read_text("utf-8")
    path = tmp_path / "results.md"
    path.write_text(shown, "utf-8")
    insert(path, "the table", name)
    assert f"written by a command -->\n\nthe table\n\n<!-- end of {name}" in path.read_text("utf-8")


def test_a_readme_without_the_marks_stays_as_it_is(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("nothing here\n")
    insert(path, "new", "digits")
    assert path.read_text() == "nothing here\n"
