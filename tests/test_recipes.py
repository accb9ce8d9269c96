"""Short versions of the digits configs still reach what they should: results stay reachable.

The committed results are of the full configs (results/README.md); these take a third of the steps,
and their bounds are looser by what that costs.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from bitjax.launch.build import build_work, open_folder
from bitjax.training.runner import run as run_work

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
STEPS = 400


def run(name, workdir=None, **changes):
    """The result of a digits config with fewer steps."""
    path = ROOT / "configs" / "digits" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    if "steps" in config.method:
        config.method.steps = STEPS
    config.update(changes)
    work = build_work(config, source=f"configs/digits/{name}.py")
    folder = open_folder(config, workdir) if workdir else None
    return run_work(work, folder, show=False).result


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The float control: its run folder and its result."""
    folder = tmp_path_factory.mktemp("float")
    return folder, run("float", str(folder))


def test_float_reaches_97_per_cent(trained):
    assert trained[1]["accuracy"] >= 0.97


@pytest.mark.parametrize(("bits", "loss"), [(8, 0.005), (6, 0.02)])
def test_quantizing_after_training_costs_little_at_8_bits(trained, bits, loss):
    folder, result = trained
    after = run(
        "uniform",
        init_from=str(folder),
        method={"steps": 0},
        rules=((".*", {"name": "uniform", "bits": bits, "granularity": "per_tensor"}),),
    )
    assert after["bits"]["all"]["integer"] == bits
    assert after["accuracy"] >= result["accuracy"] - loss
    assert after["cost"]["model_bytes"] < 0.3 * after["cost"]["float_model_bytes"]


@pytest.mark.parametrize(("name", "accuracy"), [("uniform", 0.93), ("pact", 0.93), ("lsq", 0.95)])
def test_three_bits_trained_from_scratch_keep_most_of_it(name, accuracy):
    result = run(name)
    assert result["bits"]["all"]["integer"] == 3.0
    assert result["accuracy"] >= accuracy


def test_bitpruning_meets_three_bits_on_average_and_keeps_95_per_cent():
    result = run("bitpruning")
    assert result["bits"]["all"]["integer"] <= 3.0
    assert result["accuracy"] >= 0.95


def test_the_bottleneck_keeps_97_per_cent_at_three_planes_on_average():
    result = run("bottleneck", method={"float_steps": STEPS, "steps": 100})
    assert result["steps"] == STEPS + 100
    assert result["accuracy"] >= 0.97


# Of binary weights one seed in three is below 95 %: the deviation between seeds is 1 %.
@pytest.mark.parametrize(("name", "seeds"), [("hwgq", 3), ("twn", 1)])
def test_binary_and_ternary_weights_with_two_bit_activations_reach_95_per_cent(name, seeds):
    assert np.mean([run(name, seed=seed)["accuracy"] for seed in range(seeds)]) >= 0.95


def test_weights_solved_for_the_codes_lose_at_most_two_points():
    result = run("tsq", method={"code_steps": STEPS, "fine_tune_steps": 50})
    codes, transform, last = result["stages"]
    assert (codes["steps"], transform["steps"], last["steps"]) == (STEPS, 0, 50)
    assert codes["accuracy"] >= 0.95
    assert transform["accuracy"] >= codes["accuracy"] - 0.02
