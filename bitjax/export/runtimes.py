"""Runs a file of a deployed model in the runtime that it is for, and tells what its sites hold."""

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitjax.export.deploy import Deployed
from bitjax.export.graph import graph_of
from bitjax.export.integer_model import integer_model
from bitjax.export.interpreter import interpret
from bitjax.export.nodes import Graph, Ran, arrays_of
from bitjax.export.packed import load_packed
from bitjax.export.stablehlo import read_stablehlo
from bitjax.extras import extra
from bitjax.files.reading import FileError, memory, one_line, parse_json, read_bytes

_FOR = {"qdq": "onnxruntime", "integers": "onnxruntime", "qonnx": "qonnx",
        "packed": "numpy", "stablehlo": "jax.export"}  # fmt: skip
_ENDS = {".safetensors": "packed", ".onnx": "onnx", ".stablehlo": "stablehlo"}
_AGAIN = "write it again"

# By kind, `sites` or `sums`, and name: a tensor of the file, whose axis i is the program's axes[i].
Taps = dict[tuple[str, str], tuple[str, tuple[int, ...]]]


class Runtime(NamedTuple):
    """A file in a program that runs it.

    Attributes:
      format: `packed`, `qdq`, `integers`, `qonnx` or `stablehlo`.
      name: what runs it, one of `check.RUNTIMES`.
      versions: of the packages that do.
      run: a call's arguments to what the model gives; `integers` and `sums` are empty where the
        file shows none.
      outputs: a call's arguments to the outputs alone, by the file as it is. Where a runtime
        joins operations, it may join others while it shows sites.
      levels: whether `integers` are levels, of which the scale makes integers.
    """

    format: str
    name: str
    versions: dict[str, str]
    run: Callable[..., Ran]
    outputs: Callable[..., Any]
    levels: bool = False


def open_file(
    path: str | os.PathLike, deployed: Deployed, graph: Graph, args: tuple, kwargs: Mapping, name=""
) -> Runtime:
    """A file in a runtime, its own unless one is named; `graph` is what it should compute."""
    kind = _ENDS.get(Path(path).suffix)
    if kind is None:
        ends = ", ".join(_ENDS)
        raise FileError(path, f"is named like no file of a model ({ends})", "name it by its format")
    if kind == "onnx":
        return _onnx(path, graph)
    if kind == "stablehlo":
        return _stablehlo(path, graph)
    found = load_packed(path, deployed.model).deployed
    if name == "jax":
        model = integer_model(found, *args, **kwargs)
        return Runtime(kind, name, _versions("jax", "jaxlib"), model.sites, model)
    own = graph_of(found, *args, **kwargs)

    def run(*args, **kwargs):
        return interpret(own, *args, **kwargs)

    return Runtime(kind, "numpy", _versions("numpy"), run, lambda *a, **k: run(*a, **k).out)


