"""Bad run folders: damaged results, configs, tables, rows, and checkpoints vouched for or not."""

import contextlib
import functools
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bitjax.cli.main import main
from bitjax.launch.build import build_work, open_folder
from bitjax.launch.finished import load_run
from bitjax.launch.grid import read_json
from bitjax.launch.progress import last_row
from bitjax.runs.checkpoint import Checkpoints
from bitjax.runs.folder import config_hash
from bitjax.runs.manifest import read_manifest, write_manifest
from bitjax.runs.records import read_runs
from bitjax.runs.rows import MetricsWriter
from bitjax.training.runner import run as run_work
from tests.bad_inputs.configs import config
from tests.bad_inputs.damage import WRONG_JSON_TEXTS, Damage, damages, replaced, wrong_json
from tests.bad_inputs.data_files import fresh
from tests.bad_inputs.judge import Case
from tests.run_folders import write_run

JSON = ("result.json", "config.json", "distortion.json")


def read_all(folder: Path) -> None:
    """All that reads a folder of runs: the table, the page, the files, a sweep's progress."""
    found, skipped = read_runs([folder])
    assert found or skipped, "a folder is read or has a reason"
    for left in skipped:
        if len(left.reason.splitlines()) != 1:
            raise AssertionError(f"the reason has several lines: {left.reason!r}")
    read_json(folder / "result.json")
    last_row(folder)
    if found:
        out = folder.parent / "out"
        out.mkdir(exist_ok=True)
        with contextlib.redirect_stdout(io.StringIO()):
            main(["compare", str(folder), "--out", str(out / "page.html"), "--csv",
                  str(out / "a.csv"), "--markdown", str(out / "a.md"), "--json",
                  str(out / "a.json")])  # fmt: skip


def _read(folder: Path, name: str, deed: Damage, rehash: bool = False) -> None:
    place = fresh(folder) / "run"
    place.parent.mkdir(parents=True)
    write_run(place)
    (place / "distortion.json").write_text(json.dumps({"rates": [1, 2], "sqnr": {"a": [1, 2]}}))
    deed(place / name)
    if rehash:  # as if the result had been made from this config
        with contextlib.suppress(ValueError):  # damaged files are cases too
            result = json.loads((place / "result.json").read_text())
            result["config_hash"] = config_hash(json.loads((place / "config.json").read_text()))
            (place / "result.json").write_text(json.dumps(result))
    read_all(place)


