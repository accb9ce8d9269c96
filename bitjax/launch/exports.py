"""Writes a finished run's model to the files of other tools, and checks them on its images."""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bitjax
from bitjax.data import eval_batches
from bitjax.export.check import Checker, ExportCheck, joined
from bitjax.export.deploy import Deployed
from bitjax.export.onnx_model import to_onnx
from bitjax.export.packed import load_packed, save_packed
from bitjax.export.stablehlo import to_stablehlo
from bitjax.extras import extra
from bitjax.files.writing import unwritten
from bitjax.launch.finished import load_run
from bitjax.runs.exports import LISTED, read_listed
from bitjax.runs.files import Unfit, read_object
from bitjax.runs.folder import take_folder
from bitjax.runs.records import read_run
from bitjax.runs.rows import write_json
from bitjax.training.ending import about_model
from bitjax.training.work import Work

FORMATS = {
    "packed": "model.safetensors",
    "qdq": "model.qdq.onnx",
    "integers": "model.integers.onnx",
    "qonnx": "model.qonnx.onnx",
    "stablehlo": "model.stablehlo",
}
_CHECKED = 16  # images on which a packed file runs in NumPy, which is slow
_BATCH = 128

_UNDER_WAY = re.compile(r"\.[0-9a-f]{16}\.(new|old)")

Say = Callable[[str, int, int], None]  # what is done, how much of it, of how much


class Source(NamedTuple):
    """A model to take away.

    Attributes:
      folder: where its export goes unless told otherwise.
      deployed: the model.
      args: shapes of its arguments.
      kwargs: those by name.
      about: what a packed file says of it.
      work: the run, where there is one.
      facts: what `export.json` says of it.
    """

    folder: Path
    deployed: Deployed
    args: tuple
    kwargs: Mapping[str, Any]
    about: Mapping[str, Any]
    work: Work | None
    facts: Mapping[str, Any]


def find_source(path: str | os.PathLike) -> Source:
    """The model of a finished run's folder, or of a packed file whose model is a shipped one."""
    path = Path(path)
    if path.is_file():
        deployed, about = load_packed(path)
        shape = (2, *about["input_shape"])
        x = jax.ShapeDtypeStruct(shape, about.get("input_dtype", "float32"))
        return Source(path.parent, deployed, (x,), {}, about, None, {"file": path.name})
    try:
        record = read_run(path)
    except Unfit as error:
        raise ValueError(f"{path} {error}.") from None
    run = load_run(path)
    args, kwargs = run.work.input_shapes()
    # As the run has them, perhaps of another version: the export is known to be its own by them.
    result = read_object(path / "result.json")
    facts = {"name": record.name, "seed": record.seed}
    facts |= {key: result[key] for key in ("config_hash", "score") if key in result}
    about = about_model(run.work, record.commit)
    return Source(path, run.deployed(), args, kwargs, about, run.work, facts)


def check_extras(formats: Sequence[str], check: bool) -> None:
    """Raises an ImportError where a format, or its check, needs a package that is not here."""
    wanted = {*formats}
    with extra("export", "an ONNX file"):
        if wanted & {"qdq", "integers", "qonnx"}:
            import onnx  # noqa: F401  only whether it is there
    with extra("export", "a StableHLO file"):
        if "stablehlo" in wanted:
            import flatbuffers  # noqa: F401  only whether it is there
    with extra("export", "checking an ONNX file"):
        if check and wanted & {"qdq", "integers"}:
            import onnxruntime  # noqa: F401  only whether it is there
    with extra("export", "checking a QONNX file"):
        if check and "qonnx" in wanted:
            import qonnx  # noqa: F401  only whether it is there


def write_model(source: Source, kind: str, path: Path) -> dict[str, Any]:
    """Writes a file of a format; what `export.json` says of it."""
    deployed, args, kwargs = source.deployed, source.args, source.kwargs
    entry: dict[str, Any] = {"format": kind, "path": path.name}
    if kind == "packed":
        size = save_packed(path, deployed, *args, about=source.about, **kwargs)
        entry["payload"] = size.payload
    elif kind == "stablehlo":
        to_stablehlo(deployed, *args, path=path, **kwargs)
    else:
        model = to_onnx(deployed, *args, path=path, profile=kind, **kwargs)
        entry["opset"] = model.opset_import[0].version
    return {**entry, "bytes": path.stat().st_size}


def check_model(source: Source, path: Path, count: int, runtime: str, say: Say) -> dict[str, Any]:
    """Runs a file on so many evaluation images; what `export.json` says of what differs."""
    batches, size = images_of(source, count)
    checker = Checker(path, source.deployed, *source.args, runtime=runtime, **source.kwargs)
    parts, labels = [], []
    for args, kwargs, own in batches:
        parts.append(checker(*args, **kwargs))
        labels.append(own)
        say(f"{path.name} in {checker.runtime.name}", sum(map(len, labels)), size)
    return told(joined(parts), np.concatenate(labels))


