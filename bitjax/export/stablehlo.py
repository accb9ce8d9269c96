"""A deployed model as StableHLO: one file for CPUs, GPUs and TPUs, and for other compilers."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from bitjax.checks import SWITCH, checked, choice, several
from bitjax.export.deploy import DEPLOYED, Deployed
from bitjax.export.graph import graph_of
from bitjax.export.integer_model import held_by, run_graph
from bitjax.export.nodes import Graph
from bitjax.extras import extra
from bitjax.files.reading import FileError, one_line, read_bytes
from bitjax.files.writing import replacing

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_AGAIN = "write it again by bitjax.to_stablehlo"


@checked(deployed=DEPLOYED, platforms=several(choice(*PLATFORMS), 1), free_batch=SWITCH)
def to_stablehlo(
    deployed: Deployed,
    *args: Any,
    path: str | os.PathLike | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    free_batch: bool = True,
    **kwargs: Any,
) -> bytes:
    """Writes the integer program of a deployed model as StableHLO, by `jax.export`.

    The file holds the kernels as integers. It is read by `bitjax.read_stablehlo`, or without bitjax
    by `jax.export.deserialize(content).call(x)`. A compiler other than XLA takes the module in it,
    `jax.export.deserialize(content).mlir_module_serialized`.

    Args:
      deployed: what `bitjax.deploy` gave.
      *args: positional arguments of the model; of a batch only the shapes count.
      path: the file to write, by custom with the ending `.stablehlo`; None writes none.
      platforms: what the program may run on: `cpu`, `cuda`, `rocm`, `tpu`.
      free_batch: whether the batch size is free; else it is that of the arguments.
      **kwargs: keyword arguments of the model.

    Returns:
      The content of the file. Its program takes the data arrays of the call, one after the other.

    Raises:
      ValueError: the model is not deployed; or its batch cannot be free.
      ImportError: flatbuffers is not installed, which is in the extra `export`.

    Example:
      >>> import bitjax as bj, flax.linen as nn, jax.numpy as jnp
      >>> model = bj.Quantized(nn.Dense(2), [bj.rule(".*", bj.lsq(bits=4))])
      >>> x = jnp.array([[1.0, -2.0, 4.0]])
      >>> fixed = bj.deploy(model, model.init(jax.random.key(0), x), x)
      >>> content = to_stablehlo(fixed, x)
      >>> out = jax.export.deserialize(bytearray(content)).call(x)
      >>> bool((out == bj.integer_model(fixed, x)(x)).all())
      True
    """
    with extra("export", "StableHLO"):
        import flatbuffers  # noqa: F401  jax.export writes with it
    graph = graph_of(deployed, *args, **kwargs)
    if free_batch and graph.batch is None:
        raise ValueError(
            "the model computes with the size of its batch, which therefore cannot be free: pass "
            "free_batch=False."
        )
    shapes = _shapes(graph, free_batch)
    content = bytes(_exported(graph, shapes, platforms).serialize())
    if path is not None:
        with replacing(path) as file:
            file.write(content)
    return content


def _shapes(graph: Graph, free: bool) -> list[jax.ShapeDtypeStruct]:
    """The data arrays of a call; `b` examples where their number is free."""
    batch: Any = graph.batch
    more = jax.export.symbolic_shape("b")[0] - batch if free else 0
    found = []
    for number in graph.inputs:
        shape, dtype, growth = graph.values[number]
        sizes = (n + more * k if k else n for n, k in zip(shape, growth, strict=True))
        found.append(jax.ShapeDtypeStruct(tuple(sizes), dtype))
    return found


def _exported(graph: Graph, shapes: Sequence[Any], platforms: Sequence[str]) -> Any:
    held = held_by(graph)

    def integer_model(*arrays):
        # Behind a barrier constants are not folded, and the program rounds as evaluation does.
        given = lax.optimization_barrier(held)
        return run_graph(graph, given, dict(zip(graph.inputs, arrays, strict=True))).out

    # Else the file names the folders of whoever writes it, and its size changes with them.
    before = jax.config.values["jax_traceback_in_locations_limit"]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        return jax.export.export(jax.jit(integer_model), platforms=tuple(platforms))(*shapes)
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def read_stablehlo(path: str | os.PathLike) -> Callable[..., Any]:
    """Reads a program of `to_stablehlo`: a compiled function of its data arrays.

    Args:
      path: the file.

    Raises:
      ValueError: the file is damaged, or is no program of `jax.export`.
      ImportError: flatbuffers is not installed, which is in the extra `export`.

    Example:
      >>> import bitjax as bj, flax.linen as nn, jax.numpy as jnp, tempfile
      >>> model = bj.Quantized(nn.Dense(2), [bj.rule(".*", bj.lsq(bits=4))])
      >>> x = jnp.array([[1.0, -2.0, 4.0]])
      >>> fixed = bj.deploy(model, model.init(jax.random.key(0), x), x)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = to_stablehlo(fixed, x, path=f"{folder}/dense.stablehlo")
      ...     run = read_stablehlo(f"{folder}/dense.stablehlo")
      >>> bool((run(x) == bj.integer_model(fixed, x)(x)).all())
      True
    """
    with extra("export", "a StableHLO file"):
        import flatbuffers  # noqa: F401  jax.export reads with it
    content = read_bytes(path, _AGAIN)
    try:
        return jax.jit(jax.export.deserialize(bytearray(content)).call)
    except Exception as error:  # flatbuffers and MLIR raise whatever they meet
        what = f"is no program of jax.export ({one_line(error)})"
        raise FileError(path, what, _AGAIN) from None
