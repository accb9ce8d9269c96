"""`plan.json`, what a run is about to do, and `result.json`, what it says once it is finished."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from bitjax.costs.bits import bits_of
from bitjax.costs.measures import (
    activation_bytes,
    average_bits,
    bops,
    inner_sites,
    macs,
)
from bitjax.costs.site import Costs
from bitjax.costs.sizes import cache_bytes, model_bytes
from bitjax.methods.base import Stage
from bitjax.variables import floats_of


class StageResult(NamedTuple):
    """How a stage ended.

    Attributes:
      name: the stage's name.
      steps: steps of its training.
      wall_seconds: seconds that the stage took.
      figures: the task's, on the evaluation split; a classifier's accuracy is a fraction, a loss is
        in nats.
    """

    name: str
    steps: int
    wall_seconds: float
    figures: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """The stage's entry in `result.json`."""
        name, steps, seconds, figures = self
        return {"name": name, "steps": steps, "wall_seconds": seconds, **figures}

    @classmethod
    def of_json(cls, entry: Mapping[str, Any]) -> "StageResult":
        """The stage of an entry that `to_json` made."""
        figures = dict(entry)
        name, steps, seconds = (figures.pop(key) for key in ("name", "steps", "wall_seconds"))
        figures = {key: float(value) for key, value in figures.items()}
        return cls(str(name), int(steps), float(seconds), figures)


def _bit_averages(
    costs: Costs, fractional: Mapping[str, Any], integer: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Plain averages over sites of learned and of final bits: weights, activations, all, inner."""
    chosen = {
        "weights": [s for s, c in costs.items() if c.role == "kernel"],
        "activations": [s for s, c in costs.items() if c.role != "kernel"],
        "all": list(costs),
        "inner": inner_sites(costs),
    }
    return {
        name: {
            "fractional": float(average_bits({**integer, **fractional}, costs, sites)),
            "integer": float(average_bits(integer, costs, sites)),
        }
        for name, sites in chosen.items()
        if sites
    }


def _measured_costs(variables: Mapping[str, Any], costs: Costs) -> dict[str, float]:
    """Bytes and operations of a model with its final bits, for `result.json`."""
    variables = jax.device_get(variables)  # so that the sums are float64
    bits, caches = bits_of(variables), any(cost.role == "cache" for cost in costs.values())
    return {
        "model_bytes": model_bytes(variables, costs),
        "float_model_bytes": model_bytes(floats_of(variables), costs),
        "activation_bytes": float(activation_bytes(bits, costs)),
        "bops": float(bops(bits, costs)),
        "macs": macs(costs),
        **({"cache_bytes_per_token": cache_bytes(variables, costs)} if caches else {}),
    }


def plan_of(stages: Sequence[Stage], score: tuple[str, bool, str]) -> dict[str, Any]:
    """What `plan.json` holds: the steps of each stage, and the figure that the run is judged by."""
    name, higher, form = score
    return {
        "stages": [{"name": stage.name, "steps": stage.steps} for stage in stages],
        "score": {"name": name, "higher_is_better": higher, "form": form},
    }


def result_of(
    about: Mapping[str, Any],
    stages: Sequence[StageResult],
    score: tuple[str, bool, str],
    costs: Costs,
    learned: Mapping[str, Any],
    variables: Mapping[str, Any],
) -> dict[str, Any]:
    """What `result.json` holds of a finished run."""
    name, higher, form = score
    value = stages[-1].figures[name]
    result = {
        "status": "finished",
        **about,
        "steps": sum(stage.steps for stage in stages),
        "score": {"name": name, "value": value, "higher_is_better": higher, "form": form},
        "stages": [stage.to_json() for stage in stages],
        "bits": _bit_averages(costs, learned, jax.device_get(bits_of(variables))),
        "cost": _measured_costs(variables, costs),
    }
    return {name: value} | result  # a score that is called as another key is in "score" alone
