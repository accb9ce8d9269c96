"""Checkpoints come back bit for bit, or are reported damaged and the older one is used."""

import contextlib
import errno
import itertools
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bitjax.runs.checkpoint import Checkpoints, DamagedError, SaveError
from bitjax.runs.lock import LostError
from tests.damage import damage as damage_file
from tests.damage import swapped


def some_state(seed: int = 0):
    """A state of every kind of leaf a run has."""
    kernel = jax.random.normal(jax.random.key(seed), (64, 3, 3, 32))
    params = {"conv": {"kernel": kernel, "bias": jnp.zeros(32)}, "free": {}}
    return {
        "params": params,
        "optimizer": optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init(params),
        "quant": {"bits": jnp.float32(7.25), "none_here": {}},
        "half": jnp.linspace(-3.0, 3.0, 70_000).astype(jnp.bfloat16),
        "special": jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45]),
        "step": jnp.int32(seed),
        "rng": jax.random.PRNGKey(seed),
        "typed_rng": jax.random.key(seed),
        "frozen": jnp.array([True, False]),
        "on_host": np.arange(5, dtype=np.int64),
        "empty": (),
    }


def raw(leaf) -> bytes:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert raw(x) == raw(y)


def like(state):
    return lambda meta: state


def save_three(folder: Path) -> None:
    with Checkpoints(folder, keep=3) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, some_state(step), {"step_again": step})


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path):
    state = some_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, state, {"stage": 2, "unit": None, "hash": "ab", "list": [1, 2.5]})
        restored = checkpoints.restore(like(state))
    assert restored.step == 7
    assert restored.meta == {"stage": 2, "unit": None, "hash": "ab", "list": [1, 2.5]}
    assert_same(restored.state, state)


def test_a_template_of_shapes_gives_uncommitted_arrays_and_one_with_a_sharding_is_obeyed(tmp_path):
    state = {"a": jnp.arange(4.0), "key": jax.random.key(3)}
    shapes = jax.eval_shape(lambda: state)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = {"a": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=here), "key": shapes["key"]}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        free = checkpoints.restore(like(shapes)).state
        fixed = checkpoints.restore(like(placed)).state
        of_committed = checkpoints.restore(like(jax.device_put(state, jax.devices()[0]))).state
    assert_same(free, state)
    assert_same(fixed, state)
    assert not free["a"].committed and not free["key"].committed
    assert fixed["a"].committed and fixed["a"].sharding == here
    assert of_committed["a"].committed


def test_the_template_sees_the_meta_of_the_checkpoint_that_is_read(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.zeros(3)}, {"width": 3})
        restored = checkpoints.restore(lambda meta: {"w": jnp.zeros(meta["width"])})
    assert restored.state["w"].shape == (3,)


