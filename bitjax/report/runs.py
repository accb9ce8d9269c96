"""Run folders as plain values; whatever cannot be compared is listed with the reason.

`read_runs` never raises because of what a folder holds: a folder is data from elsewhere, perhaps of
a run that was killed, of an older version, or no run at all.
"""

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bitjax.training.metrics import read_rows
from bitjax.training.run_folder import config_hash

_BITS_COLUMNS = ["site", "role", "bits_fractional", "bits_integer", "macs", "elements"]
_ROLES = ("kernel", "input")
_BITS = ("weights", "activations", "all", "inner")
_COSTS = ("model_bytes", "float_model_bytes", "activation_bytes", "bops", "macs")
_FILES = ("result.json", "config.json", "metrics.jsonl")


class SiteBits(NamedTuple):
    """A row of `bits.csv`.

    Attributes:
      site: its name.
      role: `kernel` or `input`.
      fractional: bits before rounding; a float site has 32.
      integer: bits of the final model.
      macs: multiply-adds of the layer per example.
      elements: of the kernel; of the input per example.
    """

    site: str
    role: str
    fractional: float
    integer: float
    macs: float
    elements: float


class RunRecord(NamedTuple):
    """A finished run.

    Attributes:
      folder: where it is.
      name: what tables call it.
      method: its name.
      model: its name.
      data: its name.
      eval_split: what `accuracy` was measured on.
      seed: of the run.
      config: path of its config file, with the variant behind a colon.
      settings: `config.json`.
      commit: that made it; `unknown` where git was not there.
      device: that it ran on.
      versions: of Python and the libraries.
      accuracy: top-1 of the final integer model, a fraction.
      steps: of training.
      wall_seconds: it took.
      stages: `(name, steps, accuracy)` each.
      bits: average bits by `weights`, `activations`, `all`, `inner`: `(fractional, integer)`.
      costs: `model_bytes`, `float_model_bytes`, `activation_bytes`, `bops` and `macs`.
      sites: in forward order.
      metrics: the rows of `metrics.jsonl`; empty where the folder has none.
      distortion: of `distortion.json`, where `experiments.rate_distortion` wrote one: `rates` and
        `sqnr` in dB by name, medians over sites.
      notes: what is wrong with parts that a comparison can do without.
    """

    folder: str
    name: str
    method: str
    model: str
    data: str
    eval_split: str
    seed: int
    config: str
    settings: Mapping[str, Any]
    commit: str
    device: str
    versions: Mapping[str, str]
    accuracy: float
    steps: int
    wall_seconds: float
    stages: tuple[tuple[str, int, float], ...]
    bits: Mapping[str, tuple[float, float]]
    costs: Mapping[str, float]
    sites: tuple[SiteBits, ...]
    metrics: tuple[Mapping[str, Any], ...] = ()
    distortion: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


class Skipped(NamedTuple):
    """A folder that is not compared, and why."""

    folder: str
    reason: str


class _Unfit(Exception):
    """Why a folder cannot be compared."""


def read_runs(paths: Iterable[str | os.PathLike]) -> tuple[list[RunRecord], list[Skipped]]:
    """Reads run folders, and those that lie in folders which are no runs themselves.

    Args:
      paths: of folders; one that is named twice is read once.

    Returns:
      The finished runs, in the order given, and the folders that are none.

    Example:
      >>> read_runs(["no/such/folder"])
      ([], [Skipped(folder='no/such/folder', reason='there is no such folder')])
    """
    records: list[RunRecord] = []
    skipped: list[Skipped] = []
    seen: set[Path] = set()
    for given in paths:
        for folder in _folders(Path(given)):
            try:
                place = folder.resolve()
                if place in seen:
                    continue
                seen.add(place)
                records.append(read_run(folder))
            except (_Unfit, ValueError, OSError, csv.Error) as error:
                skipped.append(Skipped(_name(folder), _one_line(error)))
    return records, skipped


