"""Float weights that others saved start a run, in whatever form; what does not fit is listed."""

import random
import shutil
import zipfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import traverse_util
from flax.training.train_state import TrainState
from orbax.checkpoint import v1
from safetensors.flax import save_file

from bitjax.launch.start import find_start, load_start
from bitjax.runs.checkpoint import Checkpoints
from tests.damage import damage


class Net(nn.Module):
    classes: int = 10

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(4, (3, 3), name="conv")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dense(self.classes)(x.mean((1, 2)))


X = np.zeros((2, 8, 8, 1), np.float32)


def started(init_from, model=None):
    return load_start(find_start(init_from), model or Net(), X)


@pytest.fixture(scope="module")
def variables():
    """Weights as training leaves them: no two are alike."""
    fresh = Net().init(jax.random.key(0), X)
    count = iter(range(1, 100))
    return jax.tree.map(lambda leaf: leaf + 0.125 * next(count), fresh)


def flat(tree, separator):
    return dict(traverse_util.flatten_dict(tree, sep=separator))


def standard(path, variables):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, variables)


def pytree(path, variables):
    ocp.PyTreeCheckpointer(use_ocdbt=False).save(path, variables)


def training_state(path, variables):
    state = TrainState.create(apply_fn=None, params=variables["params"], tx=optax.adam(1e-3))
    standard(path, {"state": state, "extra": np.ones(3)} | {"note": jnp.int32(4)})


def manager(path, variables):
    with ocp.CheckpointManager(path) as steps:
        for step in (9, 100):  # the newest is not the last by name
            value = variables if step == 100 else jax.tree.map(jnp.zeros_like, variables)
            steps.save(step, args=ocp.args.StandardSave({**value, "step": step}))


def version_1(path, variables):
    v1.save_checkpointables(str(path), {"model": {"params": variables}})


def ours(path, variables):
    with Checkpoints(path) as checkpoints:
        checkpoints.save(3, {"variables": variables, "opt_state": {"mu": variables}}, {})


def safetensors(path, variables):
    save_file(flat(variables, "."), path)


def savez(path, arrays):
    with path.open("wb") as file:  # whatever the file's name
        np.savez(file, **arrays)


def slashes(path, variables):
    savez(path, flat(variables, "/"))


def dots(path, variables):
    savez(path, flat(variables, "."))


def brackets(path, variables):
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    savez(path, {f"state{jax.tree_util.keystr(p)}": leaf for p, leaf in leaves})


def merged(path, variables):
    """Without collections: a layer's weights and its statistics side by side."""
    savez(path, {key.partition("/")[2]: leaf for key, leaf in flat(variables, "/").items()})


SAVERS = [standard, pytree, manager, version_1, ours, safetensors, slashes, dots, brackets, merged]


@pytest.mark.parametrize("save", SAVERS, ids=lambda f: f.__name__)
def test_weights_of_others_are_the_models_whatever_holds_them(save, variables, tmp_path):
    path = tmp_path / "weights"
    save(path, variables)
    found = started(str(path))
    assert jax.tree.structure(found) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_weights_are_committed_to_no_device_whatever_the_checkpoint_says(variables, tmp_path):
    mesh = jax.make_mesh((1,), ("elsewhere",))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    standard(tmp_path / "w", jax.device_put(variables, spec))
    found = started(str(tmp_path / "w"))
    assert not found["params"]["conv"]["kernel"].committed


def test_a_folder_of_somebodys_own_run_is_not_taken_for_one_of_ours(variables, tmp_path):
    (tmp_path / "own").mkdir()
    manager(tmp_path / "own" / "checkpoints", variables)
    found = started(str(tmp_path / "own"))
    jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_a_run_of_another_model_is_named_by_the_key(variables, tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(
            3, {"variables": variables | {"other": {"bits": jnp.float32(4.0)}}}, {}, wait=True
        )
    with pytest.raises(ValueError, match="variables/other/bits is .* there, absent here") as error:
        started(str(tmp_path))
    assert f"init_from={str(tmp_path)!r} must be a finished run of this config.model" in str(
        error.value
    )


def test_half_precision_becomes_the_models_precision(variables, tmp_path):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    safetensors(tmp_path / "w", half)
    found = started(str(tmp_path / "w"))
    kernel = found["params"]["conv"]["kernel"]
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel, half["params"]["conv"]["kernel"].astype(jnp.float32))


