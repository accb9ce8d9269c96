"""Fits tables into a terminal: columns by how much they tell, figures part below part, bars."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

_NARROW = 16  # letters of a name in a line; of a column that folds, longer ones take several lines


class Column(NamedTuple):
    """A column of texts.

    Attributes:
      title: its title.
      texts: its cells.
      rank: of columns that do not fit, those of the highest are left out, those of 0 never.
      folds: whether its texts are names, which take several lines where they are too long.
      left: whether its texts begin where the column does.
    """

    title: str
    texts: Sequence[str]
    rank: int = 0
    folds: bool = False
    left: bool = False


def table_of(title: str, columns: Sequence[Column], width: int | None) -> Table:
    """A table of the columns that a line of `width` holds; below it, which are left out."""
    kept, left = fitting([column for column in columns if any(column.texts)], width)
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 0))
    if left:
        table.caption = escape(f"left out, for they do not fit: {', '.join(left)}")
        table.caption_justify = "left"
    for column in kept:
        if column.folds:
            table.add_column(escape(column.title), overflow="fold", min_width=_NARROW)
        else:
            justify = "left" if column.left else "right"
            table.add_column(escape(column.title), justify=justify, no_wrap=True)
    for row in zip(*(column.texts for column in kept), strict=True):
        table.add_row(*map(escape, row))
    return table


def fitting(columns: Sequence[Column], width: int | None) -> tuple[list[Column], list[str]]:
    """The columns that a line of so many letters holds, and the titles of the others.

    Example:
      >>> columns = [Column("run", ["a"]), Column("bits", ["3.25"], 1), Column("s", ["17"], 2)]
      >>> [column.title for column in fitting(columns, 10)[0]], fitting(columns, 10)[1]
      (['run', 'bits'], ['s'])
    """
    kept = list(columns)
    while width is not None and sum(map(_width, kept)) > width - 1:
        if not (last := max(kept, key=lambda column: column.rank)).rank:
            break
        kept.remove(last)
    return kept, [column.title for column in columns if column not in kept]


def _width(column: Column) -> int:
    return 1 + max(map(len, (column.title, *column.texts)))


def aligned(texts: Sequence[str]) -> list[str]:
    """Figures with a spread or an interval behind them, each part below its like.

    Example:
      >>> aligned(["99.44", "98.5 ± 0.25", "100 ± 1"])
      ['99.44       ', ' 98.5 ± 0.25', '  100 ±    1']
    """
    split = [text.split(" ") if text[:1] in set("+-.0123456789") else [] for text in texts]
    # Parts stand below each other where there are equally many, the first ones always.
    counts = [max(1, len(parts)) for parts in split]
    widths = {
        (count, place): max(
            len(parts[place])
            for parts in split
            if len(parts) > place and (len(parts) == count or not place)
        )
        for count in set(counts)
        for place in range(count)
        if any(split)
    }
    lines = [
        " ".join(part.rjust(widths[count, place]) for place, part in enumerate(parts))
        for count, parts in zip(counts, split, strict=True)
    ]
    longest = max(map(len, (*lines, *texts)), default=0)
    return [
        line.ljust(longest) if line else text.rjust(longest)
        for line, text in zip(lines, texts, strict=True)
    ]


def bar(share: float, width: int, *, plain: bool = False) -> str:
    """A bar of a share in [0, 1], to half a letter; `plain` is for terminals without Unicode.

    Example:
      >>> bar(0.55, 10), bar(0.55, 10, plain=True)
      ('━━━━━╸    ', '#####     ')
    """
    halves = round(2 * width * min(1.0, max(0.0, share)))
    whole, half = ("#", "") if plain else ("━", "╸")
    return (whole * (halves // 2) + half * (halves % 2)).ljust(width)