def read_run(folder: str | os.PathLike) -> RunRecord:
    """Reads one finished run.

    Raises:
      Exception: with the reason in one line, where it is unfinished, damaged, of an older version,
        or no run; `read_runs` turns that into a value.
    """
    folder = Path(folder)
    if not folder.exists():
        raise _Unfit("there is no such folder")
    if not folder.is_dir():
        raise _Unfit("is a file, not a run's folder")
    if not any((folder / name).exists() for name in _FILES):
        raise _Unfit(f"is not a run's folder: it has none of {', '.join(_FILES)}")
    if not (folder / "result.json").exists():
        raise _Unfit("is not finished: there is no result.json; run its command again to resume")
    result = _object(folder / "result.json")
    status = result.get("status")
    if status != "finished":
        error = f" ({_short(result['error'])})" if result.get("error") else ""
        raise _Unfit(f"is {_short(status)}, not finished{error}")
    settings = _object(folder / "config.json")
    for key in ("model", "data", "method"):
        if not isinstance(settings.get(key), Mapping) or not settings[key].get("name"):
            raise _old("config.json", f"{key}.name")
    if _text(result, "config_hash") != config_hash(settings):
        raise _Unfit("is damaged: config.json is not the one that result.json was made from")
    stages = result.get("stages")
    if not isinstance(stages, list) or not all(isinstance(s, Mapping) for s in stages):
        raise _old("result.json", "stages")
    versions = result.get("versions")
    versions = versions if isinstance(versions, Mapping) else {}
    notes: list[str] = []
    accuracy = _number(result, "accuracy")
    if not 0 <= accuracy <= 1:
        raise _Unfit(f"is damaged: the accuracy in result.json must be in [0, 1], got {accuracy}")
    return RunRecord(
        folder=_name(folder),
        name=_text(result, "name") or folder.name,
        method=_text(result, "method"),
        model=_text(result, "model"),
        data=_text(result, "data"),
        eval_split=_text(result, "eval_split"),
        seed=int(_number(result, "seed")),
        config=_text(result, "config"),
        settings=settings,
        commit=str(result.get("commit") or "unknown"),
        device=str(result.get("device") or "unknown"),
        versions={str(k): str(v) for k, v in versions.items()},
        accuracy=accuracy,
        steps=int(_number(result, "steps")),
        wall_seconds=_number(result, "wall_seconds"),
        stages=tuple(
            (_text(s, "name"), int(_number(s, "steps")), _number(s, "accuracy")) for s in stages
        ),
        bits={
            k: (_number(result, "bits", k, "fractional"), _number(result, "bits", k, "integer"))
            for k in _BITS
            if k != "inner" or k in result.get("bits", {})  # two layers have no inner one
        },
        costs={name: _number(result, "cost", name) for name in _COSTS},
        sites=_sites(folder / "bits.csv"),
        metrics=_metrics(folder / "metrics.jsonl", notes),
        distortion=_distortion(folder / "distortion.json", notes),
        notes=tuple(notes),
    )


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold.

    Example:
      >>> is_number(0.5), is_number(True), is_number("1"), is_number(10**400)
      (True, False, False, False)
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _name(folder: Path) -> str:
    # A folder's name is bytes, of any encoding.
    return os.fsencode(folder).decode("utf-8", "replace")


def _folders(path: Path) -> list[Path]:
    """The path itself if it is a run's or nothing is found in it, else the runs inside."""
    if not path.is_dir() or any((path / name).exists() for name in _FILES):
        return [path]
    inside = {p.parent for name in ("result.json", "config.json") for p in path.rglob(name)}
    # checkpoints hold files of Orbax's own
    return sorted(p for p in inside if "checkpoints" not in p.relative_to(path).parts) or [path]


def _object(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise _Unfit(f"is damaged: there is no {path.name}") from None
    except (ValueError, RecursionError) as error:
        raise _Unfit(f"is damaged: {path.name} is not JSON ({error})") from None
    try:  # JSON can escape half a character, which no file can then hold
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _Unfit(f"is damaged: {path.name} holds text that is no Unicode") from None
    if not isinstance(value, Mapping):
        raise _Unfit(f"is damaged: {path.name} holds no object")
    return value


def _old(file: str, key: str) -> _Unfit:
    return _Unfit(f"is of another version of bitjax: {file} has no {key}; run its config again")


def _text(mapping: Mapping[str, Any], key: str) -> str:
    if key not in mapping:
        raise _old("result.json", key)
    if not isinstance(mapping[key], str):
        raise _Unfit(f"is damaged: {key} in result.json must be text, got {_short(mapping[key])}")
    return mapping[key]


def _number(mapping: Mapping[str, Any], *keys: str) -> float:
    value: Any = mapping
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            raise _old("result.json", ".".join(keys))
        value = value[key]
    if not is_number(value):
        raise _Unfit(
            f"is damaged: {'.'.join(keys)} in result.json must be a finite number, "
            f"got {_short(value)}"
        )
    return value


def _sites(path: Path) -> tuple[SiteBits, ...]:
    if not path.exists():
        raise _Unfit("is damaged: there is no bits.csv")
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    if not lines or lines[0] != _BITS_COLUMNS:
        raise _Unfit(f"is of another version of bitjax: bits.csv must begin with {_BITS_COLUMNS}")
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
            raise _Unfit(f"is damaged: line {number} of bits.csv is {_short(','.join(line))}")
        rows.append(row)
    if not rows:
        raise _Unfit("is damaged: bits.csv has no sites")
    return tuple(rows)


def _metrics(path: Path, notes: list[str]) -> tuple[Mapping[str, Any], ...]:
    if not path.exists():
        return ()  # results/ keeps runs without them
    try:
        rows = read_rows(path)
        if not all(is_number(row.get("step")) for row in rows):
            raise ValueError("the step of a row is no number")
        return tuple(rows)
    except (ValueError, AttributeError, TypeError, OSError) as error:
        notes.append(f"no training curves: metrics.jsonl is damaged ({_one_line(error)})")
        return ()


def _distortion(path: Path, notes: list[str]) -> Mapping[str, Any] | None:
    if not path.exists():
        return None
    try:
        value = _object(path)
        numbers = [*value["rates"], *(v for curve in value["sqnr"].values() for v in curve)]
        if not all(map(is_number, numbers)):
            raise ValueError("not all of it are numbers")
        return {
            "rates": list(value["rates"]),
            "sqnr": {k: list(v) for k, v in value["sqnr"].items()},
        }
    except (_Unfit, ValueError, KeyError, TypeError, AttributeError) as error:
        notes.append(f"no distortion against rate: distortion.json is damaged ({_one_line(error)})")
        return None


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return repr(text if len(text) <= 120 else text[:117] + "...")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
