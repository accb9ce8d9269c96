"""A finished run's model, as its folder has it: for a notebook, a simulator, an export."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bitjax.launch.build import build_run
from bitjax.linen.quantized import Quantized
from bitjax.runs.checkpoint import Checkpoints
from bitjax.training.runner import Run
from bitjax.variables import QUANT, STATS

# The weights it started from may be gone, and so may the devices that it was trained on.
_HERE = {"init_from": "", "parallel": "none", "devices": 0, "accumulate": 1}
_HERE |= {"steps_per_dispatch": 1}


class Finished(NamedTuple):
    """What a run ended with.

    Attributes:
      run: its method, its data, its costs; on one device, and without a folder.
      model: under the rules of the last stage.
      variables: of that model.
    """

    run: Run
    model: Quantized
    variables: Mapping[str, Any]


def load_run(folder: str | Path) -> Finished:
    """The model and the variables of a finished run.

    Args:
      folder: of the run, with `config.json` and `checkpoints/`.

    Raises:
      ValueError, OSError: one line, for a folder that is none of a run's, a run that is not
        finished, or data that are not here.
    """
    folder = Path(folder)
    checkpoints = folder / "checkpoints"
    if not checkpoints.is_dir():
        raise ValueError(f"there is no {checkpoints}, and it holds the weights.")
    settings = json.loads((folder / "config.json").read_text())
    try:
        run = build_run({**settings, **_HERE}, None)
    except KeyError as error:
        raise ValueError(f"config.json has no {error}, it is of another version.") from None
    model = run.wrap(run.method.stages[-1])
    return Finished(run, model, _restored(checkpoints, run, model))


def _restored(folder: Path, run: Run, model: Quantized) -> Mapping[str, Any]:
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
