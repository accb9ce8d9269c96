"""The files of a run folder, read one by one with nothing taken for granted.

A folder is data from elsewhere, perhaps of a run that was killed, of an older version, or no run at
all. Whatever is wrong with a file that a comparison needs is an `Unfit` that says so in one line.
"""

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bitjax.files.reading import FileError, MissingError, one_line, read_json, read_text
from bitjax.runs.rows import read_rows

# What a terminal obeys, what ends a line, what turns the direction of text, half characters.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)

PLAN = "plan.json"  # what a run is about to do, for those who watch it
_BITS_COLUMNS = ["site", "role", "bits_fractional", "bits_integer", "macs", "elements"]
_ROLES = ("kernel", "input", "left", "right", "cache")


class SiteBits(NamedTuple):
    """A row of `bits.csv`.

    Attributes:
      site: its name.
      role: `kernel`, `input`, `left` and `right` of a product of two activations, or `cache`.
      fractional: bits before rounding; a float site has 32.
      integer: bits of the final model.
      macs: multiply-adds of the layer per example.
      elements: elements of the kernel, or of the input per example.
    """

    site: str
    role: str
    fractional: float
    integer: float
    macs: float
    elements: float


class Unfit(Exception):
    """Why a folder cannot be compared."""


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def read_object(path: Path) -> Mapping[str, Any]:
    """A file that holds a JSON object."""
    try:
        value = read_json(path)
    except MissingError:
        raise Unfit(f"is damaged: there is no {path.name}") from None
    except FileError as error:
        raise Unfit(f"is damaged: {path.name} {error.what}") from None
    if not isinstance(value, Mapping):
        raise Unfit(f"is damaged: {path.name} holds no object")
    return value


def check_text(value: Any, place: str) -> None:
    """Refuses text, keys among it, that could do more in a table or a command than be read."""
    if isinstance(value, str) and (found := _CONTROLS.search(value)):
        raise Unfit(f"is damaged: {place} has the control character {ascii(found[0])}")
    inner = value.items() if isinstance(value, Mapping) else ()
    for key, below in inner:
        check_text(key, f"a key in {place}")
        check_text(below, f"{key} in {place}")
    for below in value if isinstance(value, list | tuple) else ():
        check_text(below, place)


def other_version(file: str, key: str) -> Unfit:
    """The reason where a file lacks what this version writes."""
    return Unfit(f"is of another version of bitjax: {file} has no {key}; run its config again")


def text_of(mapping: Mapping[str, Any], key: str) -> str:
    """A text of `result.json`."""
    if key not in mapping:
        raise other_version("result.json", key)
    if not isinstance(mapping[key], str):
        raise Unfit(f"is damaged: {key} in result.json must be text, got {shown(mapping[key])}")
    return mapping[key]


def number_of(mapping: Mapping[str, Any], *keys: str) -> float:
    """A finite number of `result.json`, by the keys that lead to it."""
    value: Any = mapping
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            raise other_version("result.json", ".".join(keys))
        value = value[key]
    if not is_number(value):
        raise Unfit(
            f"is damaged: {'.'.join(keys)} in result.json must be a finite number, "
            f"got {shown(value)}"
        )
    return value


def read_sites(path: Path) -> tuple[SiteBits, ...]:
    """The rows of `bits.csv`."""
    try:
        lines = list(csv.reader(read_text(path).splitlines(keepends=True)))
    except MissingError:
        raise Unfit("is damaged: there is no bits.csv") from None
    except (FileError, csv.Error) as error:
        raise Unfit(f"is damaged: bits.csv {getattr(error, 'what', one_line(error))}") from None
    if not lines or lines[0] != _BITS_COLUMNS:
        raise Unfit(f"is of another version of bitjax: bits.csv must begin with {_BITS_COLUMNS}")
    rows = []
    for number, line in enumerate(lines[1:], 2):
        try:
            site, role, *texts = line
            figures = [float(text) for text in texts]
            row = SiteBits(site, role, *figures)
        except (ValueError, TypeError):
            row = None
        # NaN is not in any range.
        if row is None or row.role not in _ROLES or not all(0 <= v < math.inf for v in row[2:]):
            raise Unfit(f"is damaged: line {number} of bits.csv is {shown(','.join(line))}")
        check_text(row.site, f"line {number} of bits.csv")
        rows.append(row)
    if not rows:
        raise Unfit("is damaged: bits.csv has no sites")
    return tuple(rows)


def read_metrics(path: Path, notes: list[str]) -> tuple[Mapping[str, Any], ...]:
    """The rows of `metrics.jsonl`; without them a comparison only lacks its curves."""
    if not path.exists():
        return ()  # results/ keeps runs without them
    try:
        rows = read_rows(path)
        if not all(is_number(row.get("step")) for row in rows):
            raise ValueError("the step of a row is no number")
        return tuple(rows)
    except (ValueError, AttributeError, TypeError, OSError) as error:
        notes.append(f"no training curves: metrics.jsonl is damaged ({one_line(error)})")
        return ()


def read_distortion(path: Path, notes: list[str]) -> Mapping[str, Any] | None:
    """What `distortion.json` holds; without it a comparison only lacks its chart."""
    if not path.exists():
        return None
    try:
        value = read_object(path)
        rates = list(value["rates"])
        sqnr = {name: list(curve) for name, curve in value["sqnr"].items()}
        if not rates or not sqnr or any(len(curve) != len(rates) for curve in sqnr.values()):
            raise ValueError("it must have a number for each rate")
        if not all(is_number(v) for curve in (rates, *sqnr.values()) for v in curve):
            raise ValueError("not all of it are numbers")
        return {"rates": rates, "sqnr": sqnr}
    except (Unfit, ValueError, KeyError, TypeError, AttributeError) as error:
        notes.append(f"no distortion against rate: distortion.json is damaged ({one_line(error)})")
        return None


def shown(value: Any) -> str:
    """A value in a message: one line, not too long."""
    return repr(one_line(value, 120))
