"""Every form of a step is the same step: one device, several of them, several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import PyTreeCheckpointer

import bitjax as bj
from bitjax.data import load, train_batch
from bitjax.frameworks.compiled import compile_quickly
from bitjax.methods import full_precision, uniform
from bitjax.models import MLP, SmallCNN
from bitjax.runs.rows import read_rows
from bitjax.training import hosts
from bitjax.training.feed import resident
from bitjax.training.parallel import part_of_batch, placement
from bitjax.training.runner import run
from bitjax.training.settings import Settings
from bitjax.training.state import initial_state
from bitjax.training.step import make_train_step, step_keys
from bitjax.training.work import make_work

ROOT = Path(__file__).parents[2]
DATA = load("digits", limit=100)


def port() -> str:
    return str(20_000 + (os.getpid() * 7 + port.calls.pop()) % 20_000)


port.calls = list(range(100))


def start(arguments, devices, **variables):
    """Starts a Python program that sees so many devices."""
    quick = os.environ.get("XLA_FLAGS", "")  # as this process compiles
    flags = f"{quick} --xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(processes, code=0):
    """What the processes wrote, once all of them have ended as they should."""
    said = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [code] * len(processes), said
    return said


def forms(folder, what, names, devices, *, processes=1, code=0):
    """Runs tests/training/forms.py in one process, or in two with half the devices each."""
    arguments = ["tests/training/forms.py", str(folder), what, names, str(devices)]
    if processes == 1:
        return finish([start(arguments, devices)], code)
    at = port()
    both = [start([*arguments, at, str(i)], devices // 2) for i in range(2)]
    return finish(both, code)


def read(folder, form, what):
    with np.load(folder / f"{form}-{what}.npz") as saved:
        return dict(saved)


def assert_same_step(one, other, number, loss=1e-6, gradient=1e-4):
    """The criterion for a step that two forms take from one state."""
    own = [key for key in one if key.startswith(f"step{number}/")]
    assert own and one.keys() == other.keys()
    checked = set()
    for key in own:
        a, b = one[key], other[key]
        kind = key.split("/")[1]
        checked.add(kind)
        if kind == "metrics":
            assert abs(a - b) <= loss, key
        elif kind == "gradients":
            assert np.any(a) and np.max(np.abs(a - b)) <= gradient * np.max(np.abs(a)), key
        elif kind == "variables":
            assert np.max(np.abs(a - b)) <= gradient * np.max(np.abs(a)), key
        elif key.endswith("/0"):  # codes; beside them is which of them lie at a boundary
            near = one[key.removesuffix("0") + "1"]
            assert np.array_equal(a[~near], b[~near]) and near.mean() < 0.1, key
            assert len(np.unique(a)) > 5, key
    return checked


def test_four_devices_take_the_step_of_one(tmp_path):
    forms(tmp_path, "quick", "none,shard_map", 4)
    one, other = (read(tmp_path, form, "quick") for form in ("none", "shard_map"))
    assert assert_same_step(one, other, 0) == {"metrics", "gradients", "variables"}


@pytest.mark.slow
def test_every_form_takes_the_same_step_and_walks_the_same_way(tmp_path):
    forms(tmp_path, "quantized", "none,pmap,shard_map", 4)
    forms(tmp_path, "quantized", "pmap,shard_map", 4, processes=2)
    one = read(tmp_path, "none", "quantized")
    for form in ("pmap", "shard_map", "pmap0", "shard_map0", "pmap1", "shard_map1"):
        other = read(tmp_path, form, "quantized")
        for number in (0, 10, 50):
            kinds = assert_same_step(one, other, number)
            assert kinds == {"metrics", "gradients", "variables", "codes"}
        free = [key for key in one if key.startswith("losses/")]
        assert len(free) == 50
        assert max(abs(one[key] - other[key]) for key in free) < 0.02
        bits = [key for key in one if key.startswith("bits/")]
        assert len(bits) == 4
        assert max(np.max(np.abs(one[key] - other[key])) for key in bits) < 0.05
    for form in ("pmap", "shard_map"):  # two processes hold one state, to the last bit
        first, second = (read(tmp_path, f"{form}{i}", "quantized") for i in range(2))
        jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.slow
def test_a_float_model_in_float64_agrees_to_1e_9(tmp_path):
    forms(tmp_path, "float64", "none,pmap,shard_map", 4)
    one = read(tmp_path, "none", "float64")
    assert one["step50/variables/params/conv/kernel"].dtype == np.float64
    for form in ("pmap", "shard_map"):
        other = read(tmp_path, form, "float64")
        for number in (0, 10, 50):
            assert_same_step(one, other, number, loss=1e-9, gradient=1e-9)
        assert all(abs(one[k] - other[k]) < 1e-9 for k in one if k.startswith("losses/"))


@pytest.mark.slow
def test_one_process_goes_on_where_two_processes_died(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    forms(whole, "whole", "none", 1)
    forms(broken, "dying", "auto", 4, processes=2, code=9)
    rows = read_rows(broken / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 31))
    forms(broken, "whole", "none", 1)
    ends = []
    for folder in (whole, broken):
        rows = read_rows(folder / "run" / "metrics.jsonl")
        losses = {row["step"]: row["task_loss"] for row in rows if "loss" in row}
        assert list(losses) == list(range(1, 51))
        evaluated = {row["step"]: row["eval_accuracy"] for row in rows if "eval_loss" in row}
        assert list(evaluated) == [20]
        result = json.loads((folder / "run" / "result.json").read_text())
        assert result["status"] == "finished"
        ends.append((losses, evaluated, result))
    (losses, evaluated, result), (others, seen, other) = ends
    assert max(abs(losses[step] - others[step]) for step in losses) < 0.02
    assert evaluated[20] == pytest.approx(seen[20], abs=1 / 512)
    assert result["bits"]["all"]["fractional"] == pytest.approx(
        other["bits"]["all"]["fractional"], abs=0.05
    )


def train(folder, *arguments):
    return [
        "-m",
        "experiments.train",
        "--config=configs/digits/float.py",
        f"--workdir={folder}",
        "--config.model.name=mlp",
        "--config.method.steps=6",
        "--config.log_every=2",
        *arguments,
    ]


@pytest.mark.slow
def test_two_hosts_leave_one_run_folder_and_one_table(tmp_path):
    at = ("--coordinator=127.0.0.1:" + port(), "--hosts=2")
    said = finish([start(train(tmp_path, *at, f"--host={i}"), 2) for i in range(2)])
    # Gloo, which connects CPUs, writes lines of its own to both.
    assert ["test accuracy after train" in out for out, _ in said] == [True, False]
    assert "loss" not in said[1][0]
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_hosts_with_different_configs_all_stop_with_the_difference(tmp_path):
    at = ("--coordinator=127.0.0.1:" + port(), "--hosts=2")
    own = (("--config.seed=1",), ("--config.seed=2", "--config.name=other"))
    both = [start(train(tmp_path, *at, f"--host={i}", *own[i]), 1) for i in range(2)]
    for _, errors in finish(both, code=2):
        assert (
            "error: the 2 hosts were started with different configs (name: '' on host 0, 'other' "
            "on host 1; seed: 1 on host 0, 2 on host 1)." in errors
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "data.name=npz:~/own.npz",
            "error: host 1: config.data (npz:~/own.npz): {}/own.npz is missing",
        ),
        (
            "init_from=float",
            "init_from='float': host 1 has no checkpoints of a run there, which host 0",
        ),
        (
            "init_from=own.npz",
            "host 1: config.init_from='own.npz': {}/own.npz is missing; give the path",
        ),
        ("init_from=bad", "host 1: config.init_from='bad': {}/bad holds no weights; give the path"),
        ("init_from=orbax", "host 1: config.init_from='orbax': {}/orbax is missing; give the path"),
    ],
)
def test_all_hosts_stop_where_one_of_them_lacks_a_file(tmp_path, key, message):
    rng = np.random.default_rng(0)
    arrays = {"x_train": (64, 8, 8, 1), "x_test": (32, 8, 8, 1)}
    arrays = {name: rng.integers(0, 255, shape, np.uint8) for name, shape in arrays.items()}
    labels = {"y_train": np.arange(64) % 10, "y_test": np.arange(32) % 10}
    homes = [tmp_path / "home", tmp_path / "elsewhere"]
    (homes[0] / "float" / "checkpoints").mkdir(parents=True)
    np.savez(homes[0] / "own.npz", **arrays, **labels)
    (homes[1] / "float").mkdir(parents=True)
    for home in homes:  # one host's copy is damaged
        (home / "bad").write_bytes((homes[0] / "own.npz").read_bytes() if home is homes[0] else b"")
    PyTreeCheckpointer().save(homes[0] / "orbax", {"params": {"head": {"bias": np.ones(3)}}})
    at = ("--coordinator=127.0.0.1:" + port(), "--hosts=2", f"--config.{key}")
    both = [
        start(train(tmp_path / "run", *at, f"--host={i}"), 1, HOME=str(home), BITJAX_DATA=str(home))
        for i, home in enumerate(homes)
    ]
    said = finish(both, code=2)
    assert message.format(homes[1]) in said[1][1]
    assert said[0][1].count("error: ") == 1 and not (tmp_path / "run").exists()


def test_hosts_that_cannot_be_connected_are_one_line():
    jax.devices()  # too late now
    with pytest.raises(ValueError, match=r"cannot be connected: .*the coordinator's address:port"):
        hosts.connect(True)


def test_only_a_launcher_that_started_several_processes_is_a_cluster():
    assert not hosts.in_cluster({})
    assert not hosts.in_cluster({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"}), "salloc, no srun"
    assert hosts.in_cluster({"SLURM_STEP_NUM_TASKS": "4"})
    assert hosts.in_cluster({"OMPI_COMM_WORLD_SIZE": "2"})
    assert hosts.in_cluster({"TPU_WORKER_HOSTNAMES": "a,b"})
    assert not hosts.in_cluster({"TPU_WORKER_HOSTNAMES": "localhost"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": 8}, r"`devices` must be at most \d, what JAX finds on 1 host.*got 8"),
        ({"parallel": "ddp"}, r"`parallel` must be one of \['auto', .*got 'ddp'"),
        ({"batch_size": 30, "accumulate": 4}, r"multiple of the 1 devices x 4 parts .*30; use 32"),
        ({"steps_per_dispatch": 5, "log_every": 5}, "`steps_per_dispatch` must be 1 on the CPU"),
        ({"steps_per_dispatch": 3}, "`log_every` must be a multiple of `steps_per_dispatch`, 3"),
        ({"compute_dtype": "int8"}, "`compute_dtype` must be one of .*got 'int8'"),
    ],
    ids=str,
)
def test_what_does_not_go_with_the_devices_is_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        make_work(full_precision(steps=1), MLP((4,)), DATA, None, Settings(**settings))


def test_a_model_without_a_dtype_cannot_compute_in_another():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool = False):
            return nn.Dense(10)(x.reshape(len(x), -1))

    with pytest.raises(ValueError, match="`compute_dtype` must be 'float32' for Plain"):
        make_work(full_precision(steps=1), Plain(), DATA, None, Settings(compute_dtype="bfloat16"))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["none", "shard_map"])
def test_steps_of_one_dispatch_are_the_steps_one_by_one(form, tmp_path):
    """As on an accelerator, which keeps the data too; a loop of an MLP is no slower here."""
    rows = {}
    for name, changes in {"apart": {}, "together": {"steps_per_dispatch": 3}}.items():
        place = placement(form, 1)
        if changes:
            place = place._replace(accelerator=True)
        settings = Settings(
            batch_size=16,
            augmentation="shift",
            log_every=3,
            checkpoint_every=3,
            eval_every=3,
            **changes,
        )
        work = make_work(
            full_precision(steps=7, learning_rate=0.1),
            MLP((4,)),
            DATA,
            None,
            settings,
            place=place,
        )
        assert bool(resident(DATA, place, 1)) == bool(changes)
        run(work, tmp_path / name, show=False)
        rows[name] = read_rows(tmp_path / name / "metrics.jsonl")
    assert [row["step"] for row in rows["apart"]] == [3, 3, 6, 6, 7]
    for one, other in zip(rows["apart"], rows["together"], strict=True):
        assert one["step"] == other["step"]
        for key in one.keys() - {"seconds", "stage"}:
            assert one[key] == pytest.approx(other[key], rel=1e-5), key


@pytest.mark.slow
def test_parts_of_a_batch_are_averaged(tmp_path):
    """Against the mean over halves, each with its own batch statistics and from the same state."""
    settings = Settings(batch_size=16)
    stage = full_precision(steps=3, learning_rate=0.1, momentum=0.0).stages[0]

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool = False):
            x = nn.Dense(4)(x.reshape(len(x), -1))
            return nn.Dense(10)(nn.BatchNorm(use_running_average=not train)(x))

    work = make_work(full_precision(steps=3), Net(), DATA, None, settings)
    model = bj.Quantized(Net(), ())
    state = initial_state(stage, work.start, key=work.key)
    batch = train_batch(DATA, 16, 0, seed=0)

    def step(batch, **options):
        made = make_train_step(model, stage, work.costs, work.preprocess, **options)
        return jax.jit(made, **compile_quickly())(state, batch)

    new, metrics = step(batch, accumulate=2)
    halves = [step({k: v[part] for k, v in batch.items()}) for part in (slice(8), slice(8, 16))]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    for got, expected in (
        (metrics, mean[1]),
        (new.params, mean[0].params),  # plain descent is linear in the gradient
        (new.other, mean[0].other),
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected
        )
    whole, _ = step(batch)
    moved = jax.tree.map(lambda a, b: np.allclose(a, b), new.other, whole.other)
    assert not all(jax.tree.leaves(moved)), "the parts have variances of their own"


@pytest.mark.parametrize("places", [[(None, 0), (None, 1)], [(0, 0), (0, 1), (1, 0), (1, 1)]])
def test_devices_and_parts_draw_for_themselves(places):
    key = jax.random.PRNGKey(0)
    keys = [step_keys(key, step, *place) for step in (0, 1) for place in places]
    assert len({np.asarray(key).tobytes() for key in keys}) == 2 * len(places)


@pytest.mark.parametrize("quantized", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_in_bfloat16_only_the_model_is(quantized):
    method = full_precision(steps=2)
    if quantized:
        method = uniform((bj.rule("conv2/.*", bj.uniform(bits=8)),), steps=2)
    settings = Settings(batch_size=16, compute_dtype="bfloat16")
    shapes = jax.eval_shape(SmallCNN(width=2).init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    work = make_work(method, SmallCNN(width=2), DATA, start, settings)
    state = work.first_state(0, work.enter(work.method.stages[0], work.start))
    step = work.train_step(0)
    batch = train_batch(DATA, 16, 0, seed=0)
    lowered = jax.jit(step).lower(state, batch)
    lines = lowered.as_text().splitlines()
    convolutions = [line for line in lines if "stablehlo.convolution" in line]
    assert convolutions and all("f32" not in line for line in convolutions)
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(lowered.out_info)]
    assert jnp.bfloat16 not in dtypes and jnp.float32 in dtypes


def test_a_device_sees_its_part_of_the_batch():
    assert part_of_batch(24, 3, placement("none")) == 8
    place = placement("none")._replace(devices=(None,) * 4)
    with pytest.raises(ValueError, match="multiple of the 4 devices, got 30; use 32"):
        part_of_batch(30, 1, place)