def test_every_kind_of_difference_is_listed_and_cut_short(variables, tmp_path):
    arrays = flat(variables, "/")
    arrays |= {f"params/more{i}/kernel": np.ones(2, np.float32) for i in range(5)}
    del arrays["batch_stats/norm/mean"]
    arrays["params/conv/bias"] = np.arange(4)
    savez(tmp_path / "w.npz", arrays)
    with pytest.raises(ValueError) as caught:
        started(str(tmp_path / "w.npz"), Net(classes=7))
    assert str(caught.value) == (
        f"config.init_from='{tmp_path}/w.npz' does not fit config.model: missing: "
        "batch_stats/norm/mean (4,); unexpected: params/more0/kernel (2,), params/more1/kernel "
        "(2,), params/more2/kernel (2,) and 2 more; of another shape: params/Dense_0/bias (10,) "
        "for (7,), params/Dense_0/kernel (4, 10) for (4, 7); of another type: params/conv/bias "
        "int64 for float32. Choose the model that it is of."
    )


def test_a_training_state_without_statistics_says_what_it_lacks(variables, tmp_path):
    training_state(tmp_path / "w", variables)
    with pytest.raises(ValueError, match=r"missing: batch_stats/norm/mean \(4,\), \S+ \(4,\)\. C"):
        started(str(tmp_path / "w"))


def damaged(path, variables):
    standard(path, variables)
    (path / "_METADATA").write_text("{")


def several(path, variables):
    v1.save_checkpointables(str(path), {"student": variables, "teacher": variables})


def not_finite(path, variables):
    slashes(path, {**variables, "batch_stats": {"norm": {"mean": [np.nan] * 4, "var": [1.0] * 4}}})


def pickled(path, variables):
    savez(path, {**flat(variables, "/"), "params/conv/bias": np.array([{}], object)})


def averaged(path, variables):
    slashes(path, {"live": variables, "ema": variables})


def twice(path, variables):
    savez(path, {**flat(variables, "/"), "params.conv.bias": np.ones(4)})


def torch(path, variables):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"")


WRONG = {
    damaged: "/w cannot be read (",
    several: "/w holds several trees; name one: ",
    not_finite: "has values that are not finite: batch_stats/norm/mean float32.",
    pickled: "cannot be read (it holds Python objects, which are never loaded)",
    averaged: "it has `params` in ema and in live; keep one.",
    twice: "two of its names differ in nothing but their separators; keep one.",
    torch: "is a zip file, but 'archive/data.pkl' in it is no NumPy array",
    lambda path, _: path.mkdir(): "is a folder without checkpoints; give the path of a run's",
    lambda path, _: path.write_text(
        "weights"
    ): "holds no weights; give the path of a run's folder, an Orbax",
    lambda path, _: path.write_bytes(b"\xff" * 8 + b"{}"): "cannot be read (SafetensorError: ",
    lambda path, _: path.write_bytes(b"PK\x03\x04"): "cannot be read (BadZipFile: ",
    lambda path, _: None: "is missing; give the path of a run's folder, an Orbax checkpoint, a",
}


@pytest.mark.parametrize("save", WRONG, ids=lambda f: f.__name__)
def test_what_holds_no_weights_is_one_line_that_says_why(save, variables, tmp_path):
    save(tmp_path / "w", variables)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        started(str(tmp_path / "w"))
    text = str(caught.value)
    assert WRONG[save] in text and "\n" not in text
    assert text.startswith(f"config.init_from='{tmp_path}/w'")


def test_a_number_beyond_the_models_precision_does_not_become_infinite(variables, tmp_path):
    large = flat(variables, "/") | {"params/conv/bias": np.array([1, 1e39, 3, 4])}
    savez(tmp_path / "w.npz", large)
    with pytest.raises(ValueError, match=r"are not finite: params/conv/bias float32\.$"):
        started(str(tmp_path / "w.npz"))


class Counting(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + self.variable("batch_stats", "count", lambda: jnp.zeros(4, jnp.int32)).value


@pytest.mark.parametrize("dtype", ["U3", "datetime64[s]", "V4", "complex64"])
def test_what_are_no_whole_numbers_are_of_another_type(dtype, tmp_path):
    savez(tmp_path / "w.npz", {"count": np.zeros(4, dtype)})
    model = Counting()
    with pytest.raises(ValueError, match="of another type: batch_stats/count .* for int32"):
        load_start(find_start(str(tmp_path / "w.npz")), model, np.zeros(4, np.float32))


@pytest.mark.parametrize("save", [standard, pytree, safetensors, slashes], ids=lambda f: f.__name__)
def test_damaged_weights_are_one_line_or_weights(save, variables, tmp_path, capfd):
    save(tmp_path / "whole", variables)
    draw, refused = random.Random(0), 0
    for number in range(10):
        path = tmp_path / str(number)
        (shutil.copytree if (tmp_path / "whole").is_dir() else shutil.copy)(
            tmp_path / "whole", path
        )
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        damage(draw.choice(sorted(files)), draw)
        try:
            started(str(path))
        except ValueError as error:
            refused += 1
            assert str(error).isprintable() and f": {path}" in str(error)
    assert refused > 3
    assert "Traceback" not in capfd.readouterr().err
