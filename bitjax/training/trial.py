"""Tries a task on shapes before any work: what is wrong with it, or with a model, is one line."""

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.data import DatasetLike
from bitjax.frameworks.linen import Quantized
from bitjax.frameworks.shapes import one_key, shapes_of
from bitjax.training.task import Preprocess, Task, all_sums
from bitjax.variables import STATS

Guard = Callable[[str], AbstractContextManager[None]]
_EXAMPLES = 2
# What rows of metrics, stages and `result.json` say beside a task's figures.
_TAKEN = frozenset(
    "bits task_loss step steps stage stages seconds wall_seconds name status method data task "
    "about_data eval_split seed score cost files model config budget commit commits device".split()
)


def _plainly(argument: str) -> AbstractContextManager[None]:
    """What a user wrote raises what it raises."""
    del argument
    return contextlib.nullcontext()


def try_task(
    task: Task,
    model: Any,
    dataset: DatasetLike,
    preprocess: Preprocess,
    guard: Guard = _plainly,
) -> None:
    """Traces a model's calls and what the task makes of them; a ValueError says what is wrong."""
    # `guard` is around what a user wrote, the argument `model` or `task`.
    specs = dict(dataset.specs(_EXAMPLES))
    args, kwargs = input_shapes(task, dataset, preprocess, guard)
    net = Quantized(model)
    with guard("model"):
        shapes = shapes_of(net, *(net.as_training(args, kwargs) or (args, kwargs)))
        outputs = _outputs(net, shapes, args, kwargs)
        trained = _outputs(net, shapes, args, kwargs, train=True)
    if task.check is not None:
        try:
            task.check(outputs, specs, dataset)
        except ValueError:
            raise  # what it is for
        except Exception:  # a mistake in it
            with guard("task"):
                raise
    masked = {**specs, "mask": jax.ShapeDtypeStruct((_EXAMPLES,), np.float32)}
    with guard("task"):
        loss = jax.eval_shape(task.loss, trained, specs)
    _check_scalars("loss", {"loss": loss})
    figures: dict[str, Any] = {}
    for of in (task._replace(compare=None), task):  # in training, in evaluation
        with guard("task"):
            sums = jax.eval_shape(partial(all_sums, of), outputs, outputs, masked)
        _check_scalars("sums", sums)
        with guard("task"):
            figures = jax.eval_shape(task.figures, sums)
        _check_scalars("figures", figures)
    if taken := sorted(_TAKEN & {*figures}):
        raise ValueError(
            f"`task` must name its figures otherwise than {taken[0]!r}: results have that already."
        )
    if lacks := [name for name in ("loss", task.score) if name not in figures]:
        raise ValueError(f"`task` must give the figure {lacks[0]!r}, got {sorted(figures)}.")
    _check_form(task.form)
    if task.weights is not None:
        with guard("task"):
            weights = jax.eval_shape(task.weights, specs)
        _check_weights(weights, trained)


def input_shapes(
    task: Task, dataset: DatasetLike, preprocess: Preprocess, guard: Guard = _plainly
) -> tuple[tuple, dict[str, Any]]:
    """The shapes of what a model is called with for two examples."""
    specs, given = dict(dataset.specs(_EXAMPLES)), []

    def inputs(batch):
        given[:] = [task.inputs(preprocess, None, batch)]
        return [x for x in jax.tree.leaves(given[0]) if hasattr(x, "shape")]

    try:
        with guard("task"):
            shapes = iter(jax.eval_shape(inputs, specs))
    except (KeyError, ValueError) as error:
        cause = error if isinstance(error, KeyError) else error.__cause__
        if isinstance(cause, KeyError) and cause.args[:1] and cause.args[0] not in specs:
            raise ValueError(
                f"`task` reads {cause.args[0]!r} of a batch, and {dataset.name!r} gives "
                f"{', '.join(specs)}: choose a task for such data."
            ) from cause
        raise
    (pair,) = given
    if not (isinstance(pair, tuple) and [type(x) for x in pair] == [tuple, dict]):
        raise ValueError(
            "`task` must give (args, kwargs) of the model's call by `inputs`, a tuple and a dict, "
            f"got {type(pair).__name__}."
        )
    if others := [x for x in jax.tree.leaves(pair) if not hasattr(x, "shape")]:
        raise ValueError(
            f"`task` must give arrays by `inputs`, got {others[0]!r}: make it a field of the model."
        )
    return jax.tree.map(lambda _: next(shapes), pair)


def _outputs(net: Quantized, variables: Any, args: tuple, kwargs: dict, **train: bool) -> Any:
    """The shapes of what the model gives, as training or evaluation calls it."""

    def call(variables, args, kwargs):
        mutable = [name for name in (*variables, STATS) if name != "params"] if train else False
        rngs = one_key() if train else None
        return net.apply(variables, *args, rngs=rngs, mutable=mutable, **kwargs, **train)

    found = jax.eval_shape(call, variables, args, kwargs)
    return found[0] if train else found


def _check_scalars(what: str, found: Any) -> None:
    if not isinstance(found, Mapping):
        raise ValueError(
            f"`task` must give a dict of scalars by `Task.{what}`, got {type(found).__name__}."
        )
    for name, leaf in found.items():
        if leaf.shape != () or not jnp.issubdtype(leaf.dtype, jnp.number):
            raise ValueError(
                f"`task` must give scalars by `Task.{what}`, got {leaf.dtype} of shape "
                f"{leaf.shape} for {name!r}."
            )


def _check_form(form: Any) -> None:
    try:
        str.format(form, 0.5)
    except Exception:  # a user's text fails in any way
        raise ValueError(
            f"`task` must have a format of one number as `Task.form`, '{{:.2%}}' say, got {form!r}."
        ) from None


def _check_weights(weights: Any, outputs: Any) -> None:
    """Refuses weights that are not one number for each prediction."""
    wanted, found = getattr(outputs, "shape", None), getattr(weights, "shape", None)
    if wanted is not None and found != wanted[:-1]:
        raise ValueError(
            f"`task` must give a number for each prediction by `Task.weights`, {wanted[:-1]} of "
            f"outputs {wanted}, got {type(weights).__name__ if found is None else found}."
        )
