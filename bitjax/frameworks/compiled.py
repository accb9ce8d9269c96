"""Compiles what bitjax's tools run: once in a process for each model, setting and shape."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import jax

from bitjax.frameworks.linen import hashable, intercepting
from bitjax.program.kept import Kept, is_array, join_static, numbers, split_static

_KEPT = Kept(64)  # programs; the oldest goes, with the model that it was made for


def compile_quickly(*, exact: bool = False) -> dict[str, Any]:
    """Options of `jax.jit` for a program that runs once: compilation dominates its time.

    An `exact` one gives the bits of full optimisation.
    """
    # On the CPU, compiling without optimisation takes half as long, and contracts other products
    # and sums. At level 1 bits are those of level 3: random bits of ResNet-20's kernels, which are
    # unrolled, compile in 2 CPU-seconds instead of 36. In one piece and without the emitters of
    # fusions, which jaxlib 0.10 can leave out, it is half again, to the same bits. Elsewhere it was
    # not measured.
    if jax.default_backend() != "cpu":
        return {}
    options: dict[str, Any] = {
        "xla_backend_optimization_level": int(exact),
        "xla_cpu_parallel_codegen_split_count": 1,
    }
    if version("jaxlib").startswith("0.10."):
        options["xla_cpu_use_fusion_emitters"] = False
    return {"compiler_options": options}


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


def jit_each(
    function: Callable[..., Any], calls: Mapping[Any, tuple[tuple, Any]], **options: Any
) -> dict[Any, Any]:
    """`function(*static, *trees)` of every call `(static, trees)`, by one program for all of them.

    One program compiles in a third of the time of eight. Calls of equal statics and shapes share a
    place in it, which they take one after the other.
    """
    places: dict[Any, list[Any]] = {}
    for name, (static, trees) in calls.items():
        leaves, tree = jax.tree.flatten(trees)
        shapes = tuple((x.shape, x.dtype) if is_array(x) else x for x in leaves)
        key = tuple(map(hashable, static)), numbers(static), tree, shapes
        places.setdefault(key, []).append(name)
    found = {}
    for turn in range(max(map(len, places.values()), default=0)):
        # A place with fewer calls has its last one run again, so that the program is the same.
        chosen = [names[min(turn, len(names) - 1)] for names in places.values()]
        statics, trees = zip(*(calls[name] for name in chosen), strict=True)
        results = jit_arrays(_all, list(trees), static=(function, statics), **options)
        found |= dict(zip(chosen, results, strict=True))
    return found


def _all(function, statics, trees):
    return [function(*one, *given) for one, given in zip(statics, trees, strict=True)]
