"""A config is found by its path or its shipped name, and whatever it does not know is refused."""

import os
from pathlib import Path

import pytest

from bitjax.configs import FOLDER
from bitjax.launch.config_files import load_config, recorded_name, shipped_configs

OWN = """
from bitjax.configs.digits.bitpruning import get_config as shipped

def get_config(steps="9"):
    config = shipped()
    config.method.steps = int(steps)
    {}
    return config
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a user's config in a folder of no checkout; gives its path."""
    monkeypatch.chdir(tmp_path)

    def write(line=""):
        Path("own.py").write_text(OWN.format(line))
        return "own.py"

    return write


@pytest.mark.parametrize(
    "name",
    ["digits/bitpruning", "configs/digits/bitpruning.py", str(FOLDER / "digits" / "bitpruning.py")],
)
def test_a_shipped_config_has_one_record_however_it_is_named(name, own):
    assert recorded_name(name) == "configs/digits/bitpruning.py"
    assert load_config(name).budgets[0]["limit"] == 3.0


def test_a_variant_is_given_to_a_shipped_config_and_to_an_own_one(own):
    assert load_config("cifar10/resnet20_uniform:w4a4").name.endswith("w4a4")
    assert load_config(own() + ":7").method.steps == 7
    assert recorded_name("own.py:7") == "own.py:7"


def test_every_shipped_config_can_be_read_from_any_folder(own):
    for name in shipped_configs():
        assert load_config(name).data.name, name


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "config.budget = ()",
            r"config.budget is no key of a run \(did you mean budgets\?\)",
        ),
        (
            "config.data.batchsize = 3",
            r"config.data.batchsize is no key of a run \(did you mean batch_size",
        ),
        (
            "with config.data.ignore_type(): config.data.augmentation = {'mode': 1}",
            "config.data.augmentation must be of type str, got {'mode': 1}",
        ),
        (
            "config.colour = 1",
            "config.colour is no key of a run; bitjax.configs.base has all of them",
        ),
        (
            "config = config.unlock(); del config.data.root",
            r"config.data.root is missing: start from get_config\(\)",
        ),
        ("config = {'seed': 0}", r"get_config\(\) must return a ConfigDict, got \{'seed': 0\}"),
        (
            "raise RuntimeError('two\\nlines')",
            "config own.py: RuntimeError: two lines .*own.py, line 7, in get_config",
        ),
        ("config.seed = 'one'", "config own.py: .*seed"),
    ],
    ids=str,
)
def test_what_no_run_knows_is_refused_in_one_line(line, message, own):
    path = own(line)
    with pytest.raises(ValueError, match=message) as error:
        load_config(path)
    assert "\n" not in str(error.value)


def test_models_and_methods_have_further_keys(own):
    config = load_config(own("config.model.width = 8; config.method.gamma = 0.5"))
    assert (config.model.width, config.method.gamma) == (8, 0.5)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("configs/nope.py", "neither a file nor a shipped config; the nearest of those are"),
        ("digits/bitprunning", "the nearest of those are digits/bitpruning, "),
        ("README.md", "a config must be a Python file"),
        ("configs/cifar10/resnet20_uniform.py:8bits", "after the config's name comes :wNaM"),
        ("digits/float:w4", "it has no variants, remove the ':w4' behind its name"),
        ("empty.py", r"it lacks the function get_config\(\), which returns a ConfigDict"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused_in_one_line(path, message, own):
    Path("README.md").touch()
    Path("empty.py").touch()
    with pytest.raises(ValueError, match=message) as error:
        load_config(path)
    assert "\n" not in str(error.value)


def read(*arguments):
    return load_config("digits/bitpruning", arguments)


def test_overrides_have_the_types_that_the_config_has():
    config = read("--config.seed=3", "--config.method.fine_tune=1", "-config.name=a=b")
    assert (config.seed, config.method.fine_tune, config.name) == (3, 1.0, "a=b")
    assert isinstance(config.method.fine_tune, float)
    assert read("--config.data.mean=(0.1, 2)").data.mean == (0.1, 2)
    assert read("--config.data.splits=a", "--config.data.splits=b").data.splits == ("a", "b")
    assert read("--config.budgets[0].limit=4").budgets[0]["limit"] == 4.0
    assert read("--config.seed=1", "--config.seed=2").seed == 2
    assert read("--config.model={'name': 'mlp', 'num_classes': 3}").model.num_classes == 3


def test_a_bool_is_a_word_or_stands_alone():
    for words, value in ((("tensorboard",), True), (("tensorboard=t",), True),
                         (("tensorboard=FALSE",), False), (("tensorboard=0",), False)):  # fmt: skip
        assert read(*(f"--config.{word}" for word in words)).tensorboard is value
    assert read("--config.tensorboard", "--noconfig.tensorboard").tensorboard is False


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.sed=1", r"no key 'sed' \(did you mean seed\?\)"),
        ("--config.seed=1.5", "config.seed must be of type int, got '1.5'"),
        ("--config.tensorboard=maybe", "config.tensorboard must be true or false, got 'maybe'"),
        (
            "--config.data.mean=(1,",
            r"config.data.mean must be a tuple, as \(1, 2\) or \('a', 'b'\), got '\(1,'",
        ),
        ("--noconfig.seed", "'--noconfig.seed' must give a value, as config.seed=value"),
        ("--seed=1", "unknown argument '--seed=1'; an override is config.key=value"),
        (
            "--config.model=mlp",
            r"config.model is a section: set one of its keys \(config.model.name",
        ),
        ("--config.rules[0]=a", r"config.rules\[0\] cannot be .*'tuple' object does not support"),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(argument, message):
    with pytest.raises(ValueError, match=message) as error:
        read(argument)
    assert "\n" not in str(error.value)


def test_what_a_caller_changes_stays_with_it():
    first = load_config("digits/float")
    with first.unlocked():
        first.seed = 5
    assert load_config("digits/float").seed == 0
    with pytest.raises((AttributeError, KeyError)):
        first.colour = os.name