def _text(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def results(folder: Path) -> Iterator[Case]:
    """Files of a finished run; a table takes what is whole and says why it leaves the rest out."""
    place = folder / "right"
    write_run(place, rows=3)
    (place / "distortion.json").write_text(json.dumps({"rates": [1, 2], "sqnr": {"a": [1, 2]}}))
    yield Case("run()", functools.partial(read_all, place), good=True)
    for path in sorted(place.iterdir()):
        for said, deed in damages(path.read_bytes(), flips=12):
            call = functools.partial(_read, folder, path.name, deed)
            yield Case(f"{path.name}: {said}", call, may_pass=True)
    for name in JSON:
        for text in WRONG_JSON_TEXTS:
            call = functools.partial(_read, folder, name, replaced(text))
            yield Case(f"{name}: {text[:12]!r}", call, may_pass=True)
    for name in JSON:
        value = json.loads((place / name).read_text())
        for said, wrong in wrong_json(value):
            call = functools.partial(_read, folder, name, replaced(_text(wrong)), rehash=True)
            yield Case(f"{name}: {said}", call, may_pass=True)


def tables(folder: Path) -> Iterator[Case]:
    """Rows of `bits.csv` and of `metrics.jsonl`, each value made wrong."""
    place = folder / "right-rows"
    write_run(place, rows=3)
    lines = (place / "bits.csv").read_text().splitlines()
    texts = ("", "nan", "inf", "-1", "abc", "1e999", '"', "a\0b", "9" * 5000, "=cmd()")
    for column in range(6):
        for text in texts:
            cells = lines[1].split(",")
            cells[column] = text
            content = "\n".join([lines[0], ",".join(cells), *lines[2:]]).encode()
            call = functools.partial(_read, folder, "bits.csv", replaced(content))
            yield Case(f"bits.csv: column {column} is {text[:8]!r}", call, may_pass=True)
    row = json.loads((place / "metrics.jsonl").read_text().splitlines()[0])
    for said, wrong in wrong_json([row]):
        content = b"".join(_text(each) + b"\n" for each in [*wrong, row])
        call = functools.partial(_read, folder, "metrics.jsonl", replaced(content))
        yield Case(f"metrics.jsonl: {said}", call, may_pass=True)
        call = functools.partial(_append, folder, content)
        yield Case(f"metrics.jsonl appended to: {said}", call, ("metrics.jsonl",), may_pass=True)
    for text in WRONG_JSON_TEXTS:
        for content in (text + b"\n" + _text(row) + b"\n", _text(row) + b"\n" + text):
            for title, call in {
                "read": functools.partial(_read, folder, "metrics.jsonl", replaced(content)),
                "appended to": functools.partial(_append, folder, content),
            }.items():
                yield Case(
                    f"metrics.jsonl {title}: {text[:9]!r}", call, ("metrics.jsonl",), may_pass=True
                )


def _append(folder: Path, content: bytes) -> None:
    """What a resumed run does with the rows that it finds."""
    place = fresh(folder)
    place.mkdir(parents=True)
    (place / "metrics.jsonl").write_bytes(content)
    writer = MetricsWriter(place)
    writer.rewind(1)
    writer.write(2, {"loss": 1.0})
    writer.close()


def spec() -> Any:
    """The config of a tiny run."""
    return config("uniform", method={"name": "uniform", "steps": 1}, data__eval_batch_size=360)


@functools.cache
def finished(folder: Path) -> Path:
    """A tiny run that was really made."""
    place = open_folder(spec(), folder / "finished")
    run_work(build_work(spec(), source="x.py"), place)
    return place


def resume(place: Path) -> None:
    """What `bitjax train` does before it trains, in a folder that holds a run."""
    open_folder(spec(), place)


def _open(folder: Path, deed: Damage, call: Callable[[Path], Any]) -> None:
    place = fresh(folder) / "run"
    shutil.copytree(finished(folder), place)
    deed(place / "config.json")
    call(place)


def finished_runs(folder: Path) -> Iterator[Case]:
    """What a run's own config is read for: to load its model, and to go on with it."""
    source = finished(folder)
    content = (source / "config.json").read_bytes()
    for call in (load_run, resume):
        title = call.__name__
        yield Case(
            f"{title}()", functools.partial(_open, folder, lambda path: None, call), good=True
        )
        for said, deed in damages(content, flips=12):
            # A flip may hit what is read the same; a folder without a config holds no run yet.
            none = ("missing", "a link to itself", "a link to nowhere") if call is resume else ()
            may = said in ("cut by a byte", *none) or "flipped" in said
            yield Case(
                f"{title} config.json: {said}", functools.partial(_open, folder, deed, call),
                ("config.json", "folder"), may_pass=may,
            )  # fmt: skip
        for text in WRONG_JSON_TEXTS:
            case = functools.partial(_open, folder, replaced(text), call)
            # Keys that are missing have their defaults, of an older version.
            yield Case(f"{title} config.json: {text[:12]!r}", case, ("config.json", "folder"))
    for said, other in wrong_json(
        json.loads(content), (None, True, -1, 2.5, "abc", [], {}, "a\nb")
    ):
        key, _, value = said.partition(" is ")
        case = functools.partial(_open, folder, replaced(_text(other)), load_run)
        may = key in HERE or value == "gone" or (key, value) in MEANS_THE_SAME
        yield Case(
            f"load_run config.json: {said}", case, ("config.json", "checkpoint"), may_pass=may
        )


# Keys that say where a run was made, which need not be here; what other values of a key mean.
HERE = ("init_from", "parallel", "devices", "accumulate", "steps_per_dispatch", "writers")
MEANS_THE_SAME = {
    ("name", "'abc'"), ("data.root", "'abc'"), ("name", "'a\\nb'"), ("data.root", "'a\\nb'"),
    ("keep_best", "True"), ("sums", "True"), ("tensorboard", "True"), ("data.mean", "[]"),
    ("budgets", "[]"),
}  # fmt: skip


def checkpoints(folder: Path) -> Iterator[Case]:
    """Every file of a checkpoint, damaged; then the same with a manifest that vouches for it."""
    source = folder / "right-checkpoints"
    state = {"kernel": jnp.ones((2, 3)), "bits": jnp.float32(4.0)}
    with Checkpoints(source) as saved:
        saved.save(3, state, {"place": [1, "enter", 0]}, wait=True)
    yield Case(
        "checkpoint()", functools.partial(_restore, folder, source, "", None, False), good=True
    )
    for path in sorted(p for p in (source / "3").rglob("*") if p.is_file()):
        name = path.relative_to(source).as_posix()
        for said, deed in damages(path.read_bytes(), flips=4):
            # The last line's end means nothing; without a manifest the first save was killed.
            none = ("cut by a byte", "missing", "a link to itself", "a link to nowhere")
            may = name.endswith("3/manifest.json") and said in none
            for vouched in (False, True):
                if vouched and (name.endswith("manifest.json") or said.startswith("a ")):
                    continue
                call = functools.partial(_restore, folder, source, name, deed, vouched)
                title = f"{name}: {said}{' vouched for' if vouched else ''}"
                yield Case(
                    title,
                    call,
                    ("checkpoint",),
                    may_pass=vouched or "orbax.checkpoint" in name or may,
                )
    manifest = json.loads((source / "3/manifest.json").read_text())
    for said, wrong in wrong_json(manifest, (None, True, -1, "abc", [], {}, "a\nb")):
        call = functools.partial(_seal, folder, source, wrong)
        yield Case(f"manifest sealed: {said}", call, ("checkpoint",), may_pass=True)
    for text in WRONG_JSON_TEXTS:
        call = functools.partial(_restore, folder, source, "3/manifest.json", replaced(text), False)
        yield Case(f"manifest: {text[:12]!r}", call, ("checkpoint",))


def _restore(folder: Path, source: Path, name: str, deed: Damage | None, vouched: bool) -> None:
    place = fresh(folder) / "checkpoints"
    shutil.copytree(source, place)
    if deed:
        meant = read_manifest(place / "3")
        deed(place / name)
        if vouched:
            meant.pop("files")
            (place / "3/manifest.json").unlink()
            write_manifest(place / "3", meant)
    _restored(place)


def _restored(place: Path) -> None:
    template = {
        "kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32),
        "bits": jax.ShapeDtypeStruct((), jnp.float32),
    }
    with Checkpoints(place) as saved:
        found = saved.restore(lambda meta: template)
    assert found is not None or not (place / "3/manifest.json").exists(), "it is passed over"


def _seal(folder: Path, source: Path, manifest: dict[str, Any]) -> None:
    from bitjax.runs import manifest as module

    place = fresh(folder) / "checkpoints"
    shutil.copytree(source, place)
    manifest = {k: v for k, v in manifest.items() if k != "crc32"}
    with contextlib.suppress(TypeError, ValueError):  # what cannot be sealed stays so
        manifest = {**manifest, "crc32": module._seal(manifest)}
    (place / "3/manifest.json").write_bytes(_text(manifest))
    _restored(place)


SURFACES = {
    "results": results, "tables": tables, "finished runs": finished_runs,
    "checkpoints": checkpoints,
}  # fmt: skip
