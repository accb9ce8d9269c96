"""Pictures show the numbers that they are given."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

from bitjax.report import plots
from bitjax.report.comparison import compare
from bitjax.runs.files import SiteBits
from bitjax.runs.records import read_runs
from tests.run_folders import write_run


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def runs(tmp_path):
    folders = [
        write_run(tmp_path / "float", method="full_precision", bits=(32, 32), accuracy=0.95),
        write_run(tmp_path / "lsq", bits=(4, 3), accuracy=0.9),
        write_run(tmp_path / "tsq", method="tsq", bits=(2, 2), accuracy=0.8),
    ]
    return read_runs(folders)[0]


def test_bars_are_as_high_as_the_bits_and_float_is_cut_off_and_labelled(runs):
    axes = plots.bits_per_layer(runs[1].sites)
    assert sorted({bar.get_height() for bar in axes.patches}) == [3, 4]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["conv1", "conv2", "conv3", "head"]
    axes = plots.bits_per_layer(runs[0].sites)
    assert all(bar.get_height() < 10 for bar in axes.patches)
    assert {t.get_text() for t in axes.texts} == {"32"}


def test_bits_by_site_are_drawn_as_a_runs_sites_are():
    final = {"conv/kernel": np.array([2.0, 4.0]), "conv/input": 5.0}
    axes = plots.bits_per_layer(final, learned={"conv/kernel": np.array([2.4, 3.2])})
    assert [bar.get_height() for bar in axes.patches] == [3.0, 5.0]
    (marks,) = axes.lines
    assert marks.get_ydata() == pytest.approx([2.8])


def test_the_front_joins_the_rows_that_are_on_it(runs):
    (group,) = compare(runs).groups
    axes = plots.pareto(group, "bits_all")
    front = next(line for line in axes.lines if line.get_label() == "front")
    assert front.get_xydata().tolist() == [[2, 80], [3.5, 90], [32, 95]]
    assert axes.get_xscale() == "log"
    assert "time on Loom" in plots.pareto(group, "loom").get_xlabel()


def test_the_front_of_a_perplexity_goes_down_and_caches_have_places_of_their_own(tmp_path):
    folders = [
        write_run(
            tmp_path / "float", method="full_precision", bits=(32, 32), measured={"ppl": 3.0}
        ),
        write_run(tmp_path / "lsq", bits=(4, 4), measured={"ppl": 3.5}),
        write_run(tmp_path / "pact", method="pact", bits=(8, 8), measured={"ppl": 4.0}),
    ]
    (group,) = compare(read_runs(folders)[0]).groups
    axes = plots.pareto(group, "bits_all")
    front = next(line for line in axes.lines if line.get_label() == "front")
    assert front.get_xydata().tolist() == [[4, 3.5], [32, 3]] and axes.get_ylabel() == "ppl"
    sites = [SiteBits(f"a/{role}", role, 4, bits, 0, 0)
             for bits, role in enumerate(("kernel", "input"), 2)]  # fmt: skip
    sites += [SiteBits(f"a/{name}_cache", "cache", 4, bits, 0, 0)
              for bits, name in enumerate(("key", "value"), 4)]  # fmt: skip
    axes = plots.bits_per_layer(sites)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["a", "a/key_cache", "a/value_cache"]
    assert [bar.get_height() for bar in axes.patches] == [2, 3, 4, 5]


def test_levels_are_drawn_once_each_over_the_histogram():
    x = np.linspace(-1, 1, 50)
    axes = plots.tensor_histogram(x, np.round(x))
    assert [line.get_xdata()[0] for line in axes.lines] == [-1, 0, 1]


def test_planes_put_together_are_the_codes():
    codes_HxW = np.arange(16).reshape(4, 4)
    shown = plots.planes(codes_HxW, 4)
    planes_4xHxW = [np.asarray(axes.images[0].get_array()) for axes in shown]
    weights = [8, 4, 2, 1]
    again = sum(w * plane for w, plane in zip(weights, planes_4xHxW, strict=True))
    assert np.array_equal(again, codes_HxW)


@pytest.mark.parametrize("codes", [np.zeros(4), [[4]], [[-1]], [[0.5]]])
def test_what_are_no_codes_have_no_planes(codes):
    with pytest.raises(ValueError, match=r"`codes` must be \[H, W\] integers in \[0, 4\)"):
        plots.planes(np.asarray(codes), 2)


def test_changed_codes_are_counted_from_and_to():
    axes = plots.code_changes([[0, 0, 1], [1, 1, -1]], [[0, 1, 1], [1, 1, -1]])
    assert np.expm1(np.asarray(axes.images[0].get_array())).round().tolist() == [
        [1, 0, 0],
        [0, 1, 1],
        [0, 0, 3],
    ]
    assert axes.get_title() == "16.7 % of codes changed"
    with pytest.raises(ValueError, match="must have one size, got 1 and 2"):
        plots.code_changes([0], [0, 1])


def test_curves_leave_out_rows_without_the_value_and_mark_stages():
    rows = [
        {"step": 10, "stage": "a", "accuracy": 0.5, "bits": 8.0},
        {"step": 15, "eval_accuracy": 0.6},
        {"step": 20, "stage": "b", "accuracy": 0.7, "bits": 4.0},
    ]
    accuracy, bits = plots.curves(rows, ("accuracy", "bits"))
    assert accuracy.lines[0].get_xydata().tolist() == [[10, 0.5], [20, 0.7]]
    assert bits.lines[0].get_ydata().tolist() == [8, 4]
    assert accuracy.lines[1].get_xdata()[0] == 10


def test_sites_are_points_their_median_a_line_and_bounds_are_lines():
    sqnr_SxR = np.array([[5.0, 11.0], [7.0, 12.0], [6.0, 10.0]])
    axes = plots.distortion_rate([1, 2], {"uniform": sqnr_SxR}, {"Gaussian": [6.0, 12.0]})
    lines = {line.get_label(): line.get_ydata().tolist() for line in axes.lines}
    assert lines["uniform"] == [6, 11] and lines["Gaussian"] == [6, 12]
    assert len(axes.lines) == 5


def test_pictures_go_on_the_axes_they_are_given(runs):
    _, axes = plt.subplots()
    assert plots.bits_per_layer(runs[1].sites, axes=axes) is axes
    assert plots.tensor_histogram([1.0], axes=axes) is axes


def test_a_runs_text_is_no_formula_in_a_picture(tmp_path):
    layers = [("$x_{$", 10, 10, 5), ("b", 10, 10, 5)]
    run = write_run(tmp_path / "run", method="$a_{$", data="$b^$", layers=layers)
    record = read_runs([run])[0][0]
    for axes in (plots.pareto(compare([record]).groups[0]), plots.bits_per_layer(record.sites)):
        axes.figure.canvas.draw()