def test_a_folder_without_checkpoints_gives_none_and_is_not_made(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.steps() == []
        assert checkpoints.restore(like({})) is None
    assert not (tmp_path / "new").exists()


def test_the_newest_are_kept_and_an_older_one_can_be_asked_for(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (9, 10, 100):  # Not in the order of their names.
            checkpoints.save(step, {"x": jnp.float32(step)}, {})
        checkpoints.wait()
        assert checkpoints.steps() == [10, 100]
        assert checkpoints.restore(like({"x": jnp.float32(0)})).step == 100
        assert checkpoints.restore(like({"x": jnp.float32(0)}), step=10).state["x"] == 10
        with pytest.raises(ValueError, match="no checkpoint of step 9; has 10, 100"):
            checkpoints.restore(like({"x": jnp.float32(0)}), step=9)


def test_saving_a_step_again_replaces_it_only_once_the_new_one_is_complete(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(5, {"x": jnp.float32(1)}, {"unit": 0}, wait=True)
        assert [path.name for path in tmp_path.iterdir()] == ["5"]
        checkpoints.save(5, {"x": jnp.float32(2)}, {"unit": 1})
        assert (tmp_path / "5").is_dir() or (tmp_path / "5-1" / "manifest.json").exists()
        checkpoints.wait()
        assert [path.name for path in tmp_path.iterdir()] == ["5-1"]
        restored = checkpoints.restore(like({"x": jnp.float32(0)}))
        assert (restored.step, restored.meta, restored.state["x"]) == (5, {"unit": 1}, 2)


def test_saving_an_earlier_step_forgets_the_later_ones(tmp_path):
    save_three(tmp_path)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(25, some_state(25), {}, wait=True)
        assert checkpoints.steps() == [20, 25]


def test_a_state_that_is_donated_or_overwritten_after_save_is_saved_as_it_was(tmp_path):
    state = {"x": jnp.arange(300_000.0), "host": np.ones(300_000, np.float32)}
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        overwrite(state["x"]).block_until_ready()
        state["host"][:] = -1
        restored = checkpoints.restore(like(jax.eval_shape(lambda: state))).state
    np.testing.assert_array_equal(restored["x"], np.arange(300_000.0, dtype=np.float32))
    np.testing.assert_array_equal(restored["host"], 1)


def flip_a_bit(checkpoint: Path) -> None:
    file = largest_file(checkpoint)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def truncate(checkpoint: Path) -> None:
    file = largest_file(checkpoint)
    os.truncate(file, file.stat().st_size // 2)


def delete_the_arrays(checkpoint: Path) -> None:
    largest_file(checkpoint).unlink()


def delete_the_state(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "state")


def delete_the_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


def change_the_meta(checkpoint: Path) -> None:
    file = checkpoint / "manifest.json"
    file.write_text(file.read_text().replace('"step_again": 30', '"step_again": 31'))


def empty_the_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_bytes(b"\0" * 40)


def replace_the_manifest_by_other_json(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_text("[]")


DAMAGES = [
    flip_a_bit,
    truncate,
    delete_the_arrays,
    delete_the_state,
    delete_the_manifest,
    change_the_meta,
    empty_the_manifest,
    replace_the_manifest_by_other_json,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_a_damaged_checkpoint_is_named_and_the_next_older_one_is_read(tmp_path, caplog, damage):
    save_three(tmp_path)
    damage(tmp_path / "30")
    with Checkpoints(tmp_path) as checkpoints, caplog.at_level(logging.WARNING):
        restored = checkpoints.restore(like(some_state()))
    assert restored.step == 20
    assert_same(restored.state, some_state(20))
    assert str(tmp_path / "30") in caplog.text
    assert "damaged" in caplog.text


def test_every_file_of_a_checkpoint_is_vouched_for(tmp_path, caplog):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, some_state(), {}, wait=True)
        for file in [p for p in (tmp_path / "1").rglob("*") if p.is_file()]:
            data = file.read_bytes()
            changed = bytearray(data or b" ")
            changed[len(data) // 2] ^= 1
            file.write_bytes(changed)
            with pytest.raises(DamagedError):
                checkpoints.restore(like(some_state()))
            file.write_bytes(data)
        assert checkpoints.restore(like(some_state())).step == 1


def test_when_all_are_damaged_the_error_names_them(tmp_path):
    save_three(tmp_path)
    for step in (10, 20, 30):
        truncate(tmp_path / str(step))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(DamagedError) as error:
        checkpoints.restore(like(some_state()))
    for step in (10, 20, 30):
        assert str(tmp_path / str(step)) in str(error.value)


def test_a_first_checkpoint_that_a_kill_left_without_its_manifest_is_none(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, {"x": jnp.float32(1)}, {}, wait=True)
        (tmp_path / "10" / "manifest.json").unlink()
        assert checkpoints.restore(like({"x": jnp.float32(0)})) is None
        checkpoints.save(10, {"x": jnp.float32(2)}, {}, wait=True)
        assert checkpoints.restore(like({"x": jnp.float32(0)})).state["x"] == 2


def test_a_save_that_cannot_begin_leaves_the_earlier_one_of_its_step(tmp_path, monkeypatch):
    def refuse(path, tree):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, {"x": jnp.float32(1)}, {}, wait=True)
        with monkeypatch.context() as patch, pytest.raises(SaveError, match="No space left"):
            patch.setattr("orbax.checkpoint.v1.save_checkpointables_async", refuse)
            checkpoints.save(10, {"x": jnp.float32(2)}, {}, wait=True)
        assert checkpoints.restore(like({"x": jnp.float32(0)})).state["x"] == 1


def test_a_reader_of_a_run_that_goes_on_takes_what_is_newest_by_then(tmp_path, monkeypatch, caplog):
    from bitjax.runs import checkpoint as module

    def read_late(path):
        monkeypatch.setattr(module, "read_manifest", read)
        writer.save(30, {"x": jnp.float32(30)}, {}, wait=True)
        return read(path)

    read = module.read_manifest
    with Checkpoints(tmp_path, keep=1) as writer, Checkpoints(tmp_path) as reader:
        writer.save(10, {"x": jnp.float32(10)}, {}, wait=True)
        monkeypatch.setattr(module, "read_manifest", read_late)
        assert reader.restore(like({"x": jnp.float32(0)})).step == 30
    assert "damaged" not in caplog.text


def test_a_folder_that_is_anothers_by_now_is_left_as_it_is(tmp_path):
    def check():
        if gone:
            raise LostError("it is another's")

    gone = False
    with pytest.raises(LostError), Checkpoints(tmp_path, check=check) as checkpoints:
        checkpoints.save(10, {"x": jnp.float32(1)}, {}, wait=True)
        gone = True
        (tmp_path / "11.orbax-checkpoint-tmp").mkdir()
        checkpoints.save(20, {"x": jnp.float32(2)}, {})
    assert {path.name for path in tmp_path.iterdir()} == {"10", "11.orbax-checkpoint-tmp"}


def test_a_damaged_checkpoint_does_not_take_the_place_of_a_whole_one(tmp_path):
    save_three(tmp_path)
    truncate(tmp_path / "30")
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.restore(like(some_state()))
        checkpoints.save(40, some_state(40), {}, wait=True)
        assert checkpoints.steps() == [20, 40]


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"w": jnp.zeros((2, 3))}, r"w is float32\[3,2\] there, float32\[2,3\] here"),
        (
            {"w": jnp.zeros((3, 2), jnp.bfloat16)},
            r"w is float32\[3,2\] there, bfloat16\[3,2\] here",
        ),
        ({"v": jnp.zeros((3, 2))}, r"v is absent there.*w is float32\[3,2\] there, absent here"),
    ],
    ids=["shape", "dtype", "name"],
)
def test_a_template_that_does_not_fit_is_no_damage(tmp_path, caplog, change, complaint):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones((3, 2))}, {})
        checkpoints.save(2, {"w": jnp.ones((3, 2))}, {})
        with pytest.raises(ValueError, match=complaint):
            checkpoints.restore(like(change))
        assert "damaged" not in caplog.text
        assert checkpoints.restore(like({"w": jnp.zeros((3, 2))})).step == 2


