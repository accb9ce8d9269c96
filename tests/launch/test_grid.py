"""What varies becomes runs with names and folders, or one line says why not."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from bitjax.launch import grid
from bitjax.launch.config_files import load_config
from bitjax.launch.grid import name_runs, parse_grid, plan

DIGITS = "configs/digits/float.py"
AXES = ("log_every", "checkpoint_every", "method.steps")
SWEEP = """
from bitjax.configs.digits.bitpruning import get_config

def sweep_strengths():
    return [{"method.gamma": 0.1}]

def sweep_rates():
    return [{"method.learning_rate": rate, "method.steps": 10} for rate in (0.1, 0.05)]

def sweep_limits():
    limits = ({"metric": "bits", "limit": x} for x in (2.0, 3.0))
    return [{"config.budgets": (limit,), "name": f"a={limit['limit']}"} for limit in limits]

def sweep_wrong():
    return [{"seed": "1"}]

def sweep_half():
    return [{"seed": 0.5}]

def sweep_twice():
    return [{"seed": 1, "config.seed": 2}]

def sweep_fails():
    return [{"seed": 1 // 0}]

def sweep_nan():
    return [{"method.learning_rate": float("nan")}]

def sweep_keys():
    return [{3: 4}]

def sweep_arrays():
    import numpy as np
    rates = np.float32([0.1, 0.5])
    return [{"seed": seed, "method.learning_rate": rate} for seed, rate in zip(np.arange(2), rates)]

def sweep_many():
    return [{"seed": seed, "method.gamma": 0.1, "log_every": 10} for seed in range(7_000)]

sweep_number = 3

def sweep_none():
    return []

def sweep_text():
    return "seed"
"""
SHARING = """
from shared_limits import LIMITS
from bitjax.configs.digits.bitpruning import get_config as base

def get_config():
    config = base()
    config.budgets = LIMITS
    return config
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "swept.py"
    path.write_text(SWEEP)
    return str(path)


def overrides(runs):
    return [run.overrides for run in runs]


def test_a_grid_is_the_product_of_its_axes_in_their_order(tmp_path):
    runs = plan(DIGITS, tmp_path, grid=["seed=0,1", "config.method.learning_rate=0.1,5e-2"])
    assert [run.name for run in runs] == [
        "seed=0,learning_rate=0.1",
        "seed=0,learning_rate=0.05",
        "seed=1,learning_rate=0.1",
        "seed=1,learning_rate=0.05",
    ]
    assert overrides(runs)[1] == {"seed": "0", "method.learning_rate": "5e-2"}
    assert runs[3].spec["seed"] == 1 and runs[3].spec["method"]["learning_rate"] == 0.05
    assert runs[0].folder == tmp_path / "seed=0,learning_rate=0.1" and runs[0].steps == 1200


def test_names_hold_what_varies_and_nothing_else(tmp_path):
    grid = ["seed=0", "tensorboard=false,true"]
    runs = plan(DIGITS, tmp_path, fixed=["--config.method.steps=7"], grid=grid)
    assert [run.name for run in runs] == ["tensorboard=False", "tensorboard=True"]
    assert [run.name for run in plan(DIGITS, tmp_path, grid=["seed=3"])] == ["seed=3"]
    assert runs[0].steps == 7


def test_names_tell_keys_with_the_same_end_apart():
    runs = [{"a.x.rate": 1, "b.x.rate": 2}, {"a.x.rate": 2, "b.x.rate": 1}]
    assert name_runs(runs) == ["a.x.rate=1,b.x.rate=2", "a.x.rate=2,b.x.rate=1"]


texts = st.text("ab/ .=,(é\n", max_size=60)


@given(st.lists(st.tuples(texts, st.integers(), st.floats(allow_nan=False)), min_size=1))
def test_names_are_short_and_fit_for_folders(values):
    names = name_runs([{"data.name": a, "seed": b, "rate": c} for a, b, c in values])
    assert len(names) == len(values)
    for name in names:
        assert 0 < len(name) <= 150 and not set(name) & set("/ \n()")


def test_a_sweep_of_the_config_and_a_grid_are_combined(config, tmp_path):
    runs = plan(config, tmp_path, sweep="rates", grid=["seed=0,1"])
    assert [run.name for run in runs] == [
        "learning_rate=0.1,seed=0",
        "learning_rate=0.1,seed=1",
        "learning_rate=0.05,seed=0",
        "learning_rate=0.05,seed=1",
    ]
    assert all(run.steps == 10 for run in runs)


def test_numpys_numbers_come_through(config, tmp_path):
    runs = plan(config, tmp_path, sweep="arrays")
    assert [run.spec["seed"] for run in runs] == [0, 1]
    assert [run.spec["method"]["learning_rate"] for run in runs] == [float(np.float32(0.1)), 0.5]


def test_a_sweep_may_hold_more_values_than_a_config(config, monkeypatch):
    monkeypatch.setattr(grid, "_overrides_of", lambda where, run, path, base: run)
    runs = grid._named_sweep(config, "many", ConfigDict())
    assert [len(run) for run in runs] == [3] * 7_000


def test_a_limit_of_bops_may_be_a_large_integer(tmp_path):
    path = tmp_path / "large.py"
    limit = "config.budgets = ({'metric': 'bops', 'limit': 30_000_000_000},)"
    path.write_text(
        f"from bitjax.configs.digits.bitpruning import get_config as base\n"
        f"def get_config():\n    config = base()\n    {limit}\n    return config\n"
    )
    (run,) = plan(str(path), tmp_path, grid=["seed=0"])
    assert run.spec["budgets"][0]["limit"] == 30_000_000_000


def test_values_that_are_no_scalars_come_through(config, tmp_path):
    runs = plan(config, tmp_path, sweep="limits")
    assert [run.spec["budgets"][0]["limit"] for run in runs] == [2.0, 3.0]
    runs = plan(config, tmp_path, grid=["budgets[0].limit=2.0,3.0"])
    assert [run.spec["budgets"][0]["limit"] for run in runs] == [2.0, 3.0]
    assert [run.name for run in runs] == ["limit=2", "limit=3"]


def test_a_run_changes_nothing_of_what_a_config_imports(tmp_path, monkeypatch):
    (tmp_path / "shared_limits.py").write_text('LIMITS = ({"metric": "bits", "limit": 4.0},)\n')
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "own.py"
    path.write_text(SHARING)
    for limit in ("3.0", "4.0"):
        changed = load_config(str(path), [f"--config.budgets[0].limit={limit}"])
        assert changed.budgets[0]["limit"] == float(limit)
        assert load_config(str(path)).budgets[0]["limit"] == 4.0


def test_commas_inside_brackets_divide_nothing():
    base = ConfigDict({"data": {"mean": (0.0,)}})
    found = parse_grid("data.mean=(0.1, 0.2),(0.3,)", base)
    assert found == ("data.mean", ["(0.1, 0.2)", "(0.3,)"])


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["sed=0,1"], r"no key 'sed' \(did you mean seed\?\)"),
        (["learning_rate=0.1"], r"no key 'learning_rate' \(did you mean method.learning_rate\?\)"),
        (["seed=0,one"], "config.seed must be of type int, got 'one'"),
        (["method.warmup=1.5"], "config.method.warmup must be of type int, got '1.5'"),
        (["tensorboard=maybe"], "config.tensorboard must be true or false, got 'maybe'"),
        (["seed=0", "config.seed=1"], "'seed' is given twice"),
        (["seed=0,0"], "two runs of the sweep would share the folder 'seed=0'"),
        (["method.learning_rate=0.1,1e-1"], "share the folder 'learning_rate=0.1'"),
        (["method=1"], "'method' is a group of keys: vary one of method.learning_rate, "),
        (["seed"], "`grid` must be key=a,b,c, got 'seed'"),
        (["seed="], "`grid` must be key=a,b,c, got 'seed='"),
        (["seed=1,,2"], "`grid` must be key=a,b,c"),
        (["=1"], "`grid` must be key=a,b,c"),
        (["model.name=mlp,mpl"], "run name=mpl: config.model.name must be one of"),
        (["seed=1,-1"], "run seed=-1: config.seed must be an integer in .*, got -1"),
        (["rules[0]=1"], r"no key 'rules\[0\]'"),
        (["data.name=digits,cifra10"], r"run name=cifra10: config.data.name must be one of \["),
        (
            ["seed=1", *(f"{key}=" + ",".join(map(str, range(1, 100))) for key in AXES)],
            "a sweep has at most 10000 runs, got 970,299: make it smaller",
        ),
        ([], "nothing varies: give a `grid` of key=a,b,c or the name of a `sweep`"),
    ],
    ids=str,
)
def test_a_wrong_grid_is_refused_in_one_line(grid, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        plan(DIGITS, tmp_path, grid=grid)
    assert "\n" not in str(error.value) and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sweep", "grid", "message"),
    [
        (
            "rate",
            [],
            "no sweep_rate.*; its sweeps are arrays, fails, half, keys, limits, many, nan, ",
        ),
        ("strengths", [], "no key 'method.gamma'"),
        ("wrong", [], "seed must be of type int, got '1'"),
        ("half", [], "config.seed must be of type int, got '0.5'"),
        ("twice", [], "gives 'seed' twice in one run"),
        ("none", [], r"must give a list of 1 to 10000 dicts, got \[\]"),
        ("text", [], "must give a list of 1 to 10000 dicts, got 'seed'"),
        ("fails", [], r"sweep_fails\(\) of .*: ZeroDivisionError: .*py, line 24, in sweep_fails\)"),
        ("nan", [], r"its list\[0\].method.learning_rate must be finite"),
        ("keys", [], r"its list\[0\] has a key 3: keys must be printable text"),
        ("number", [], r"sweep_number\(\) of .*: TypeError: 'int' object is not callable"),
        ("rates", ["method.steps=1,2"], "'method.steps' is given twice"),
    ],
    ids=str,
)
def test_a_wrong_sweep_of_the_config_is_refused_in_one_line(sweep, grid, message, config, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        plan(config, tmp_path / "runs", sweep=sweep, grid=grid)
    assert "\n" not in str(error.value)


def test_what_holds_for_all_runs_may_not_vary(tmp_path):
    with pytest.raises(ValueError, match="'seed' is given twice"):
        plan(DIGITS, tmp_path, fixed=["--config.seed=3"], grid=["seed=0,1"])


def test_a_folder_of_another_run_is_refused_before_anything_starts(tmp_path):
    (run,) = plan(DIGITS, tmp_path, grid=["seed=0"])
    run.folder.mkdir()
    (run.folder / "config.json").write_text(json.dumps({**run.spec, "log_every": 7}))
    plan(DIGITS, tmp_path, grid=["seed=0"])  # it never began
    (run.folder / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"seed=0' holds a run of another config \(log_every: 7"):
        plan(DIGITS, tmp_path, grid=["seed=0"])