def images_of(source: Source, count: int) -> tuple[Iterator[tuple[tuple, dict, np.ndarray]], int]:
    """Batches of the model's arguments with their labels, and how many examples they have.

    Without a run they are noise, and their labels -1.
    """
    work = source.work
    if work is None:
        return _noise(source, count), count
    count = min(count, work.dataset.num_eval)
    return _evaluation(work, count), count


def _batch_size(count: int) -> int:
    """A size that divides the count, for another one is compiled anew; else a usual one."""
    size = next(n for n in range(min(count, _BATCH), 0, -1) if count % n == 0)
    return size if size >= min(count, _BATCH // 4) else _BATCH


def _evaluation(work: Work, count: int) -> Iterator[tuple[tuple, dict, np.ndarray]]:
    left = count
    with contextlib.closing(eval_batches(work.dataset, _batch_size(count))) as batches:
        for batch in batches:
            kept = min(left, int(np.sum(batch["mask"])))
            batch = {name: np.asarray(x)[:kept] for name, x in batch.items()}
            args, kwargs = work.inputs(None, jax.tree.map(jnp.asarray, batch))
            yield args, kwargs, np.asarray(batch.get("label", np.full(kept, -1)))
            left -= kept
            if not left:
                return


def _noise(source: Source, count: int) -> Iterator[tuple[tuple, dict, np.ndarray]]:
    (like,), size = source.args, _batch_size(count)
    for i, begin in enumerate(range(0, count, size)):
        n, key = min(size, count - begin), jax.random.key(i)
        if jnp.issubdtype(like.dtype, jnp.integer):
            x = jax.random.randint(key, (n, *like.shape[1:]), 0, source.about.get("vocabulary", 2))
        else:
            x = jax.random.normal(key, (n, *like.shape[1:]), jnp.float32)
        yield (x.astype(like.dtype),), {}, np.full(n, -1)


def told(check: ExportCheck, labels: np.ndarray) -> dict[str, Any]:
    """A check as JSON; `top1` is of the runtime, `evaluation` of JAX on the same images."""
    verdict, images = check.verdict, check.images
    known = images.own.shape[1] == 1 and bool((labels >= 0).all())

    def top1(best):
        return float(np.mean(best[:, 0] == labels)) if known else None

    return {
        "runtime": check.runtime,
        "versions": check.versions,
        "images": len(labels),
        "top1": top1(images.other),
        "evaluation": top1(images.own),
        "agrees": verdict.top1,
        "outputs": check.outputs,
        "first": check.first,
        "margin": check.margin,
        "same": verdict.same,
        "border": verdict.border,
        "broken": verdict.broken,
        "holds": verdict.holds,
        "sites": [row._asdict() for row in check.sites],
    }


def export(
    source: Source, formats: Sequence[str], out: Path, *, images: int, say: Say
) -> dict[str, Any]:
    """Writes a folder with a file of each format, and `export.json`, which it gives back.

    The folder is there in whole or not at all; one of an earlier export is replaced. Each file is
    checked on so many evaluation images, of 0 on none. `say` takes what is under way.
    """
    check_extras(formats, images > 0)
    with _folder(source, out) as folder:
        files = []
        for i, kind in enumerate(formats):
            say(f"writing {FORMATS[kind]}", i, len(formats))
            files.append(write_model(source, kind, folder / FORMATS[kind]))
        for entry in files if images else ():
            runs = [(images, "")]
            if entry["format"] == "packed":
                runs = [(images, "jax"), (min(images, _CHECKED), "numpy")]
            path = folder / entry["path"]
            entry["checks"] = [check_model(source, path, n, name, say) for n, name in runs]
        listed = {"bitjax": bitjax.__version__, **source.facts, "files": files}
        write_json(folder / LISTED, listed)
    return listed


@contextlib.contextmanager
def _folder(source: Source, out: Path) -> Iterator[Path]:
    """A folder to write in, which takes the place of `out` once the block has ended well."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not _is_export(out))):
        raise ValueError(
            f"{out} is there and holds no export, which could be replaced: choose another folder."
        )
    with contextlib.ExitStack() as stack:
        if source.work is not None and out.parent.resolve() == source.folder.resolve():
            stack.enter_context(contextlib.closing(take_folder(source.folder)))
            for left in source.folder.iterdir():  # of an export that was killed
                if _UNDER_WAY.fullmatch(left.name):
                    shutil.rmtree(left, ignore_errors=True)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            new, old = (out.parent / f".{secrets.token_hex(8)}.{name}" for name in ("new", "old"))
            new.mkdir()
        except OSError as error:
            raise unwritten(out, 0, error) from error
        try:
            yield new
            if out.exists():
                out.rename(old)
            new.rename(out)
        except OSError as error:
            raise unwritten(out, 0, error) from error
        finally:
            for left in (new, old):
                shutil.rmtree(left, ignore_errors=True)


def _is_export(folder: Path) -> bool:
    try:
        return bool(read_listed(folder, ""))
    except (Unfit, OSError, ValueError, KeyError, TypeError):
        return False
