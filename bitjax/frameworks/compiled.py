"""Compiles what bitjax's tools run: once in a process for each model, setting and shape."""

from collections.abc import Callable
from typing import Any

import jax

from bitjax.frameworks.linen import hashable, intercepting
from bitjax.program.kept import Kept, join_static, numbers, split_static

_KEPT = Kept(64)  # programs; the oldest goes, with the model that it was made for


def compile_quickly(*, exact: bool = False) -> dict[str, Any]:
    """Options of `jax.jit` for a program that runs once: compilation dominates its time.

    An `exact` one gives the bits of full optimisation.
    """
    # On the CPU, compiling without optimisation takes half as long, and contracts other products
    # and sums. At level 1 bits are those of level 3: random bits of ResNet-20's kernels, which are
    # unrolled, compile in 2 CPU-seconds instead of 36. Elsewhere it was not measured.
    if jax.default_backend() != "cpu":
        return {}
    return {"compiler_options": {"xla_backend_optimization_level": int(exact)}}


def jit_arrays(
    function: Callable[..., Any], *trees: Any, static: tuple = (), over: Any = None, **options: Any
) -> Any:
    """Calls `function(*static, *trees)`, compiled; leaves of trees that are no arrays stay values.

    What was compiled for equal `static` values is used again. So `function` is no closure, and
    keeps nothing but its result, which may have `Told` in it. `over` is another transform than jit
    that takes a function and its arguments.
    """
    leaves, tree = jax.tree.flatten(trees)
    arrays, rest = split_static(leaves)

    def make():  # what is kept holds no array of a call
        def call(arrays):
            return function(*static, *jax.tree.unflatten(tree, join_static(arrays, rest)))

        return call if over else jax.jit(call, **options)

    static_key = tuple(map(hashable, static)), numbers(static)
    key = function, static_key, tree, rest, over, repr(options), intercepting()
    found = _KEPT.get(key, make)
    return over(found, arrays) if over else found(arrays)
