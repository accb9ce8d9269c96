"""Keeps finished runs under results/ and writes the table of all of them there.

python -m experiments.tabulate runs/digits-float runs/digits-bitpruning ...
"""

import json
import os
import shutil
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NAME = "results"  # of the marks that the table of all of them stands between


def keep(run: Path, results: Path) -> Path:
    """Copies what a finished run found to `results/<name>/seed<k>/`, and gives that folder.

    Raises:
      ValueError: the run is not finished.
    """
    path = run / "result.json"
    result = json.loads(path.read_text()) if path.exists() else {"status": "missing"}
    if result["status"] != "finished":
        raise ValueError(f"{run} is {result['status']}, not finished: run its config again.")
    folder = results / result["name"] / f"seed{result['seed']}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("result.json", "bits.csv", "config.json", "distortion.json"):
        if name != "distortion.json" or (run / name).exists():
            shutil.copy(run / name, folder / name)
    return folder


def read(results: Path) -> dict[str, list[dict[str, Any]]]:
    """Results by name, each a list over seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(results.glob("**/seed*/result.json")):
        result = json.loads(path.read_text())
        found.setdefault(result["name"], []).append(result)
    return found


def table(found: Mapping[str, list[dict[str, Any]]]) -> str:
    """A Markdown table, a row a config: mean over seeds, and the spread where there are more."""
    head = ["config", "top-1 %", "seeds", "bits w", "bits a", "bits all", "bits inner"]
    head += ["model kB", "MBOPs", "steps", "s"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for _, runs in sorted(found.items()):
        bits = [run["bits"] for run in runs]

        def mean(values: Iterable[float], form: str) -> str:
            values = list(values)
            text = format(statistics.fmean(values), form)
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            return text + (f" ± {spread:{form}}" if spread >= 0.005 else "")

        row = (
            f"`configs/{runs[0]['config'].removeprefix('configs/')}`",
            mean((100 * run["accuracy"] for run in runs), ".2f"),
            str(len(runs)),
            *(
                mean((b[k]["integer"] for b in bits), ".2f")
                for k in ("weights", "activations", "all", "inner")
            ),
            mean((run["cost"]["model_bytes"] / 1024 for run in runs), ".1f"),
            mean((run["cost"]["bops"] / 1e6 for run in runs), ".1f"),
            str(runs[0]["steps"]),
            format(statistics.fmean(run["wall_seconds"] for run in runs), ".0f"),
        )
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def machines(found: Mapping[str, list[dict[str, Any]]]) -> str:
    """One line for each (machine, versions, commit) that made a result."""
    return made_by(
        (f"{name} seed {run['seed']}", run["commit"], run["device"], run["versions"])
        for name, runs in sorted(found.items())
        for run in runs
    )


def made_by(runs: Iterable[tuple[str, str, str, Mapping[str, str]]]) -> str:
    """A line for each commit, machine and set of versions, with what they made.

    Args:
      runs: name, commit, device and versions of each.

    Example:
      >>> made_by((name, "0123", "cpu", {"jax": "0.10.2"}) for name in "ab")
      '- commit 0123 on cpu (jax 0.10.2): a, b'
    """
    seen: dict[str, list[str]] = {}
    for name, commit, device, versions in runs:
        shown = ", ".join(f"{package} {version}" for package, version in versions.items())
        seen.setdefault(f"commit {commit} on {device} ({shown})", []).append(name)
    return "\n".join(f"- {line}: {', '.join(names)}" for line, names in seen.items())


def insert(path: Path, text: str, name: str = NAME) -> None:
    """Replaces what stands between the marks of that name; a file without them stays as it is.

    Raises:
      ValueError: only the first mark is there, so that nothing says what may be replaced.
    """
    marks = f"<!-- {name}: written by a command -->", f"<!-- end of {name} -->"
    if not path.exists() or marks[0] not in (whole := path.read_text("utf-8")):
        return
    before, _, rest = whole.partition(marks[0])
    _, found, after = rest.partition(marks[1])
    if not found:
        raise ValueError(f"{path} has {marks[0]!r} but no {marks[1]!r} behind it: put it there.")
    write(path, f"{before}{marks[0]}\n\n{text}\n\n{marks[1]}{after}")


def write(path: Path, text: str) -> None:
    """Writes a text; a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, "utf-8")
    os.replace(temporary, path)


def rewrite(results: Path) -> str:
    """Writes the table of all that `results` keeps into its README.md, and gives it."""
    found = read(results)
    insert(results / "README.md", table(found) + "\n\nMade by:\n\n" + machines(found))
    return table(found)


def main() -> None:
    """Keeps the runs named on the command line and rewrites the table."""
    results = ROOT / "results"
    for run in sys.argv[1:]:
        try:
            print(f"{run} -> {keep(Path(run), results).relative_to(ROOT)}")
        except ValueError as error:
            sys.exit(f"error: {error}")
    print(rewrite(results))


if __name__ == "__main__":
    main()
