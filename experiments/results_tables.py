"""Plans the runs of a results table from `configs/tables/`, and writes its page."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bitjax.launch.config_files import load_config
from bitjax.launch.executors import train_command
from bitjax.launch.grid import SweepRun, plan_run
from bitjax.launch.overrides import arguments_of
from bitjax.report.comparison import Comparison
from bitjax.report.figures import BY_KEY, COSTS, TERMS
from bitjax.report.tables import markdown
from bitjax.runs.records import RunRecord
from experiments.tabulate import made_by

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("bits_weights", "bits_activations", "bits_inner", "model_bytes", "bops", "loom",
           "bit_fusion", "steps", "wall_seconds")  # fmt: skip
_KEYS = {"title", "about", "configs", "seeds", "starts", "baseline", "accelerator", "small",
         "distortion", "columns", "cost", "files"}  # fmt: skip


class ResultsTable(NamedTuple):
    """A planned table.

    Attributes:
      name: the name of its file under results/.
      making: the command that makes it.
      title: its heading.
      about: a text on what all rows share.
      baseline: the label of the row that differences refer to; the float row if empty.
      accelerator: whether a CPU would take far too long.
      small: whether one core is enough for a run.
      distortion: the names of the runs for which distortion against rate is measured.
      waves: its runs in groups; a run may start from the result of an earlier group.
      configs: the config of each run, by the run's name.
      columns: keys of the figures that it shows beside the score.
      cost: key of the cost of its front, which orders its rows, too.
      files: files that its runs read, each with the command that makes it where it is missing.
    """

    name: str
    making: str
    title: str
    about: str
    baseline: str
    accelerator: bool
    small: bool
    distortion: tuple[str, ...]
    waves: tuple[tuple[SweepRun, ...], ...]
    configs: Mapping[str, str]
    columns: tuple[str, ...] = COLUMNS
    cost: str = "bops"
    files: Mapping[str, tuple[str, ...]] = {}

    @property
    def runs(self) -> tuple[SweepRun, ...]:
        """All of them, in their order."""
        return tuple(run for wave in self.waves for run in wave)

    def command(self, run: SweepRun) -> list[str]:
        """The command of one run."""
        return train_command(self.configs[run.name], (), run)


def known_tables() -> dict[str, dict[str, Any]]:
    """All tables as `configs/tables/*.py` state them, by name."""
    tables: dict[str, dict[str, Any]] = {}
    for path in sorted(ROOT.glob("configs/tables/*.py")):
        tables |= importlib.import_module(f"bitjax.configs.tables.{path.stem}").TABLES
    return tables


def plan_table(name: str, workdir: Path, seeds: int = 0) -> ResultsTable:
    """Plans a table's runs, each checked; another number of seeds makes it another table."""
    tables = known_tables()
    if name not in tables:
        raise ValueError(f"the table must be one of {', '.join(sorted(tables))}, got {name!r}.")
    return plan_of(name, tables[name], workdir, seeds)


def plan_of(name: str, table: dict[str, Any], workdir: Path, seeds: int = 0) -> ResultsTable:
    """Plans the runs of a table that is given."""
    if unknown := sorted(table.keys() - _KEYS):
        raise ValueError(f"table {name!r} has no key {unknown[0]!r}; it has {sorted(_KEYS)}.")
    columns, cost = tuple(table.get("columns", COLUMNS)), table.get("cost", "bops")
    if bad := [key for key in columns if key not in BY_KEY and key not in TERMS]:
        raise ValueError(f"table {name!r} has the column {bad[0]!r}; it may have {[*BY_KEY]}.")
    if cost not in COSTS:
        raise ValueError(f"the cost of table {name!r} must be one of {COSTS}, got {cost!r}.")
    starts = table.get("starts", {})
    waves: list[list[SweepRun]] = [[], []]
    configs = {}
    given = {config: _seeds(table["seeds"], config) for config in table["configs"]}
    for config in table["configs"]:
        for seed in range(seeds) if seeds else given[config]:
            overrides = {"seed": str(seed)}
            if config in starts:
                overrides["init_from"] = str(_folder(workdir, starts[config], seed))
            full = load_config(config, arguments_of(overrides))
            run = plan_run(config, _folder(workdir, config, seed), overrides, full)
            waves[config in starts].append(run)
            configs[run.name] = config
    other = seeds and any(tuple(range(seeds)) != of for of in given.values())
    return ResultsTable(
        f"{name}-{seeds}-seeds" if other else name,
        f"python -m experiments.reproduce {name}{f' --seeds={seeds}' if other else ''}",
        table["title"],
        table["about"],
        table.get("baseline", ""),
        table.get("accelerator", False),
        table.get("small", False),
        tuple(name for name, config in configs.items() if config in table.get("distortion", ())),
        tuple(tuple(wave) for wave in waves if wave),
        configs,
        columns,
        cost,
        {path: ("-m", *words, f"--out={path}") for path, words in table.get("files", {}).items()},
    )


def document(table: ResultsTable, comparison: Comparison) -> str:
    """A table's page under results/: what it is, its command, the rows, who made them."""
    runs = [run for group in comparison.groups for row in group.rows for run in row.runs]
    minutes = sum(run.wall_seconds for run in runs) / 60
    shared = ", other runs among it" if table.small else ""
    score = comparison.groups[0].score.noun
    said = [
        f"{score[0].upper()}{score[1:]} is on the {runs[0].eval_split} set, of the final integer "
        "model. Bits are plain averages over sites after rounding, a float site counts 32."
    ]
    if {"loom", "bit_fusion"} & set(table.columns):
        said.append("Loom and Bit Fusion: speed-up over 16 bits.")
    said.append(f"Seconds are a run's own, beside whatever else the machine did{shared}.")
    return "\n\n".join(
        [
            f"# {table.title}",
            table.about,
            f"```\n{table.making}\n```",
            f"{len(runs)} runs, {minutes:.0f} minutes of wall time together. {' '.join(said)}",
            markdown(comparison, table.columns).strip(),
            "Made by:",
            made_by((_noted(run), run) for run in runs),
        ]
    ) + "\n"  # fmt: skip


def rows_alone(table: ResultsTable, comparison: Comparison) -> str:
    """The rows alone, for a page that shows several tables."""
    lines = markdown(comparison, table.columns).splitlines()
    return "\n".join(line for line in lines if line.startswith("|"))


def _noted(run: RunRecord) -> str:
    return Path(run.folder).name + (f" ({'; '.join(run.notes)})" if run.notes else "")


def _seeds(seeds: Sequence[int] | Mapping[str, Sequence[int]], config: str) -> tuple[int, ...]:
    """The seeds of a row: all rows have the same, or a mapping says how many a config has."""
    return tuple(seeds[config] if isinstance(seeds, Mapping) else seeds)


def _folder(workdir: Path, config: str, seed: int) -> Path:
    path, _, variant = config.partition(":")
    stem = Path(path).stem
    return workdir / f"{stem}{'-' if variant else ''}{variant}-seed{seed}"
