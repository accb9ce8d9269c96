"""Bad packed files: damaged ones, headers and indices that lie, numbers that no site can have."""

import functools
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import bitjax as bj
from bitjax.export.deploy import exact_rules
from bitjax.models import MLP
from bitjax.quantizers import deployed
from tests.bad_inputs.damage import WRONG_JSON_TEXTS, Damage, damages, wrong_json
from tests.bad_inputs.data_files import fresh
from tests.bad_inputs.judge import Case
from tests.bad_inputs.weights import headers

NAME = "packed.safetensors"
# What no number and no name in an index may be; what is wrong everywhere is in `damage.WRONG`.
WRONG = (None, True, -1, 0, 2.5, 10**12, 10**400, "../x", "/x", "a//b", "\x1b[2J", "*", "x" * 5000,
         [], {}, [[]], [-1], [10**12] * 3, [1] * 5000)  # fmt: skip


def right(path: Path) -> bytes:
    """A file of a model with two kernels and an input."""
    draw, model, x = np.random.default_rng(0), MLP((2,), 2), np.zeros((1, 3), np.float32)
    offset, signs = deployed.affine("offset", "narrow"), deployed.affine("signs", "symmetric")
    rules = {"dense1/kernel": offset, "head/kernel": signs, "head/input": deployed.table()}
    whole = {"dense1": draw.integers(-3, 4, (3, 2)), "head": np.array([[1, -1], [1, 1]])}
    bias = np.zeros(2, np.float32)
    params = {n: {"kernel": w.astype(np.float32), "bias": bias} for n, w in whole.items()}
    two, one = np.float32(2), np.float32(1)
    table = {"bits": two, "levels": np.arange(4.0, dtype="f4"), "edges": np.arange(3.0, dtype="f4")}
    quant = {"dense1": {"kernel": {"bits": two + 1, "scale": np.ones((1, 2), np.float32)}},
             "head": {"kernel": {"bits": one, "scale": one}, "input": table}}  # fmt: skip
    net = bj.Quantized(model, exact_rules(rules))
    about = {"mean": (0.5,), "std": (0.2,), "classes": ["a", "b"], "task": "classification"}
    bj.save_packed(path, bj.Deployed(net, {"params": params, "quant": quant}), x, about=about)
    return path.read_bytes()


def _load(folder: Path, content: bytes, deed: Damage | None) -> None:
    path = fresh(folder) / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    if deed:
        deed(path)
    bj.load_packed(path)


def files(folder: Path) -> Iterator[Case]:
    """The file damaged, and with other texts in its header."""
    content = right(folder / NAME)
    yield Case("packed()", functools.partial(_load, folder, content, None), good=True)
    for said, deed in damages(content, flips=60):
        # The format has no checksum: a flipped bit of a code or a scale is another one.
        yield Case(
            said,
            functools.partial(_load, folder, content, deed),
            (NAME,),
            may_pass="flipped" in said,
        )
    for said, wrong in (*headers(content), *_texts(content), *_numbers(content)):
        call = functools.partial(_load, folder, wrong, None)
        yield Case(said, call, (NAME,), may_pass=said.startswith(("header", "about", "may")))


def _texts(content: bytes) -> Iterator[tuple[str, bytes]]:
    (length,) = struct.unpack("<Q", content[:8])
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]

    def told(key: str, text: str) -> bytes:
        other = {**header, "__metadata__": {**header["__metadata__"], key: text}}
        whole = json.dumps(other).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(whole)) + whole + rest

    for key in ("index", "model", "about"):
        for said, wrong in wrong_json(json.loads(header["__metadata__"][key]), WRONG):
            # A name may be another name, and a field of the model any number of layers.
            free = key == "model" or said.endswith(("gone", "is 0"))
            yield f"{'may be ' if free else ''}{key}: {said}", told(key, json.dumps(wrong))
        for text in WRONG_JSON_TEXTS:
            yield f"{key} {text[:12]!r}", told(key, text.decode("latin-1"))
    for version in ("2", "99999999999", "", "one", "-1", "1.0", "\u0661", "0" * 5000):
        yield f"version {version[:12]!r}", told("version", version)


def _numbers(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Numbers that are not finite, in place of every number of the file."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    begin, end = header["floats"]["data_offsets"]
    for at in range(8 + length + begin, 8 + length + end, 4):
        for value in (np.nan, np.inf, -np.inf, -1e30):
            wrong = content[:at] + np.float32(value).tobytes() + content[at + 4 :]
            yield f"may be: byte {at} is {value}", wrong  # a bias may be anything
    yield "a bit behind the codes", content[:-1] + bytes([content[-1] | 0x80])  # which take 22
