"""Bad weights for `config.init_from`: npz, safetensors and Orbax files, damaged or unfit."""

import functools
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp
from safetensors.numpy import save_file

from bitjax.launch.start import find_start, load_start
from tests.bad_inputs.damage import WRONG_JSON_TEXTS, Damage, damages, replaced, wrong_json
from tests.bad_inputs.data_files import fresh, savez
from tests.bad_inputs.judge import Case

MODEL = nn.Dense(3)
SAMPLE = np.ones((2, 4), np.float32)


@functools.cache
def right() -> dict[str, np.ndarray]:
    """The model's variables by name."""
    variables = MODEL.init(jax.random.key(0), SAMPLE)
    return {f"params/{name}": np.asarray(leaf) for name, leaf in variables["params"].items()}


def start(path: Path | str) -> None:
    """What `bitjax train` does with `config.init_from`."""
    load_start(find_start(str(path)), MODEL, SAMPLE)


def _start_file(folder: Path, name: str, content: bytes, deed: Damage | None) -> None:
    path = fresh(folder) / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    if deed:
        deed(path)
    start(path)


def _safetensors(folder: Path) -> bytes:
    path = folder / "right.safetensors"
    save_file(right(), path)
    return path.read_bytes()


def files(folder: Path) -> Iterator[Case]:
    """Damaged npz and safetensors files."""
    contents = {"w.npz": savez(right()), "w.safetensors": _safetensors(folder)}
    for name, content in contents.items():
        yield Case(
            f"{name}()", functools.partial(_start_file, folder, name, content, None), good=True
        )
        for said, deed in damages(content, flips=40):
            call = functools.partial(_start_file, folder, name, content, deed)
            # safetensors has no checksum; of a zip file only the members have one.
            may = "flipped" in said or said == "doubled"
            yield Case(f"{name}: {said}", call, (name,), may_pass=may)
    for said, content in headers(contents["w.safetensors"]):
        call = functools.partial(_start_file, folder, "w.safetensors", content, None)
        yield Case(
            f"w.safetensors: {said}", call, ("w.safetensors",), may_pass="__metadata" in said
        )


def headers(content: bytes) -> Iterator[tuple[str, bytes]]:
    """A safetensors file whose header says something wrong."""
    (length,) = struct.unpack("<Q", content[:8])
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    for said, wrong in wrong_json(header):
        text = json.dumps(wrong).encode("utf-8", "surrogatepass")
        yield f"header {said}", struct.pack("<Q", len(text)) + text + rest
    for text in WRONG_JSON_TEXTS:
        yield f"header {text[:12]!r}", struct.pack("<Q", len(text)) + text + rest
    for size in (0, 1, length - 1, 2**20, 2**40, 2**63, 2**64 - 1):
        yield f"header of {size} bytes", struct.pack("<Q", size) + content[8:]


def arrays(folder: Path) -> Iterator[Case]:
    """Arrays that do not fit the model, in either form."""
    for name, leaf in right().items():
        for said, wrong in _other(leaf):
            content = savez({**right(), name: wrong})
            call = functools.partial(_start_file, folder, "w.npz", content, None)
            yield Case(f"w.npz: {name} {said}", call, ("w.npz",))
        fewer = {key: value for key, value in right().items() if key != name}
        for said, found in {"missing": fewer, "twice": {**right(), name.replace("/", "."): leaf},
                            "renamed": {**fewer, f"{name}2": leaf},
                            "beside another": {**right(), f"{name}2": leaf}}.items():  # fmt: skip
            call = functools.partial(_start_file, folder, "w.npz", savez(found), None)
            yield Case(f"w.npz: {name} {said}", call, ("w.npz",))


def _other(leaf: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    for kind in ("i4", "?", "c8", "U4", "M8[s]", "u1"):
        yield f"of {kind}", np.zeros(leaf.shape, kind)
    yield "of objects", leaf.astype(object)
    for value in (np.nan, np.inf, -np.inf):
        yield f"with {value}", np.full_like(leaf, value)
    yield "beyond float32", np.full(leaf.shape, 1e300)
    yield "of another rank", leaf[None]
    yield "empty", leaf[:0]
    yield "larger", np.concatenate([leaf, leaf])


def _start_orbax(folder: Path, source: Path, name: str, deed: Damage | None) -> None:
    place = fresh(folder) / "orbax"
    shutil.copytree(source, place)
    if deed:
        deed(place / name)
    start(place)


def orbax(folder: Path) -> Iterator[Case]:
    """Every file of an Orbax checkpoint, damaged."""
    source = folder / "right"
    tree = {"params": {key.split("/")[1]: leaf for key, leaf in right().items()}}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(source, tree)
    yield Case("orbax()", functools.partial(_start_orbax, folder, source, "", None), good=True)
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        name = path.relative_to(source).as_posix()
        for said, deed in damages(path.read_bytes(), flips=6):
            # Orbax does not need all of its files, and has no checksum for small arrays.
            yield Case(
                f"orbax {name}: {said}",
                functools.partial(_start_orbax, folder, source, name, deed),
                ("orbax",),
                may_pass=True,
            )
        if path.name.startswith("_") or path.suffix == ".json":
            for text in WRONG_JSON_TEXTS:
                call = functools.partial(_start_orbax, folder, source, name, replaced(text))
                yield Case(f"orbax {name}: {text[:12]!r}", call, ("orbax",), may_pass=True)


def places(folder: Path) -> Iterator[Case]:
    """Values of `config.init_from` that name nothing of use."""
    folder.mkdir(exist_ok=True)
    makes: dict[str, Callable[[Path], Any]] = {
        "an empty folder": lambda p: p.mkdir(),
        "a folder with empty checkpoints": lambda p: (p / "checkpoints").mkdir(parents=True),
        "a folder of runs": lambda p: (p / "run/checkpoints/3").mkdir(parents=True),
        "a text": lambda p: p.write_text("weights"),
        "nothing": lambda p: None,
    }
    for said, make in makes.items():
        path = fresh(folder)
        make(path)
        for text in (str(path), f"{path}@best"):
            yield Case(
                f"init_from {said} {text[-5:]}", functools.partial(start, text), ("init_from",)
            )
    for text in ("/", "/dev/null", "no\nsuch", "a\0b", "x" * 5000, "@best", "~", "/etc/passwd"):
        yield Case(f"init_from={text[:12]!r}", functools.partial(start, text), ("init_from",))


SURFACES = {"weights files": files, "weights arrays": arrays, "orbax": orbax, "places": places}