def _versions(*packages: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # built from a folder
            found[package] = str(getattr(importlib.import_module(package), "__version__", ""))
    return found


def _stablehlo(path, graph: Graph) -> Runtime:
    call = read_stablehlo(path)

    def outputs(*args, **kwargs):
        return call(*arrays_of(graph, args, kwargs).values())

    def run(*args, **kwargs):
        return Ran(outputs(*args, **kwargs), {}, {})

    return Runtime("stablehlo", "jax.export", _versions("jax", "jaxlib"), run, outputs)


# ---- ONNX -------------------------------------------------------------------------------------


def _onnx(path, graph: Graph) -> Runtime:
    """An ONNX file in the runtime of its profile."""
    with extra("export", "an ONNX file"):
        import onnx
    content = read_bytes(path, _AGAIN, most=memory() or 1 << 31)
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf has errors of its own, in several implementations
        raise FileError(path, f"is no ONNX file ({one_line(error)})", _AGAIN) from None
    told = {p.key: p.value for p in model.metadata_props}
    profile = told.get("bitjax.profile")
    if profile not in _FOR:
        raise FileError(path, "is not of bitjax.to_onnx", "give a file that it wrote")
    taps = _taps_of(path, told)
    if profile == "qonnx":
        return _in_qonnx(model, graph, taps)
    with extra("export", "checking an ONNX file"):
        import onnxruntime
    plain = _session(onnxruntime, content)
    tapped = _session(onnxruntime, _with_outputs(onnx, model, taps).SerializeToString())

    def outputs(*args, **kwargs):
        given = _feeds(model, graph, args, kwargs)
        return plain.run([o.name for o in plain.get_outputs()], given)

    def run(*args, **kwargs):
        given = _feeds(model, graph, args, kwargs)
        names = [*map(_output, taps), *(o.name for o in plain.get_outputs())]
        found = tapped.run(names, given)
        return _ran(taps, dict(zip(taps, found, strict=False)), found[len(taps) :])

    versions = _versions("onnxruntime", "onnx")
    return Runtime(profile, "onnxruntime", versions, run, outputs, levels=profile == "qdq")


def _session(onnxruntime, content: bytes):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of what an optimizer of its own leaves behind
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _feeds(model, graph: Graph, args, kwargs) -> dict[str, np.ndarray]:
    """The arrays of a call as the file takes them."""
    found = {}
    given = {
        graph.inputs[number]: np.asarray(x) for number, x in arrays_of(graph, args, kwargs).items()
    }
    for entry in model.graph.input:
        x, kind = given[entry.name], entry.type.tensor_type
        sizes = [dim.dim_value for dim in kind.shape.dim]
        if kind.elem_type == 2 and x.dtype != np.uint8:  # raw pixels
            raise ValueError(
                f"the file takes {entry.name!r} as raw pixels, and the model is given "
                f"{x.dtype}: check a file that was written without `normalization`."
            )
        if x.ndim > 2 and list(x.shape[1:]) != sizes[1:]:
            x = np.ascontiguousarray(np.moveaxis(x, -1, 1))  # channels first
        found[entry.name] = x
    return found


def _taps_of(path, told: Mapping[str, str]) -> Taps:
    """Where the file has what sites and products give."""
    try:
        listed = parse_json(told["bitjax.taps"])
        return {
            (kind, name): (str(tensor), tuple(map(int, axes)))
            for kind, entries in listed.items()
            for name, (tensor, axes) in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FileError(path, "does not tell its sites", _AGAIN) from None


def _output(tap: tuple[str, str]) -> str:
    return "/".join(("tap", *tap))


def _with_outputs(onnx, model, taps: Taps):
    """The model with its sites as outputs; types of few bits are no array's, so they are cast."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    kind = onnx.TensorProto.DOUBLE  # which holds every int32
    for tap, (name, _) in taps.items():
        shown.graph.node.append(onnx.helper.make_node("Cast", [name], [_output(tap)], to=kind))
        shown.graph.output.append(onnx.helper.make_tensor_value_info(_output(tap), kind, None))
    return shown


def _ran(taps: Taps, found: Mapping[tuple[str, str], np.ndarray], out: Any) -> Ran:
    """What was found at taps, with the program's order of axes."""
    turned = {tap: x.transpose(np.argsort(taps[tap][1])) for tap, x in found.items()}
    of_kind = {
        kind: {name: x for (k, name), x in turned.items() if k == kind}
        for kind in ("sites", "sums")
    }
    return Ran(out, of_kind["sites"], of_kind["sums"])


def _in_qonnx(model, graph: Graph, taps: Taps) -> Runtime:
    with extra("export", "checking a QONNX file"):
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.core.onnx_exec import execute_onnx
        from qonnx.transformation.infer_shapes import InferShapes
    prepared: dict[tuple, Any] = {}

    def execute(full, args, kwargs):
        given = _feeds(model, graph, args, kwargs)
        sizes = tuple(x.shape for x in given.values())
        if sizes not in prepared:
            whole = ModelWrapper(model, make_deepcopy=True)
            for entry in whole.model.graph.input:
                for dim, n in zip(
                    entry.type.tensor_type.shape.dim, given[entry.name].shape, strict=True
                ):
                    dim.dim_value = n
            prepared[sizes] = whole.transform(InferShapes())
        return execute_onnx(prepared[sizes], given, return_full_exec_context=full)

    def outputs(*args, **kwargs):
        return list(execute(False, args, kwargs).values())

    def run(*args, **kwargs):
        context = execute(True, args, kwargs)
        found = {tap: context[name] for tap, (name, _) in taps.items()}
        return _ran(taps, found, [context[o.name] for o in model.graph.output])

    versions = _versions("qonnx", "onnxruntime", "onnx")
    return Runtime("qonnx", "qonnx", versions, run, outputs, levels=True)
