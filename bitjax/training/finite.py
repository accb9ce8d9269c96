"""Where a step stopped being finite: looked for again, because the step itself only says that."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.data import train_batch
from bitjax.linen.finite import first_nonfinite
from bitjax.training.state import TrainState, variables_of
from bitjax.training.step import step_keys

if TYPE_CHECKING:
    from bitjax.training.runner import Run


class NonFiniteError(FloatingPointError):
    """A loss or gradient was not finite; the message says at which step and site."""


def check_finite(run: "Run", model: Any, state: TrainState) -> None:
    """Raises `NonFiniteError` if a step of the stage was not finite; reads the state."""
    bad = int(state.bad_step)
    if bad < 0:
        return
    # The state stood still since then, and batches are functions of the step: look again.
    step = int(state.offset) + bad
    batch = train_batch(run.dataset, run.settings.batch_size, step, run.settings.seed)
    state = run.place.local(state)
    keys = _augment_keys(run, state.key, step)
    parts = np.split(batch["image"], len(keys))
    x = jnp.concatenate(
        [run.preprocess(key, jnp.asarray(part)) for key, part in zip(keys, parts, strict=True)]
    )
    site = first_nonfinite(model, variables_of(state), x)
    where = (
        f"at {site!r}"
        if site
        else "in the gradient or the update; every tensor of the forward pass is finite"
    )
    raise NonFiniteError(
        f"step {step + 1} is not finite {where}. The last good checkpoint is kept; check the "
        "data, lower the learning rates or warm up, then start a new run."
    )


def _augment_keys(run: "Run", key: jax.Array, step: int) -> list[jax.Array]:
    """The keys by which each device augments each of its parts of a batch, in their order."""
    parts = run.settings.accumulate
    return [
        step_keys(key, step, device if run.place.axis_name else None, part if parts > 1 else None)[
            0
        ]
        for device in range(len(run.place.devices))
        for part in range(parts)
    ]
