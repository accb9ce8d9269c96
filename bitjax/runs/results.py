"""`result.json`: what a finished run says, from the final integer model."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from bitjax.costs.measures import activation_bytes, average_bits, bits_of, bops, inner_sites, macs, model_bytes
from bitjax.costs.site import Costs


class StageResult(NamedTuple):
    """How a stage ended: its accuracy is a fraction, its loss in nats, on the evaluation split."""

    name: str
    steps: int
    wall_seconds: float
    accuracy: float
    loss: float


def bit_averages(
    costs: Costs, fractional: Mapping[str, Any], integer: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Plain averages over sites of learned and of final bits: weights, activations, all, inner.

    Args:
      costs: of every site.
      fractional: learned bits before rounding; sites that are not there have their final ones.
      integer: final bits; sites that are not there are float and count 32.

    Example:
      >>> from bitjax.costs.site import SiteCost
      >>> costs = {"a/kernel": SiteCost(1, 1, 1, "", "a", "kernel")}
      >>> bit_averages(costs, {"a/kernel": 3.5}, {"a/kernel": 4.0})["weights"]
      {'fractional': 3.5, 'integer': 4.0}
    """
    chosen = {
        "weights": [s for s, c in costs.items() if c.role == "kernel"],
        "activations": [s for s, c in costs.items() if c.role == "input"],
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


def measured_costs(variables: Mapping[str, Any], costs: Costs) -> dict[str, float]:
    """Bytes and operations of a model with its final bits, for `result.json`."""
    variables = jax.device_get(variables)  # so that the sums are float64
    bits = bits_of(variables)
    floats = {k: v for k, v in variables.items() if k not in ("quant", "quant_stats")}
    return {
        "model_bytes": model_bytes(variables, costs),
        "float_model_bytes": model_bytes(floats, costs),
        "activation_bytes": float(activation_bytes(bits, costs)),
        "bops": float(bops(bits, costs)),
        "macs": macs(costs),
    }


def result_of(run: Any, keeper: Any, variables: Mapping[str, Any]) -> dict[str, Any]:
    """What `result.json` holds after the last stage.

    Args:
      run: the `Run`.
      keeper: its `Keeper`, which has the stages' results and the learned bits.
      variables: the final model's.
    """
    integer = jax.device_get(bits_of(variables))
    stages = [stage._asdict() for stage in keeper.stages]
    return {
        "status": "finished",
        "method": run.method.name,
        "data": run.dataset.name,
        "eval_split": run.dataset.eval_split,
        "seed": run.settings.seed,
        **run.facts,
        **run.provenance,
        "commits": keeper.commits,
        "wall_seconds": round(keeper.seconds(), 3),
        "steps": sum(stage.steps for stage in run.method.stages),
        "accuracy": stages[-1]["accuracy"],
        "stages": stages,
        "bits": bit_averages(run.costs, keeper.fractional, integer),
        "cost": measured_costs(variables, run.costs),
    }
