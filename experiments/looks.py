"""What a finished run's model does with one batch: what saturates, what is zero, what is wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.data import train_batch
from bitjax.doctor import doctor, report
from bitjax.linen import QUANT, STATS
from bitjax.probe import compile_quickly, jit_arrays, probe
from bitjax.report.runs import RunRecord
from bitjax.training.checkpoint import Checkpoints
from bitjax.vitals import vitals
from experiments.build import build_run

# The weights it started from may be gone, and so may the devices that it was trained on.
_HERE = {"init_from": "", "parallel": "none", "devices": 0, "accumulate": 1}
_HERE |= {"steps_per_dispatch": 1}


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
    folder = Path(record.folder) / "checkpoints"
    if not folder.is_dir():
        raise ValueError(f"there is no {folder}, and they need the weights.")
    try:
        run = build_run({**record.settings, **_HERE}, None)
    except KeyError as error:
        raise ValueError(f"config.json has no {error}, it is of another version.") from None
    stage = run.method.stages[-1]
    model = run.wrap(stage)
    variables = _restored(folder, run, model)
    size = min(batch_size, run.dataset.num_train)
    batch = train_batch(run.dataset, size, 0, run.settings.seed)
    x, labels = run.preprocess(None, jnp.asarray(batch["image"])), jnp.asarray(batch["label"])

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
    return looks, report(doctor(model, variables, x, labels=labels)) if stage.rules else ""


def _restored(folder: Path, run: Any, model: Any) -> Mapping[str, Any]:
    """The variables that the last stage left."""

    def template(meta):
        if meta["place"][:2] != [len(run.method.stages), "enter"]:
            raise ValueError(f"the newest checkpoint in {folder} is not of the end of the run.")
        floats = {k: v for k, v in run.start.items() if k not in (QUANT, STATS)}
        shapes = jax.eval_shape(lambda: floats)
        images = jax.ShapeDtypeStruct((2, *run.dataset.image_shape), np.uint8)
        sample = jax.eval_shape(lambda x: run.preprocess(None, x), images)
        fresh = jax.eval_shape(lambda x: model.init(run.key, x), sample)
        quant = {name: fresh[name] for name in (QUANT, STATS) if name in fresh}
        return {"variables": {**shapes, **quant}}

    with Checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(template)
    if restored is None:
        raise ValueError(f"there is no checkpoint in {folder}.")
    return restored.state["variables"]