def test_what_killed_saves_leave_is_no_checkpoint_and_goes_with_the_next_save(tmp_path):
    (tmp_path / "8.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (tmp_path / "3.removed").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == []
        assert checkpoints.restore(like({})) is None
        assert (tmp_path / "3.removed").exists(), "reading changes nothing"
        checkpoints.save(9, {"x": jnp.zeros(1)}, {}, wait=True)
    assert [path.name for path in tmp_path.iterdir()] == ["9"]


def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="`keep` must be an integer of 1 or more, got 0"):
        Checkpoints(tmp_path, keep=0)
    with Checkpoints(tmp_path / "new") as checkpoints:
        with pytest.raises(ValueError, match="`step` must be 0 or more, got -1"):
            checkpoints.save(-1, {}, {})
        for empty in ({"a": {}}, {"a": jnp.ones(2), "b": jnp.ones((0, 3))}):
            with pytest.raises(ValueError, match="no empty arrays and no empty state"):
                checkpoints.save(1, empty, {})
        with pytest.raises(TypeError, match="the leaf a/b of a checkpoint is no array but 3"):
            checkpoints.save(1, {"a": {"b": 3}}, {})
        for meta in ({"a": (1, 2)}, {"a": jnp.ones(())}, {1: "a"}):
            with pytest.raises(TypeError):
                checkpoints.save(1, {"a": jnp.ones(())}, meta)
        with pytest.raises(ValueError):
            checkpoints.save(1, {"a": jnp.ones(())}, {"loss": float("inf")})
    assert not (tmp_path / "new").exists()


