"""Models, quantizers and methods of a user's own by import path, and every way that it fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitjax.cli.inspect import look_inside
from bitjax.launch.build import build_work, open_folder
from bitjax.launch.finished import load_run
from bitjax.report.comparison import compare
from bitjax.runs.records import read_run
from bitjax.training.runner import run
from tests.launch.test_build import digits

NETS = """
import flax.linen as nn
import bitjax as bj
from bitjax import methods

class Net(nn.Module):
    features: int = 4
    num_classes: int = 10

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.features, name="dense1")(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes, name="head")(x)

class Few(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(7)(x.reshape(len(x), -1))

class Mapped(nn.Module):
    @nn.compact
    def __call__(self, x):
        return {"logits": nn.Dense(10)(x.reshape(len(x), -1))}

def coarse(bits: int = 3) -> bj.Quantizer:
    return bj.uniform(bits=bits)

def still(rules, steps: int = 0) -> methods.Method:
    return methods.uniform(rules, steps=steps)

def number(rules=(), num_classes: int = 10):
    return 3

def fails(num_classes: int = 10):
    raise RuntimeError("no\\nluck")

net = Net()
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A folder to work in with the package `own` of models, as a user's project has it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as the command does
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "nets.py").write_text(NETS)
    (tmp_path / "own" / "broken.py").write_text("import no_such_package\n")
    (tmp_path / "own" / "unclosed.py").write_text("x = (\n")
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "own"]:
        del sys.modules[name]


OWN = {
    "model": {"name": "own.nets:Net", "features": 5, "num_classes": 10},
    "method": {"name": "own.nets:still", "steps": 0},
    "rules": ((".*", {"name": "own.nets:coarse", "bits": 2}),),
}


def test_a_run_of_a_users_own_is_recorded_resumed_compared_loaded_and_looked_into(nets):
    config = digits(**OWN)
    result, _ = run(build_work(config), open_folder(config, "run"), show=False)
    assert result["model"] == "own.nets:Net"
    again, _ = run(build_work(config), open_folder(config, "run"), show=False)
    assert again["accuracy"] == result["accuracy"]
    record = read_run("run")
    assert record.bits["all"] == (2.0, 2.0)
    title = "own.nets:Net(features=5, num_classes=10) on digits, test examples"
    assert [group.title for group in compare([record]).groups] == [title]
    loaded = load_run("run")
    assert loaded.variables["params"]["dense1"]["kernel"].shape == (64, 5)
    assert type(loaded.work.model).__name__ == "Net"
    assert set(look_inside(loaded, 8)[0]) == {site.site for site in record.sites}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"name": "own.nots:Net"}},
            "config.model.name='own.nots:Net': own.nots does not import: ModuleNotFoundError: No "
            "module named 'own.nots'; install it, or work in the folder that has it.",
        ),
        (
            {"model": {"name": "own.broken:Net"}},
            "own.broken does not import: ModuleNotFoundError: No module named 'no_such_package' (/",
        ),
        ({"model": {"name": "own.unclosed:Net"}}, "own.unclosed does not import: SyntaxError: '('"),
        ({"model": {"name": ":Net"}}, "a module without a name does not import"),
        (
            {"method": {"name": "own.nets:Still"}},
            "config.method.name='own.nets:Still': own.nets has no 'Still'; did you mean still",
        ),
        (
            {"model": {"name": "own.nets:xyzzyx"}},
            "has no 'xyzzyx'; it has ['nn', 'bj', 'methods', 'Net',",
        ),
        ({"model": {"name": "own.nets:net"}}, "name a class or a function that gives a Flax"),
        (
            {"rules": ((".*", {"name": "own.nets:__name__"}),)},
            "config.rules[0].name='own.nets:__name__' must name a class or a function that gives a "
            "Quantizer.",
        ),
        (
            {"model": {"name": "own.nets:number"}},
            "config.model (own.nets:number): it must give a Flax Linen Module, got int.",
        ),
        (
            {"rules": ((".*", {"name": "own.nets:Net"}),)},
            "config.rules[0] (own.nets:Net): it must give a Quantizer, got Net.",
        ),
        ({"method": {"name": "own.nets:number"}}, "it must give a Method, got int."),
        ({"model": {"name": "own.nets:fails"}}, "nets.py, line 35, in fails)"),
        (
            {"model": {"name": "own.nets:Net", "width": 3}},
            "config.model.width is no setting of 'own.nets:Net' (value 3); it has features, "
            "num_classes.",
        ),
        ({"model": {"name": "own.nets:Net", "features": 1.5}}, "features must be of type int"),
        (
            {"model": {"name": "own.nets:Few"}},
            "config.model (own.nets:Few) must give logits of shape (2, 10) for 2 examples of "
            "'digits', got (2, 7).",
        ),
        ({"model": {"name": "own.nets:Mapped"}}, "for 2 examples of 'digits', got dict."),
        ({"model": {"name": "own.nets:Few", "num_classes": 7}}, "(value 7); it has none."),
        ({"model": {"name": "shutil:rmtree", "path": "own"}}, "shutil is of Python's own library"),
        (
            {"model": {"name": "mlpp"}},
            "got 'mlpp'; your own is named by its import path, 'package.module:Name'.",
        ),
    ],
    ids=str,
)
def test_what_a_path_cannot_give_is_one_line_that_names_the_key(nets, changes, message):
    with pytest.raises(ValueError) as caught:
        build_work(digits(**{**OWN, **changes}))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert (nets / "own").is_dir()


CONFIG = """
from bitjax.configs.base import get_config as base

def get_config():
    config = base()
    config.model = {"name": "own.nets:Net", "features": 5, "num_classes": 10}
    config.data.name = "digits"
    config.method = {"name": "full_precision", "steps": 0}
    return config
"""


@pytest.mark.slow
def test_the_command_finds_modules_in_the_folder_that_it_is_called_in(nets):
    # An installed command has its own folder first on the path, not the working one.
    (nets / "bin").mkdir()
    (nets / "bin" / "bitjax").write_text("from bitjax.cli.main import main\nmain()\n")
    (nets / "mine.py").write_text(CONFIG)
    done = subprocess.run(
        [sys.executable, "bin/bitjax", "train", "mine.py", "--workdir", "run"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=nets,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert read_run("run").model == "own.nets:Net"
