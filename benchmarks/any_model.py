"""Whether bitjax quantizes the models that people have: those of `benchmarks/zoo`, by columns.

Run: BITJAX_MODELS=folder python -m benchmarks.any_model [--only NAME] [--json FILE]

The folder holds checkouts called flax, big_vision and vision_transformer. A model whose package or
folder is not there is skipped, and the table's foot says so.
"""

import argparse
import json
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import jax

from benchmarks.timing import machine
from benchmarks.zoo import quantized
from benchmarks.zoo.case import Builder, Missing, pure
from benchmarks.zoo.macs import products, total
from experiments.tabulate import insert

SOURCES = ("flax_examples", "vision", "huggingface", "others", "smallest")
# Functions of `quantized`: each gives some columns.
PARTS = ("sites", "floats", "tools", "gradients", "checked")
COLUMNS = (
    "model", "source", "parameters", "MACs", "sites", "reached", "not reached", "tree kept",
    "equal to float", "bits' gradients", "tools",
)  # fmt: skip


def cases(only: str = "") -> Iterator[tuple[str, Builder]]:
    """The names that contain `only`, with their builders, source by source."""
    for source in SOURCES:
        for name, build in import_module(f"benchmarks.zoo.{source}").CASES.items():
            if only.lower() in name.lower():
                yield name, build


def try_model(name: str, build: Builder, parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """What the columns of these parts say of one model.

    Raises:
      Missing: its package or folder is not there.
    """
    began = time.perf_counter()
    case = build()
    call, params, arrays = pure(case)
    found = products(jax.make_jaxpr(call)(params, arrays).jaxpr)
    row = {
        "model": name,
        "source": case.source,
        "note": case.note,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "MACs": total(found) // case.examples,
    }
    trial = quantized.Trial(case, found)
    for part in parts:
        row |= _tried(getattr(quantized, part), trial)
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def _tried(columns: Callable[[quantized.Trial], dict[str, Any]], trial: quantized.Trial) -> Any:
    """The columns, or the first line of the error under the function's name."""
    try:
        return columns(trial)
    except Exception as error:  # whatever a model does, the others are tried
        return {
            f"{columns.__name__} error": quantized.one_line(error),
            f"{columns.__name__} trace": _trace(error),
        }


def _trace(error):
    return "".join(traceback.format_exception(error))[-3000:]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown; an error's text stands below."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [[_cell(row, column) for column in COLUMNS] for row in rows if "MACs" in row]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(row, column):
    value = row.get(column, "")
    if column == "model" and row.get("note"):
        return f"{value} ({row['note']})"
    if column in ("parameters", "MACs"):
        return f"{value:,}"
    if column == "reached" and isinstance(value, float):
        return f"{value:.2%}"
    if column == "tools":
        taken = [name for name in quantized.TOOLS if row.get(name) == "ok"]
        return "all" if len(taken) == len(quantized.TOOLS) else ", ".join(taken)
    return str(value).replace("|", "/")


def report(rows: Sequence[dict[str, Any]], skipped: Mapping[str, int]) -> str:
    """The table, what it counts, errors, what was skipped, and the machine."""
    counted = [row for row in rows if "sites" in row]
    whole = sum(row["reached"] == 1.0 for row in counted)
    learned = [row for row in rows if "quantized" in row]
    sites = sum(row["quantized"] for row in learned)
    exact, lost = (sum(len(row[key]) for row in learned) for key in ("exact", "lost"))
    lines = [
        f"{len(rows)} models, {whole} of them with every MAC reached. Bitlengths: {sites} learned,",
        f"{sites - exact - lost} with a gradient, {exact} that change nothing, {lost} lost.",
        "",
        table(rows),
        "",
        *[line for row in rows for line in errors(row)],
        *[f"- {count} skipped: {reason}" for reason, count in skipped.items()],
        f"- {machine()}",
    ]
    return "\n".join(lines)


def errors(row: dict[str, Any]) -> list[str]:
    """A line for each error of a model."""
    found = [f"{key}: {row[key]}" for key in row if key.endswith("error")]
    found += [f"{name}: {row[name]}" for name in quantized.TOOLS if row.get(name, "ok") != "ok"]
    return [f"- {row['model']}, {text}" for text in found]


def main(arguments: Sequence[str] | None = None) -> None:
    """Tries what the flags say, and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of the names to try")
    parser.add_argument("--json", default="", help="a file of rows, to which these are added")
    parser.add_argument("--parts", default=",".join(PARTS), help="groups of columns, in this order")
    parser.add_argument("--page", default="", help="a page whose table is replaced")
    flags = parser.parse_args(arguments)
    kept = Path(flags.json) if flags.json else None
    before = json.loads(kept.read_text()) if kept and kept.exists() else []
    rows, skipped = {row["model"]: row for row in before}, Counter()
    for name, build in cases(flags.only):
        try:
            row = try_model(name, build, flags.parts.split(","))
        except Missing as missing:
            skipped[f"{missing}"] += 1
            continue
        except Exception as error:  # the float model itself
            line = quantized.one_line(error)
            row = {"model": name, "float error": line, "float trace": _trace(error)}
        rows[name] = {**rows.get(name, {}), **row}
        print(f"# {name}: {quantized.outcome(rows[name])}", flush=True)
        if kept:
            kept.write_text(json.dumps(list(rows.values()), indent=1))
        jax.clear_caches()
    text = report(list(rows.values()), skipped)
    print(f"\n{text}")
    if flags.page:
        insert(Path(flags.page), text, "any model")


if __name__ == "__main__":
    main()