def test_an_old_checkpoint_that_cannot_be_removed_is_told_and_the_new_one_counts(tmp_path, caplog):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros(3)}, {}, wait=True)
        checkpoints.save(2, {"x": jnp.zeros(3_000_000)}, {})
        (tmp_path / "1.removed" / "in the way").mkdir(parents=True)  # Of the removal of step 1.
        checkpoints.wait()
        assert "old checkpoint could not be removed" in caplog.text and "1.removed" in caplog.text
        assert checkpoints.restore(like({"x": jnp.zeros(3_000_000)})).step == 2


@contextlib.contextmanager
def no_file_longer_than(limit: int):
    """What a full disk is to a program: writing more fails with an error of the system.

    Of several writes that fail at once TensorStore tells Orbax's event loop when the first has
    ended that loop; Python then has an exception that no one can catch, and says so.
    """
    hook = sys.unraisablehook
    sys.unraisablehook = lambda told: (
        None if "Event loop is closed" in str(told.exc_value) else hook(told)
    )
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
        time.sleep(0.3)  # until the last of them has ended
        sys.unraisablehook = hook


@pytest.mark.parametrize("limit", [0, 100_000], ids=["no metadata", "no arrays"])
def test_a_full_disk_is_told_leaves_the_older_checkpoint_and_the_next_save_tries_again(
    limit, tmp_path, caplog
):
    state = {"x": jnp.asarray(np.random.default_rng(0).random(300_000, np.float32))}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {}, wait=True)
        with no_file_longer_than(limit):
            checkpoints.save(2, state, {})
            checkpoints.save(3, state, {})
            with pytest.raises(
                SaveError, match=r"step 3 .*/3 \(File too large: .* 1.2 MB, .* free"
            ):
                checkpoints.wait()
        told = [record.message for record in caplog.records]
        assert len(told) == 2 and all("Free space or quota there" in line for line in told)
        # A thread of Orbax may make its temporary folder again behind the failure.
        steps = [path.name for path in tmp_path.iterdir() if "tmp" not in path.name]
        assert steps == ["1"], "nothing half-written is left"
        assert checkpoints.restore(like(state)).step == 1
        checkpoints.save(4, state, {})
        checkpoints.wait()
        assert [path.name for path in tmp_path.iterdir()] == ["4"]
        assert_same(checkpoints.restore(like(state)).state, state)
        assert checkpoints.slowest > 0.0


def test_a_failure_of_the_last_save_is_raised_at_the_end(tmp_path):
    with (
        no_file_longer_than(0),
        pytest.raises(SaveError, match="older checkpoints are whole"),
        Checkpoints(tmp_path) as checkpoints,
    ):
        checkpoints.save(1, {"x": jnp.zeros(3)}, {})


def run_python(program: str, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], text=True, capture_output=True, **options
    )


