"""The core is light: `import bitjax` loads little, a run on digits needs no optional package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bitjax import data
from bitjax.data.prepare import prepare
from bitjax.data.records import Records
from bitjax.data.stream import StreamedDataset
from bitjax.extras import extra
from bitjax.launch.slurm import make_executor
from bitjax.report import plots
from bitjax.runs.rows import MetricsWriter

ROOT = Path(__file__).parent.parent
# In no other extra than those that the messages name.
OPTIONAL = ("tensorflow_datasets", "tensorflow", "grain", "matplotlib", "sklearn", "PIL",
            "tensorboardX", "wandb", "mlflow", "optuna", "submitit", "importlib_resources",
            "pandas", "onnx", "onnxruntime", "qonnx", "flatbuffers")  # fmt: skip
COMMAND = f"""
import runpy, sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in {OPTIONAL}:
            return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__")
"""


CONFIG = """
from configs.base import get_config as base

def get_config():
    config = base()
    config.model = {"name": "mlp", "features": (4,), "num_classes": 10}
    config.data.name = "digits"
    config.method = {"name": "full_precision", "steps": 2}
    return config
"""
RECORDS = Records("train", lambda i: (b"", 0), str, np.arange(1), None, "")


def run(program, *arguments, cwd=ROOT):
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_run_on_digits_and_its_comparison_need_no_optional_package(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    command = (COMMAND, "experiments.train", f"--config={tmp_path}/tiny.py")
    run(*command, f"--workdir={tmp_path}/run")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 2
    table = run(COMMAND, "experiments.compare", tmp_path / "run")
    assert "mlp(features=[4], num_classes=10) on digits" in table


def test_what_is_optional_names_its_extra_where_it_is_missing(tmp_path, monkeypatch, data_root):
    for name in OPTIONAL:
        monkeypatch.setitem(sys.modules, name, None)
    for name in [name for name in sys.modules if name.startswith(("matplotlib.", "PIL."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("BITJAX_CACHE_DIR", str(tmp_path))  # nothing is decoded yet
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "1.png").write_bytes(b"")
    streamed = StreamedDataset(
        "s", RECORDS, RECORDS, (8, 8, 1), 0, False, "test", 2, (0.5,), (1.0,)
    )
    needs = {
        "data": [
            lambda: data.load("tfds:mnist", root=tmp_path),
            lambda: data.load(f"folder:{tmp_path}"),
            lambda: data.load("cifar10", root=data_root),
            lambda: next(data.train_batches(streamed, 1, 0, 0)),
            lambda: prepare("mnist", tmp_path),
        ],
        "plots": [lambda: plots.tensor_histogram([1.0])],
        "tensorboard": [lambda: MetricsWriter(tmp_path, writers=("tensorboard",))],
        "wandb": [lambda: MetricsWriter(tmp_path, writers=("wandb",))],
        "mlflow": [lambda: MetricsWriter(tmp_path, writers=("mlflow",))],
        "slurm": [lambda: make_executor(tmp_path, (), "sweep")],
    }
    for name, calls in needs.items():
        for call in calls:
            with pytest.raises(
                ImportError, match=rf" needs \w+: pip install 'bitjax\[{name}\]'\.$"
            ):
                call()


def test_an_optional_package_that_is_broken_says_why():
    with pytest.raises(ImportError, match=r"^It needs numpy \(libx.so: no\): pip install 'b"):
        with extra("data", "It"):
            raise ImportError("libx.so:\n no", name="numpy.core")


def test_importing_bitjax_loads_nothing_beyond_jax_flax_and_itself():
    # Counted, since seconds depend on the machine; benchmarks/import_time.py measures those.
    program = """if True:
        import sys
        import jax, flax.linen
        before = set(sys.modules)
        import bitjax
        bitjax.Quantized  # which loads every name
        print(*{name.partition(".")[0] for name in set(sys.modules) - before})
        print(len(set(sys.modules) - before))
    """
    packages, count = run(program).splitlines()
    assert set(packages.split()) - sys.stdlib_module_names <= {"bitjax", "jax", "numpy"}
    assert int(count) < 185, "every module costs about 0.4 ms"
