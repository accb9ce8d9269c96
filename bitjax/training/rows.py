"""Runs as rows of one program: their states stacked, a step that `vmap` makes of one run's."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.data import eval_batches, train_batch
from bitjax.training.parallel import Placement, placement
from bitjax.training.step import make_eval_step
from bitjax.training.work import Work

PyTree = Any


def stack(trees: Sequence[PyTree]) -> PyTree:
    """Trees of arrays as one, with a new first axis; its arrays are its own."""
    # By NumPy, which compiles nothing for each shape; copied, for its memory cannot be donated.
    return jax.tree.map(lambda *leaves: jnp.array(np.stack(leaves)), *jax.device_get(list(trees)))


def rows_of(tree: PyTree) -> list[PyTree]:
    """The trees that `stack` joined."""
    host = jax.device_get(tree)
    count = len(jax.tree.leaves(host)[0])
    return [jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), host) for i in range(count)]


def placement_of_rows() -> Placement:
    """One device on which a step takes the states of several runs at once."""
    one = placement("none")
    return one._replace(
        form="rows",
        train=lambda step, *, scanned=False: one.train(jax.vmap(step), scanned=scanned),
        split=rows_of,
        join=stack,
    )


def programs(work: Work) -> list[str]:
    """The text of what each stage of a run computes on a device, before compilation."""
    texts = []
    batch = train_batch(work.dataset, work.settings.batch_size, 0, 0)
    evaluation = next(iter(eval_batches(work.dataset, work.settings.eval_batch_size)))
    for index, stage in enumerate(work.method.stages):
        every = stage.every[0] if stage.every else 0
        text = f"{stage.name}, {stage.steps} steps, on the host every {every}\n"
        if stage.steps:
            text += _text(work.train_step(index), work.state_shapes(index), batch)
        step = make_eval_step(work.wrap(stage), work.preprocess, task=work.task, teacher=work.model)
        shapes = work.variable_shapes(index)
        if work.task.compare is not None:
            shapes = shapes, work.variable_shapes(-1)
        texts.append(text + _text(step, shapes, evaluation))
    return texts


def _text(function: Callable, *args: Any) -> str:
    return jax.jit(function).lower(*args).as_text()  # with the arrays that it closes over
