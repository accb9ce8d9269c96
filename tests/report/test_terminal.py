"""Tables of a terminal fit, keep the front's mark, and have figures part below part."""

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bitjax.report.comparison import compare
from bitjax.report.tables import terminal
from bitjax.report.terminal import Column, aligned, fitting, table_of
from bitjax.runs.records import read_runs
from tests.run_folders import write_run


def drawn(table, width):
    file = io.StringIO()
    Console(file=file, width=width, highlight=False).print(table)
    return file.getvalue()


def test_the_fronts_mark_and_the_cost_are_seen_in_eighty_columns(tmp_path):
    for seed in range(3):
        for method, bits, accuracy in (("full_precision", 32, 0.99), ("lsq", 3, 0.9)):
            write_run(
                tmp_path / f"{method}{seed}",
                method=method,
                seed=seed,
                bits=(bits, bits),
                accuracy=accuracy + 0.01 * seed * (bits < 32),
            )
    comparison = compare(read_runs([tmp_path])[0])
    text = drawn(terminal(comparison.groups[0], comparison, 80), 80)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in text
    row = next(line for line in lines if "lsq" in line)
    assert row.split()[:2] == ["*", "lsq"] and row.split()[-1] == "1.4"
    assert "left out, for they do not fit: bits inner, steps, s" in text
    assert "left out" not in drawn(terminal(comparison.groups[0], comparison), 200)


def test_figures_stand_part_below_part():
    texts = ["baseline", "-0.19 [-1.24, 0.87] (3)", "-10.65 [-1.05, -0.25] (12)", "+1.5 (1)", ""]
    first, second, third = aligned(texts)[1:4]
    assert first.index(".") == second.index(".") and first.index("[") == second.index("[")
    assert third.index("+1") == 2 and third.strip() == "+1.5 (1)"


@given(st.lists(st.text("0123456789.+-± []()ab", max_size=12), max_size=6))
def test_alignment_changes_nothing_but_spaces(texts):
    lines = aligned(texts)
    assert [line.replace(" ", "") for line in lines] == [text.replace(" ", "") for text in texts]
    assert len({len(line) for line in lines}) <= 1


def test_what_is_left_out_goes_by_rank_and_rank_0_stays():
    ranks = {"a": 0, "b": 1, "c": 3, "d": 2}
    columns = [Column(name, ["x" * 30 if name == "a" else "1"], n) for name, n in ranks.items()]
    for width, titles in (
        (None, "abcd"),
        (38, "abcd"),
        (37, "abd"),
        (35, "ab"),
        (33, "a"),
        (5, "a"),
    ):
        kept, left = fitting(columns, width)
        assert "".join(column.title for column in kept) == titles
        assert sorted(titles + "".join(left)) == list("abcd")


def test_an_empty_column_is_no_column_and_markup_is_text():
    text = drawn(table_of("[b]t", [Column("a", ["[red]x"]), Column("empty", [""])], 80), 80)
    assert "[b]t" in text and "[red]x" in text and "empty" not in text
