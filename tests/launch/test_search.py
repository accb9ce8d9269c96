"""A search chooses runs by the scores of those before, and goes on where it was stopped."""

import json
import math

import pytest

from bitjax.launch.config_files import load_config
from bitjax.launch.search import parse_range, plan_search, run_search
from bitjax.runs.folder import config_hash

optuna = pytest.importorskip("optuna", reason="needs the extra optuna")
DIGITS = "configs/digits/float.py"
RATE, WIDTH = "method.learning_rate=0.001:1:log", "method.steps=10:500"


def planned(workdir, *, trials=8, ranges=(RATE, WIDTH), grid=(), fixed=()):
    return plan_search(DIGITS, workdir, fixed=fixed, grid=grid, ranges=ranges, trials=trials,
                       arguments=("digits/float",))  # fmt: skip


def score(spec, **changes):
    """What a run with a config reaches: most at a rate of 0.03."""
    value = 0.9 - 0.1 * (math.log10(spec["method"]["learning_rate"]) + 1.5) ** 2
    return {
        "name": "accuracy",
        "value": value,
        "higher_is_better": True,
        "form": "{:.2%}",
    } | changes


def runner(said, *, stop_after=None, fails=(), **changes):
    """Runs as a queue does, without training; `said` gets the name and the rate of each."""

    def run(runs):
        for each in runs:
            if stop_after is not None and len(said) >= stop_after:
                return True
            said.append((each.name, each.spec["method"]["learning_rate"]))
            if len(said) - 1 in fails:
                continue
            each.folder.mkdir(exist_ok=True)
            result = {
                "status": "finished",
                "config_hash": config_hash(each.spec),
                "wall_seconds": 1.0,
            }
            result |= {"score": score(each.spec, **changes), "bits": {"all": {"integer": 32.0}}}
            (each.folder / "result.json").write_text(json.dumps(result))
        return False

    return run


def test_a_trial_that_the_config_refuses_counts_as_failed_and_the_others_go_on(tmp_path, capsys):
    momentum = "method.momentum=0.5:1.2"  # the method takes less than 1
    search = planned(tmp_path, trials=9, ranges=(RATE, momentum))
    said = []
    assert run_search(search, 4, runner(said)) == 0
    told = capsys.readouterr().err.splitlines()
    assert 0 < len(said) < 9 and len(said) + len(told) == 9
    assert all("is no run: " in line and "momentum" in line for line in told)
    assert run_search(search, 4, runner(said)) == 0 and len(said) + len(told) == 9


def test_later_trials_are_better_than_the_first_and_the_best_is_told(tmp_path, capsys):
    said = []
    assert run_search(planned(tmp_path, trials=25), 1, runner(said)) == 0
    off = [abs(math.log10(rate) + 1.5) for _, rate in said]
    assert sum(off[15:]) < sum(off[:10]), "ten each"
    best = said[min(range(25), key=off.__getitem__)]
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"best of 25: {best[0]}  accuracy 9")
    assert f"method.learning_rate={best[1]!r}" in line
    study = optuna.load_study(
        study_name="sweep",
        storage=optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(tmp_path / "optuna" / "journal.log"))
        ),
    )
    assert study.direction.name == "MAXIMIZE" and study.best_value > 0.89
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert len(record["runs"]) == 25 and record["commands"] == ["bitjax sweep digits/float"]


@pytest.mark.parametrize("stop_after", [0, 5])
def test_a_search_that_was_stopped_chooses_what_it_would_have_chosen(stop_after, tmp_path):
    whole, halves = [], []
    run_search(planned(tmp_path / "a"), 2, runner(whole))
    assert run_search(planned(tmp_path / "b"), 2, runner(halves, stop_after=stop_after)) == 75
    assert run_search(planned(tmp_path / "b"), 2, runner(halves)) == 0
    # What had ended in the round that was stopped is looked at again, and the queue skips it.
    assert list(dict.fromkeys(halves)) == whole


def test_a_run_that_fails_has_no_score_and_the_others_go_on(tmp_path, capsys):
    said = []
    assert run_search(planned(tmp_path, trials=4), 1, runner(said, fails=(1,))) == 0
    assert "best of 3: " in capsys.readouterr().out
    assert run_search(planned(tmp_path, trials=4), 1, runner(said)) == 0 and len(said) == 4
    assert run_search(planned(tmp_path / "b", trials=2), 1, runner([], fails=(0, 1))) == 1


def test_more_trials_go_on_with_the_same_search_and_another_search_is_refused(tmp_path):
    said = []
    run_search(planned(tmp_path, trials=2), 1, runner(said))
    run_search(planned(tmp_path, trials=3), 1, runner(said))
    assert [name for name, _ in said] == ["trial000", "trial001", "trial002"]
    for other in (planned(tmp_path, ranges=[RATE]), planned(tmp_path, fixed=["--config.seed=1"])):
        with pytest.raises(ValueError, match="holds another search"):
            run_search(other, 1, runner(said))
    with pytest.raises(ValueError, match="another score than the search: loss, of which less"):
        less = {"name": "loss", "higher_is_better": False}
        run_search(planned(tmp_path, trials=4), 1, runner(said, **less))
    (tmp_path / "optuna" / "journal.log").write_text("nonsense\n")
    with pytest.raises(ValueError, match="journal.log .*choose another workdir"):
        run_search(planned(tmp_path, trials=5), 1, runner(said))


def test_choices_whole_numbers_and_ranges_are_kept_to(tmp_path):
    specs = []

    def run(runs):
        specs.extend(each.spec for each in runs)
        return runner([])(runs)

    grid = ["model.name=mlp,small_cnn", "data.mean=(0.1,),(0.2,)"]
    run_search(planned(tmp_path, trials=8, grid=grid), 4, run)
    assert {spec["model"]["name"] for spec in specs} == {"mlp", "small_cnn"}
    assert {tuple(spec["data"]["mean"]) for spec in specs} == {(0.1,), (0.2,)}
    assert all(isinstance(spec["method"]["steps"], int) for spec in specs)
    assert all(0.001 <= spec["method"]["learning_rate"] <= 1 for spec in specs)


@pytest.mark.parametrize(
    "text, said",
    [
        ("method.learning_rate", "must be key=low:high or key=low:high:log"),
        ("method.learning_rate=1:0.1", "must be key=low:high"),
        ("method.learning_rate=nan:1", "must be key=low:high"),
        ("method.learning_rate=0:1:log", "must be above 0 for a logarithm"),
        ("method.learning_rate=0:1:ln", "must be key=low:high"),
        ("method.learningrate=0:1", "no key 'method.learningrate'"),
        ("method.steps=0.5:10", "is a whole number: so must be the ends"),
        ("model.name=1:2", "is no number but 'small_cnn'"),
        ("keep_best=0:1", "is no number but False"),
    ],
)
def test_a_range_that_is_none_is_refused_in_one_line(text, said):
    with pytest.raises(ValueError, match=said):
        parse_range(text, load_config(DIGITS))


def test_what_makes_no_search_is_refused_before_any_run(tmp_path):
    for given, said in (
        ({"ranges": ()}, "nothing is searched"),
        ({"ranges": ["seed=0:9"]}, "cannot vary seed"),
        ({"ranges": [RATE, RATE]}, "is given twice"),
        ({"fixed": ["--config.method.steps=3"]}, "'method.steps' is given twice"),
    ):
        with pytest.raises(ValueError, match=said):
            planned(tmp_path, **given)
    with pytest.raises(ValueError, match=r"run trial000: config.method.steps must be"):
        run_search(planned(tmp_path, ranges=["method.steps=-9:-1"]), 1, runner([]))
