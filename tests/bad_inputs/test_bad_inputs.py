"""Thousands of bad inputs, made from what is allowed: each is refused in one line that names it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bad_inputs import api, commands, configs, data_files, packed, run_data, weights
from tests.bad_inputs.judge import Case, fault_of


def _calls(bases: Callable) -> Callable[[Path], Iterator[Case]]:
    return lambda folder: api.cases(bases())


def _plain(generate: Callable[[], Iterator[Case]]) -> Callable[[Path], Iterator[Case]]:
    return lambda folder: generate()


# Every surface, and how many cases it has at least: an empty generator would find nothing wrong.
SURFACES: dict[str, tuple[Callable[[Path], Iterator[Case]], int]] = {
    "quantizers": (_calls(api.quantizer_bases), 800),
    "methods": (_calls(api.method_bases), 1600),
    "solvers": (_calls(api.solver_bases), 700),
    "tools": (_calls(api.tool_bases), 1000),
    "batches": (_calls(api.data_bases), 350),
    "config keys": (_plain(configs.keys), 300),
    "config methods": (_plain(configs.methods), 1300),
    "config quantizers": (_plain(configs.quantizers), 650),
    "config models": (_plain(configs.models), 60),
    "config budgets": (_plain(configs.budgets), 45),
    "overrides": (_plain(configs.overrides), 350),
    "data npz": (data_files.npz, 150),
    "data tokens": (data_files.tokens, 110),
    "data folders": (data_files.folders, 110),
    "data published": (data_files.published, 90),
    "weights files": (weights.files, 400),
    "weights arrays": (weights.arrays, 36),
    "weights orbax": (weights.orbax, 200),
    "weights places": (weights.places, 18),
    "packed files": (packed.files, 900),
    "run results": (run_data.results, 1500),
    "run tables": (run_data.tables, 400),
    "run configs": (run_data.finished_runs, 450),
    "checkpoints": (run_data.checkpoints, 700),
    "command flags": (commands.flags, 230),
    "command words": (commands.words, 100),
}


@pytest.mark.slow
@pytest.mark.parametrize("surface", SURFACES)
def test_bad_inputs_are_refused_in_one_line_that_names_them(surface, tmp_path, monkeypatch):
    monkeypatch.setenv("BITJAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    generate, least = SURFACES[surface]
    faults = []
    count = 0
    for case in generate(tmp_path):
        count += 1
        if fault := fault_of(case):
            faults.append(f"{case.name} {fault}".replace(str(tmp_path), "..."))
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults[:50])
    assert count >= least
