"""Trees of arrays as rows of one tree, and what tells whether runs can be rows of one program."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.data import eval_batches, train_batch
from bitjax.training.keeper import Keeper
from bitjax.training.runner import Run
from bitjax.training.step import make_eval_step, make_train_step

PyTree = Any


def stack(trees: Sequence[PyTree]) -> PyTree:
    """Trees of arrays as one, with a new first axis; its arrays are its own.

    Example:
      >>> stack([{"bits": jnp.float32(4.0)}, {"bits": jnp.float32(2.0)}])["bits"].shape
      (2,)
    """
    # By NumPy, which compiles nothing for each shape; copied, for its memory cannot be donated.
    return jax.tree.map(lambda *leaves: jnp.array(np.stack(leaves)), *jax.device_get(list(trees)))


def rows_of(tree: PyTree, count: int) -> list[PyTree]:
    """The trees that `stack` joined.

    Example:
      >>> [float(row["bits"]) for row in rows_of({"bits": jnp.array([4.0, 2.0])}, 2)]
      [4.0, 2.0]
    """
    host = jax.device_get(tree)
    return [jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), host) for i in range(count)]


def programs(run: Run) -> list[str]:
    """The text of what each stage of a run computes on a device, before compilation.

    Runs whose texts are equal can be rows of one group: whatever else tells them apart is in their
    states, or happens on the host.
    """
    keeper, texts = Keeper(run), []
    batch = train_batch(run.dataset, run.settings.batch_size, 0, 0)
    evaluation = next(iter(eval_batches(run.dataset, run.settings.eval_batch_size)))
    for index, stage in enumerate(run.method.stages):
        model = run.wrap(stage)
        every = stage.every[0] if stage.every else 0
        text = f"{stage.name}, {stage.steps} steps, on the host every {every}\n"
        if stage.steps:
            step = make_train_step(model, stage, run.costs, run.preprocess, teacher=run.model)
            text += _text(step, keeper.abstract_state(index), batch)
        step = make_eval_step(model, run.preprocess)
        texts.append(text + _text(step, keeper.abstract_variables(index), evaluation))
    return texts


def _text(function: Callable, *args: Any) -> str:
    return jax.jit(function).lower(*args).as_text()  # with the arrays that it closes over
