"""What a run's files hold, as rows of a table: the model, and what was exported."""

from collections.abc import Mapping
from typing import Any

_HEAD = ("file", "format", "bytes", "runtime", "images", "codes that differ", "first at",
         "outputs differ", "top-1 %", "evaluation %", "holds")  # fmt: skip


def rows_of(listed: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The head and a row for each file and runtime of an `export.json`; unchecked, three cells."""
    rows = []
    checked = any(file.get("checks") for file in listed["files"])
    for file in listed["files"]:
        first = (str(file["path"]), str(file["format"]), f"{file['bytes']:,}")
        for check in file.get("checks") or ():
            rows.append(first + _cells(check))
            first = ("", "", "")
        if not file.get("checks"):
            rows.append(first + ("",) * (len(_HEAD) - 3) * checked)
    return (_HEAD if checked else _HEAD[:3]), rows


def _cells(check: Mapping[str, Any]) -> tuple[str, ...]:
    count = sum(row["count"] for row in check["sites"])
    differ = sum(row["differ"] for row in check["sites"])
    return (
        " ".join([check["runtime"], str(check["versions"].get(check["runtime"], ""))]).strip(),
        f"{check['images']:,}",
        f"{differ:,} of {count:,}" if count else "not shown",
        f"{check['first']} ({check['margin']:.0e})" if check["first"] else "",
        f"{check['outputs']:.0e}" if check["outputs"] else "0",
        *("" if top is None else f"{100 * top:.2f}" for top in (check["top1"], check["evaluation"])),
        "yes" if check["holds"] else "no",
    )