def test_a_program_that_ends_without_waiting_leaves_a_whole_checkpoint_and_no_chatter(tmp_path):
    program = """if True:
        import sys, jax.numpy as jnp
        from bitjax.runs.checkpoint import Checkpoints
        checkpoints = Checkpoints(sys.argv[1])
        checkpoints.save(4, {"x": jnp.arange(3_000_000.0)}, {"stage": 1})
    """
    done = run_python(program, str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(like({"x": jnp.zeros(3_000_000)})).step == 4


def test_damage_is_told_on_standard_error_without_any_logging_set_up(tmp_path):
    save_three(tmp_path)
    truncate(tmp_path / "30")
    program = """if True:
        import sys
        from bitjax.runs.checkpoint import Checkpoints
        try:
            Checkpoints(sys.argv[1]).restore(lambda meta: {})
        except ValueError:
            pass
    """
    done = run_python(program, str(tmp_path))
    assert f"The checkpoint {tmp_path / '30'} is damaged" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_run_killed_at_any_moment_of_its_saves_can_be_resumed(tmp_path):
    program = """if True:
        import sys, jax.numpy as jnp
        from bitjax.runs.checkpoint import Checkpoints
        with Checkpoints(sys.argv[1], keep=2) as checkpoints:
            template = lambda meta: {"x": jnp.zeros(2_000_000), "step": jnp.int32(0)}
            restored = checkpoints.restore(template)
            step = restored.step if restored else 0
            assert restored is None or restored.state["step"] == step
            assert restored is None or (restored.state["x"] == step).all()
            while True:
                print(step, flush=True)
                step += 1
                state = {"x": jnp.full(2_000_000, float(step)), "step": jnp.int32(step)}
                checkpoints.save(step, state, {"unit": step})
                if step % 3 == 0:
                    checkpoints.save(step, state, {"unit": step})
    """
    resumed = []
    for saves, delay in ((2, 0.0), (3, 0.01), (4, 0.03), (2, 0.06), (3, 0.1)):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], text=True, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            steps = [int(process.stdout.readline()) for _ in range(1 + saves)]
            time.sleep(delay)  # So that the kill falls into different parts of a save.
            process.kill()
        resumed.append(steps[0])
    # A save waits for the one before it, so of n saves that were begun n - 1 are whole.
    assert resumed[0] == 0
    assert all(later > earlier for earlier, later in itertools.pairwise(resumed)), resumed
    with Checkpoints(tmp_path) as checkpoints:
        last = checkpoints.restore(like({"x": jnp.zeros(2_000_000), "step": jnp.int32(0)}))
        checkpoints.save(last.step + 1, last.state, {}, wait=True)
    names = [path.name for path in tmp_path.iterdir()]
    assert len(names) == 2, names


@pytest.mark.slow
def test_two_processes_write_one_checkpoint_and_one_process_reads_it(tmp_path):
    program = """if True:
        import sys, jax, jax.numpy as jnp, numpy as np
        folder, port, index = sys.argv[1:]
        jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))
        from jax.sharding import AxisType, NamedSharding, PartitionSpec
        from bitjax.runs.checkpoint import Checkpoints, SaveError
        mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
        everywhere = NamedSharding(mesh, PartitionSpec())
        shared = jax.device_put(np.arange(6.0, dtype=np.float32), everywhere)
        state = {"own": jnp.arange(5.0), "shared": shared}
        with Checkpoints(folder) as checkpoints:
            for step in (1, 2, 3, 3, 2):
                checkpoints.save(step, state, {"step": step})
            restored = checkpoints.restore(lambda meta: state)
            assert restored.step == 2, restored.step
            assert restored.state["shared"].sharding == everywhere
            assert not restored.state["own"].committed
        refused = Checkpoints(folder + "/file/inside")
        refused.save(1, state, {})
        try:
            refused.close()
        except SaveError as error:
            reason = "Not a directory" if index == "0" else "process 0 could not begin it"
            assert reason in str(error), error
        else:
            raise AssertionError("it did not fail on this process")
    """
    (tmp_path / "file").touch()  # where no folder can be made
    port = str(20_000 + os.getpid() % 20_000)
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), port, index],
            text=True,
            stderr=subprocess.PIPE,
        )
        for index in ("0", "1")
    ]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    state = {"own": jnp.arange(5.0), "shared": jnp.arange(6.0)}
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(like(state)).state, state)
        assert checkpoints.steps() == [2]


