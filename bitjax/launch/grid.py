"""Plans a sweep: a config and what varies become named runs, each checked before any starts."""

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from bitjax.launch.config_files import config_module, load_config
from bitjax.launch.overrides import arguments_of, check_key, override_key, value_of
from bitjax.launch.programs import program, shown
from bitjax.launch.schema import plain
from bitjax.runs.files import Unfit, read_object
from bitjax.runs.folder import check_holds_runs, differences_there, is_hash_of

Overrides = dict[str, str]  # by key, without `config.`, as the command line writes values
_MOST = 10_000  # runs of a sweep


class SweepRun(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: a readable name made of what varies; the folder has it too.
      folder: the run's folder.
      overrides: the keys of the config that it changes, as text.
      spec: the whole config as plain data.
      steps: the number of training steps, over all stages.
    """

    name: str
    folder: Path
    overrides: Overrides
    spec: dict[str, Any]
    steps: int

    @property
    def finished(self) -> bool:
        """Whether its folder holds the result of this very config."""
        result = read_json(self.folder / "result.json")
        same = is_hash_of(result.get("config_hash"), self.spec)
        return same and result.get("status") == "finished"


def plan(
    path: str,
    workdir: Path,
    *,
    fixed: Sequence[str] = (),
    grid: Sequence[str] = (),
    sweep: str = "",
) -> list[SweepRun]:
    """The runs of a sweep: the product of the `grid` axes with what `sweep_NAME()` lists."""
    check_holds_runs(workdir)
    base = load_config(path, fixed)
    if not grid and not sweep:
        raise ValueError("nothing varies: give a `grid` of key=a,b,c or the name of a `sweep`.")
    named = _named_sweep(path, sweep, base) if sweep else [{}]
    axes = _axes(grid, base)
    if (count := math.prod(map(len, axes.values()), start=len(named))) > _MOST:
        raise ValueError(f"a sweep has at most {_MOST} runs, got {count:,}: make it smaller.")
    points = [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
    taken = {override_key(text) for text in fixed}
    runs = []
    for first, second in itertools.product(named, points):
        if twice := sorted((first.keys() & second.keys()) | (taken & (first | second).keys())):
            raise ValueError(
                f"{twice[0]!r} is given twice: say it once, in the grid, the sweep or an override."
            )
        runs.append({**first, **second})
    configs = [load_config(path, [*fixed, *arguments_of(run)]) for run in runs]
    names = name_runs([{k: value_of(k, c) for run in runs for k in run} for c in configs])
    if doubles := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(
            f"two runs of the sweep would share the folder {doubles[0]!r}: remove a duplicate."
        )
    return [
        plan_run(f"run {name}", workdir / name, run, config)
        for name, run, config in zip(names, runs, configs, strict=True)
    ]


def plan_run(where: str, folder: Path, overrides: Overrides, config: ConfigDict) -> SweepRun:
    """One run, its config and its folder checked; a config's error begins with `where`."""
    from bitjax.launch.build import check_config

    spec = plain(config)
    try:
        method = check_config(spec)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if differ := differences_there(folder, spec):
        raise ValueError(
            f"{str(folder)!r} holds a run of another config ({differ[0]}): choose another workdir, "
            "or remove that folder."
        )
    steps = sum(stage.steps for stage in method.stages)
    return SweepRun(folder.name, folder, overrides, spec, steps)


def parse_grid(text: str, base: ConfigDict) -> tuple[str, list[str]]:
    """Reads the key and the values of one `key=a,b,c`; commas inside brackets do not separate."""
    name, equals, rest = text.partition("=")
    key = name.strip().removeprefix("config.")
    values, depth = [""], 0
    for letter in rest:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            values.append("")
        else:
            values[-1] += letter
    values = [value.strip() for value in values]
    if not equals or not key or not all(values):
        raise ValueError(f"`grid` must be key=a,b,c, got {shown(text)}.")
    check_key(key, base)
    return key, values


def _named_sweep(path: str, name: str, base: ConfigDict) -> list[Overrides]:
    """Calls `sweep_<name>()` of a config file; its list of overrides, checked, as text."""
    file, module = path.split(":", 1)[0], config_module(path)
    found = {n.removeprefix("sweep_"): f for n, f in vars(module).items() if n.startswith("sweep_")}
    if name not in found:
        have = ", ".join(sorted(found)) or "none"
        raise ValueError(f"{file} has no sweep_{name}(); its sweeps are {have}.")
    where = f"sweep_{name}() of {file}"
    with program(where):
        runs = found[name]()
        for i, run in enumerate(runs if isinstance(runs, list | tuple) else ()):
            plain(run, f"its list[{i}]")  # each by itself: a list of all may be larger
    dicts = isinstance(runs, list | tuple) and all(isinstance(run, Mapping) for run in runs)
    if not dicts or not 1 <= len(runs) <= _MOST:
        raise ValueError(f"{where} must give a list of 1 to {_MOST} dicts, got {shown(runs)}.")
    return [_overrides_of(where, run, path, base) for run in runs]


def _overrides_of(where: str, run: Mapping[str, Any], path: str, base: ConfigDict) -> Overrides:
    """What a run of a named sweep changes, as text; each value is read back and compared."""
    texts: Overrides = {}
    for full, value in run.items():
        key = full.removeprefix("config.")
        check_key(key, base)
        if key in texts:
            raise ValueError(f"{where} gives {key!r} twice in one run.")
        texts[key] = str(value.item() if isinstance(value, np.generic) else value)
        back = value_of(key, load_config(path, arguments_of({key: texts[key]})))
        if plain(back) != plain(value) or isinstance(value, str) != isinstance(back, str):
            kind = type(back).__name__
            raise ValueError(f"{where}: {key} must be of type {kind}, got {shown(value)}.")
    return texts


def name_runs(values: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names runs by the values that differ between them, or by all values where none does."""
    keys = list(values[0])
    varying = [k for k in keys if any(run[k] != values[0][k] for run in values)] or keys

    def label(key):
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            short = ".".join(parts[-count:])
            if sum(f".{other}".endswith(f".{short}") for other in varying) == 1:
                return short
        return key

    return [
        _shorten(",".join(f"{label(key)}={_text(run[key])}" for key in varying), 150)
        for run in values
    ]


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; an empty one if the file is missing or damaged."""
    try:
        return dict(read_object(path))
    except Unfit:
        return {}


def _axes(grid: Sequence[str], base: ConfigDict) -> dict[str, list[str]]:
    axes: dict[str, list[str]] = {}
    for key, values in (parse_grid(text, base) for text in grid):
        if key in axes:
            raise ValueError(
                f"{key!r} is given twice: one `grid` of {key}=... holds all its values."
            )
        axes[key] = values
    return axes


def _text(value: Any) -> str:
    if isinstance(value, float) and float(f"{value:g}") == value:
        value = f"{value:g}"
    text = re.sub(r"[^\w.+-]+", "_", str(value)).strip("_")
    return _shorten(text, 40) or "none"


def _shorten(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    return f"{text[: length - 7]}~{hashlib.sha256(text.encode()).hexdigest()[:6]}"
