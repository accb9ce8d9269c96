"""Traces a function once for each shape and each static argument, and reads the trace."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bitjax.program.kept import Kept, join_static, numbers, split_static
from bitjax.program.naming import path_of
from bitjax.program.program import Program
from bitjax.program.read import read
from bitjax.program.values import DATA, NEUTRAL, Kind, Leaf

# What JAX raises where Python asks for a number that only a run has.
_NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
_NOT_THE_MODEL = ("jax", "flax", "bitjax.program", "bitjax.frameworks")
_MOST = 128  # functions, and programs, that are kept


class Call(NamedTuple):
    """One call of a traced function."""

    program: Program
    arguments: tuple[Any, Any, Any]  # parameters, neutral arrays, arrays of data
    out: Any  # tree structure of its result

    @property
    def leaves(self) -> list[Any]:
        """The program's flat arguments."""
        return jax.tree.leaves(self.arguments)

    def result(self, flat: Sequence[Any]) -> Any:
        """The function's result, from the program's."""
        return jax.tree.unflatten(self.out, flat)


class Traced:
    """Programs by function and static arguments; JAX's own cache tells the shapes apart."""

    def __init__(self):
        self.functions, self.programs = Kept(_MOST), Kept(_MOST)

    def __call__(
        self,
        function: Callable[[Any, Any, Any], Any],
        key: Any,
        params: Any,
        neutral: Any,
        data: Any,
        *,
        root: int = 0,
        sums: bool = False,
        calls: str = "shared",
    ) -> Call:
        """Reads `function(params, neutral, data)`; leaves that are no arrays are static.

        `key` says which function it is; nothing is kept where it cannot be hashed.
        """
        leaves, tree = jax.tree.flatten(data)
        arrays, static = split_static(leaves)

        def flat(params, neutral, arrays):
            return function(params, neutral, jax.tree.unflatten(tree, join_static(arrays, static)))

        # A new function where nothing may be kept: JAX's cache goes by identity.
        whole = (key, numbers(key), tree, static)
        jitted = self.functions.get(whole, lambda: jax.jit(flat))
        try:
            traced = jitted.trace(params, neutral, arrays)
        except _NEEDS_VALUES as error:
            raise ValueError(_decides_by_values(error)) from error
        arguments = params, neutral, arrays
        out = jax.tree.structure(traced.out_info)
        closed, kept = traced.jaxpr, id(traced.jaxpr)
        if len(closed.jaxpr.invars) != len(jax.tree.leaves(arguments)):
            # `function` closes over arrays that are being traced: jit puts them in front and does
            # not say what they are. Kept as constants they belong to this trace alone.
            self.functions.drop(whole)
            closed, kept = jax.make_jaxpr(flat)(params, neutral, arrays), None
        kinds = [*_params(params), *[NEUTRAL] * len(jax.tree.leaves(neutral))]
        kinds += [NEUTRAL if _is_key(x) else DATA for x in arrays]
        _, program = self.programs.get(
            kept, lambda: (closed, read(closed, kinds, root=root, sums=sums, calls=calls))
        )
        return Call(program, arguments, out)


def _decides_by_values(error):
    """Where a function's Python depends on values, and what to do about it."""
    name, place, step = "the model", "", error.__traceback__
    while step is not None:
        module, code = step.tb_frame.f_globals.get("__name__", ""), step.tb_frame.f_code
        if not any(module == own or module.startswith(f"{own}.") for own in _NOT_THE_MODEL):
            name, place = repr(code.co_qualname), f" ({code.co_filename}:{step.tb_lineno})"
        step = step.tb_next
    return (
        f"{name}{place} needs the values of an array in Python, but a model is traced by shapes: "
        "choose with jnp.where or jax.lax.cond, and compute with jax.numpy."
    )


def _is_key(x):
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _params(params):
    paths = jax.tree_util.tree_leaves_with_path(params)
    return [Kind("param", (Leaf(path_of(path), math.prod(np.shape(x))),)) for path, x in paths]
