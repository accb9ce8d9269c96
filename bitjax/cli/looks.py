"""What a finished run's model does with one batch: what saturates, what is zero, what is wrong."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.data import train_batch
from bitjax.diagnostics.doctor import doctor, doctor_report
from bitjax.diagnostics.vitals import vitals
from bitjax.launch.finished import load_run
from bitjax.linen.probe import compile_quickly, jit_arrays, probe
from bitjax.runs.records import RunRecord


class SiteLook(NamedTuple):
    """What a site made of one batch: shares of its elements, in [0, 1]."""

    saturated: float
    zeros: float


def look_inside(record: RunRecord, batch_size: int) -> tuple[dict[str, SiteLook], str]:
    """Runs the final model of a run on one training batch.

    Returns:
      What every quantized site made of it, and the doctor's report.

    Raises:
      ValueError, OSError: the data, the checkpoint or the model's code is not there; one line.
    """
    work, model, variables = load_run(record.folder)
    stage = work.method.stages[-1]
    size = min(batch_size, work.dataset.num_train)
    batch = train_batch(work.dataset, size, 0, work.settings.seed)
    x, labels = work.preprocess(None, jnp.asarray(batch["image"])), jnp.asarray(batch["label"])

    def on_layer(seen):
        found = {}
        for role, use in seen.uses.items():
            q, params, stats = use.quantizer, use.params, use.stats
            x_hat = q.apply(params, stats, use.x, train=False)
            own = vitals(q, params, stats, use.x)
            found[role] = jnp.stack([jnp.mean(own.saturated), jnp.mean(x_hat == 0)])
        return found

    records: list[tuple[str, Any]] = []

    def look(variables, x):
        seen = probe(model, variables, (x,), {}, on_layer, strict=False)
        records[:] = [(name, None) for name, _ in seen.records]
        return [found for _, found in seen.records]

    outcome = jit_arrays(look, variables, x, **compile_quickly())
    looks = {
        f"{name}/{role}" if name else role: SiteLook(*np.asarray(pair).reshape(-1, 2).max(axis=0))
        for (name, _), found in zip(records, jax.device_get(outcome), strict=True)
        for role, pair in found.items()
    }
    return looks, doctor_report(doctor(model, variables, x, labels=labels)) if stage.rules else ""
