"""Runs under way fit into a terminal, whatever they are called and however many they are."""

import io
import math

from rich.console import Console

from bitjax.report.live import clock, live_table
from bitjax.report.terminal import bar
from bitjax.runs.records import Score
from bitjax.runs.watch import Seen

ACCURACY = Score("accuracy", math.nan, True, "{:.2%}")


def drawn(runs, width=80, color=False, **options) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=color, highlight=False)
    console.print(live_table(runs, width=width, **options))
    return file.getvalue()


def test_a_row_says_how_far_a_run_is_and_what_it_reached():
    reached = ACCURACY._replace(value=0.9)
    figures = {"loss": 0.31234, "accuracy": 0.5, "bits": 3.256}
    runs = [
        Seen("runs/b", "finished", "", "", 90, 90, {"bits": 4.0}, reached, seconds=75),
        Seen("runs/a", "running", "", "learn", 45, 90, figures, ACCURACY, 3725.0),
        Seen("runs/c", "running", "", "learn", 3, 0, {**figures, "eval_accuracy": 0.6}, ACCURACY),
        Seen("runs/old", "running", "", "learn", 3, 0, {"perplexity": 4.0, "loss": math.nan}),
    ]  # fmt: skip
    text = drawn(runs)
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["a"] == [
        "a",
        "running",
        "━━━",
        "50",
        "%",
        "0.3123",
        "~50.00%",
        "3.26",
        "1:02:05",
        "left",
    ]
    assert rows["b"] == ["b", "finished", "━━━━━━", "100", "%", "90.00%", "4.00", "1:15"]
    assert rows["c"] == ["c", "running", "step", "3", "0.3123", "60.00%", "3.26"]
    assert rows["old"] == ["old", "running", "step", "3", "nan", "~4.0000"]
    assert text.index(" a ") < text.index(" b ") and "3 running, 1 finished" in text  # fmt: skip


def test_what_is_wrong_stands_below_with_its_reason():
    text = drawn([Seen("a/x", "failed", "ValueError: no\x1b[2J luck"), Seen("a/y", "finished")])
    assert "x failed: ValueError: no\\x1b[2J luck" in text and "\x1b" not in text


def test_it_fits_any_terminal_and_counts_what_it_leaves_out():
    wild = ["[bold]" * 30, "\\u202egnp.exe", "名" * 60, "a\\tb", ""]
    runs = [
        Seen(f"runs/{wild[i % 5]}{i}", ("running", "killed")[i % 2], "why " * 50 * (i % 2),
             step=10**15, steps=2 * 10**15, figures={"loss": -1e300, "bits": 1e9, "accuracy": 1.0},
             score=ACCURACY, left=1e8)
        for i in range(40)
    ]  # fmt: skip
    text = drawn(runs, 80, lines=24)
    assert len(text.splitlines()) <= 24 and "more than fit)" in text
    assert max(map(len, text.splitlines())) <= 80
    assert len(drawn(runs, 140).splitlines()) > 60  # into a file all of them


def test_a_terminal_without_unicode_and_without_colour_says_the_same():
    runs = [Seen("a/x", "failed", "no", step=1, steps=2), Seen("a/" + "y" * 99, "finished")]
    plain = drawn(runs, plain=True)
    assert "### " in plain and "━" not in plain and "…" not in plain and "failed" in plain
    assert "\x1b[31m" in drawn(runs, color=True)


def test_no_runs_are_said_to_be_none():
    assert "no runs yet" in drawn([])


def test_bars_and_clocks_know_their_bounds():
    assert (bar(-1, 3), bar(2, 3), bar(0.5, 3)) == ("   ", "━━━", "━╸ ")
    assert [clock(s) for s in (0, 59.6, 3600)] == ["0:00", "1:00", "1:00:00"]
    assert clock(math.nan) == clock(math.inf) == ""
