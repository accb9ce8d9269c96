"""Finds where a step stopped being finite, by taking it again: the step itself only says that."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.data import train_batch
from bitjax.frameworks.finite import first_nonfinite
from bitjax.training.state import TrainState, variables_of
from bitjax.training.step import step_keys
from bitjax.training.work import Work


class NonFiniteError(FloatingPointError):
    """A loss or gradient was not finite; the message says at which step and site."""


def check_finite(work: Work, model: Any, state: TrainState) -> None:
    """Raises `NonFiniteError` if a step of the stage was not finite; reads the state."""
    bad = int(state.bad_step)
    if bad < 0:
        return
    # The state stood still since then, and batches are functions of the step: look again.
    step = int(state.offset) + bad
    batch = train_batch(work.dataset, work.settings.batch_size, step, work.settings.seed)
    state = work.place.local(state)
    keys = _augment_keys(work, state.key, step)
    parts = [
        work.inputs(key, jax.tree.map(lambda x, i=i: jnp.asarray(np.split(x, len(keys))[i]), batch))
        for i, key in enumerate(keys)
    ]
    args, kwargs = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    site = first_nonfinite(model, variables_of(state), *args, **kwargs)
    where = (
        f"at {site!r}"
        if site
        else "in the gradient or the update; every tensor of the forward pass is finite"
    )
    raise NonFiniteError(
        f"step {step + 1} is not finite {where}. The last good checkpoint is kept; check the "
        "data, lower the learning rates or warm up, then start a new run."
    )


def _augment_keys(work: Work, key: jax.Array, step: int) -> list[jax.Array]:
    """The keys by which each device augments each of its parts of a batch, in their order."""
    parts = work.settings.accumulate
    return [
        step_keys(key, step, device if work.place.axis_name else None, part if parts > 1 else None)[
            0
        ]
        for device in range(len(work.place.devices))
        for part in range(parts)
    ]