@pytest.mark.slow
def test_what_four_devices_wrote_is_read_onto_two_and_onto_one(tmp_path):
    program = """if True:
        import sys, jax, jax.numpy as jnp, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from bitjax.runs.checkpoint import Checkpoints
        folder, do = sys.argv[1:]
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
        state = {"all": np.arange(8.0, dtype=np.float32), "split": np.arange(16.0).reshape(8, 2)}
        places = {"all": NamedSharding(mesh, P()), "split": NamedSharding(mesh, P("data"))}
        state = jax.device_put(state, places)
        with Checkpoints(folder) as checkpoints:
            if do == "save":
                checkpoints.save(1, state, {})
            else:
                shapes = jax.eval_shape(lambda: state)
                template = jax.tree.map(
                    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
                    shapes, places,
                )
                for asked in (template, state):
                    read = checkpoints.restore(lambda meta: asked).state
                    for name, leaf in read.items():
                        assert leaf.sharding == places[name], (name, leaf.sharding)
                        np.testing.assert_array_equal(leaf, state[name])
                free = checkpoints.restore(lambda meta: shapes).state
                assert not free["split"].committed
                np.testing.assert_array_equal(free["split"], state["split"])
    """
    for devices, do in ((4, "save"), (2, "read"), (1, "read")):
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        done = run_python(program, str(tmp_path), do, env=environment)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_the_manifest_is_plain_json_that_names_stage_and_leaves(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": {"b": jnp.zeros((2, 3))}}, {"stage": "codes"}, wait=True)
    manifest = json.loads((tmp_path / "1" / "manifest.json").read_text())
    assert manifest["meta"] == {"stage": "codes"}
    assert manifest["leaves"] == {"a/b": "float32[2,3]"}


def test_whatever_is_done_to_a_file_of_a_checkpoint_the_older_one_is_read(tmp_path, capfd):
    state, draw = {"w": np.arange(6.0)}, random.Random(0)
    with Checkpoints(tmp_path / "whole") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, {})
    for number in range(8):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        file = draw.choice(sorted(p for p in (folder / "2").rglob("*") if p.is_file()))
        if number % 4:
            damage_file(file, draw)
        else:  # something beside it that Orbax would wait for
            os.mkfifo(file.with_name("planted"))
        with Checkpoints(folder) as checkpoints:
            assert checkpoints.restore(like(state)).step == 1, (file, number)
    assert "Traceback" not in capfd.readouterr().err


def test_a_manifest_that_vouches_for_anything_is_one_line(tmp_path):
    state, draw = {"w": np.arange(6.0)}, random.Random(0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, state, {"place": [1, "train", 3]}, wait=True)
        path = tmp_path / "2" / "manifest.json"
        sealed = json.loads(path.read_text())
        del sealed["crc32"]
        read = 0
        for _ in range(40):
            forged = json.loads(swapped(sealed, draw, raw=False))
            seal = zlib.crc32(json.dumps(forged, sort_keys=True).encode())
            path.write_text(json.dumps({**forged, "crc32": seal}))
            try:
                read += checkpoints.restore(like(state)) is not None
            except (DamagedError, ValueError) as error:
                assert "\n" not in str(error)
    assert read < 30


def test_links_and_files_in_the_place_of_old_checkpoints_stop_no_save(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "mine").touch()
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "1").symlink_to(tmp_path / "outside")
    (folder / "2.removed").symlink_to(tmp_path / "outside")
    (folder / "3.removed").touch()
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(4, {"w": np.arange(6.0)}, {}, wait=True)
    assert os.listdir(folder) == ["4"] and (tmp_path / "outside" / "mine").exists()
