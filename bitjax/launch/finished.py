"""Loads a finished run's model from its folder: for a notebook, a simulator, an export."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bitjax.export.deploy import Deployed
from bitjax.frameworks.linen import Quantized
from bitjax.launch.build import build_work
from bitjax.launch.programs import program
from bitjax.launch.schema import completed
from bitjax.runs.checkpoint import Checkpoints
from bitjax.runs.folder import config_hash, is_hash_of, read_config
from bitjax.training.work import Work

# The weights it started from may be gone, and so may the devices that it was trained on; what took
# its figures is not needed.
_HERE = {"init_from": "", "parallel": "none", "devices": 0, "accumulate": 1}
_HERE |= {"steps_per_dispatch": 1, "writers": [], "tensorboard": False}


class Finished(NamedTuple):
    """What a run ended with.

    Attributes:
      work: the run: its method, its data, its costs; on one device.
      model: the model under the rules of the last stage.
      variables: the model's.
    """

    work: Work
    model: Quantized
    variables: Mapping[str, Any]

    def deployed(self) -> Deployed:
        """The model as it is taken away, which the figures in `result.json` are of."""
        return self.work.deployed(self.variables)


def load_run(folder: str | Path) -> Finished:
    """The model and the variables of a finished run.

    Modules that the run's config names by import path are imported: load only folders of people
    whose code you would run.

    Args:
      folder: the run's folder, with `config.json` and `checkpoints/`.

    Raises:
      ValueError, OSError: one line, for a folder that is none of a run's, a run that is not
        finished, or data that are not here.
    """
    folder = Path(folder)
    checkpoints = folder / "checkpoints"
    if not checkpoints.is_dir():
        raise ValueError(f"there is no {checkpoints}, and it holds the weights.")
    own = read_config(folder)
    settings = {**completed(own), **_HERE}
    with program(f"{folder / 'config.json'}", kinds=(ValueError,)):
        work = build_work(settings)
    model = work.wrap(work.method.stages[-1])
    return Finished(work, model, _restored(checkpoints, work, own))


def _restored(folder: Path, work: Work, own: Mapping[str, Any]) -> Mapping[str, Any]:
    """The variables that the last stage left, of the run whose config this is."""

    def template(meta):
        run, digest = meta.get("run"), config_hash(own)
        there = run.get("config_hash", digest) if isinstance(run, Mapping) else digest
        if not is_hash_of(there, own):
            raise ValueError(
                f"the checkpoints in {folder} are of another run than the config.json beside them "
                f"(config_hash: {there!r} and {digest!r}). Put together what belongs together."
            )
        place = meta.get("place")
        if not isinstance(place, list) or place[:2] != [len(work.method.stages), "enter"]:
            raise ValueError(f"the newest checkpoint in {folder} is not of the end of the run.")
        return {"variables": work.variable_shapes(len(work.method.stages) - 1)}

    with Checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(template)
    if restored is None:
        raise ValueError(f"there is no checkpoint in {folder}.")
    return restored.state["variables"]
