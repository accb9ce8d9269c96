"""A config is found by its path or its shipped name, and whatever it does not know is refused."""

import json
import os
from pathlib import Path

import pytest

from bitjax.configs import FOLDER
from bitjax.launch.build import build_work
from bitjax.launch.config_files import load_config, recorded_name, shipped_configs
from bitjax.launch.schema import check_sections, plain

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


@pytest.mark.parametrize("name", ["configs/digits/lsq.py", "digits/lsq.py"])
def test_a_file_of_ones_own_is_not_recorded_under_the_name_of_a_shipped_one(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("def get_config(): ...\n")
    own = recorded_name(f"{name}:w4a4")
    assert own == f"./{name}:w4a4" == recorded_name(own)
    assert recorded_name("digits/lsq") == "configs/digits/lsq.py", "not a path"


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


PROGRAMS = {
    "a syntax error": ("def get_config(:", "SyntaxError: invalid syntax (own.py, line 1)"),
    "a wrong indent": ("  x = 1\n y = 2", "IndentationError: unexpected indent (own.py, line 1)"),
    "a missing module": ("import nope", "ModuleNotFoundError: No module named 'nope' (/"),
    "bytes": (b"\x00\xff\x80", "SyntaxError: "),
    "an exit": ("raise SystemExit(0)", "SystemExit: 0 ("),
    "an end of another kind": ("raise GeneratorExit", "GeneratorExit: GeneratorExit ("),
    "no end": ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
    "a number for a function": ("get_config = 3", "it lacks the function get_config()"),
    "two variants": ("def get_config(a, b): pass", "TypeError: get_config() missing 2 required"),
    "an error without words": (
        "class E(Exception):\n  def __str__(self): 1 / 0\ndef get_config(): raise E",
        "E: E (/.../own.py, line 3, in get_config)",
    ),
    "a config without a repr": (
        "class X:\n  def __repr__(self): 1 / 0\nget_config = X",
        "get_config() must return a ConfigDict, got a value of type X",
    ),
    "too much": ("#" * 10_000_001, "a config file must be smaller than 10 MB"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_whatever_a_config_file_does_is_one_line_that_says_where(name, tmp_path, monkeypatch):
    text, message = PROGRAMS[name]
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as error:
        load_config("own.py")
    said = str(error.value).replace(str(tmp_path), "/...")
    assert said.startswith("config own.py: ") and message in said and "\n" not in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.method.x = config", "config.method.x.method.x.method.x"),
        (
            "x = 1\n    for _ in range(5000): x = [x]\n    config.method.x = x",
            "is too deep or too large: a config holds at most 20000 values within 12 levels",
        ),
        ("config.method.x = [0] * 30_000", "is too deep or too large"),
        ("config.method.gamma = float('nan')", "config.method.gamma must be finite, and no larger"),
        ("config.method.gamma = 1e300", r"no larger than float32 can hold, got 1e\+300"),
        ("config.seed = 10 ** 400", r"config.seed must be between -2\*\*53 and 2\*\*53, got 1000"),
        ("config.seed = 10 ** 5000", "config.seed must be between .* got a value of type int"),
        ("config.method.x = b'abc'", "config.method.x must be plain data: .*, got b'abc'"),
        ("config.method.x = {1, 2}", "config.method.x must be plain data"),
        ("config.method.x = lambda: 1", "config.method.x must be plain data: .*, got <function"),
        (
            "config.name = 'two\\nlines'",
            r"config.name must be text without control charac.*'two\\n",
        ),
        ("config.name = '\\ud800'", "config.name must be text without control characters"),
        (
            "config.method['two\\nlines'] = 1",
            r"config.method has a key 'two\\nlines': keys must be",
        ),
        ("config.method[''] = 1", "config.method has a key ''"),
    ],
    ids=str,
)
def test_what_is_no_plain_data_is_refused_by_its_key(line, message, own):
    with pytest.raises(ValueError, match=message) as error:
        load_config(own(line))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


SECTION = r"must be a section, as \{'name': ..., ...\}, got "


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *((key, value, SECTION) for key in ("model", "data", "method") for value in (None, [], 3)),
        ("method", "lsq", rf"config.method {SECTION}'lsq'"),
        ("method", {}, "config.method.name is missing"),
        ("model", {"name": 3}, "config.model.name must be of type str, got 3"),
        ("data", {"name": "digits"}, r"config.data.\w+ is missing: start from get_config\(\)"),
        ("rules", None, "config.rules must be of type tuple, got None"),
        ("rules", "abc", "config.rules must be of type tuple, got 'abc'"),
        ("budgets", {}, r"config.budgets must be of type tuple, got \{\}"),
        ("seed", True, "config.seed must be of type int, got True"),
        ("seed", 1.0, "config.seed must be of type int, got 1.0"),
        ("tensorboard", 1, "config.tensorboard must be of type bool, got 1"),
        ("init_from", None, "config.init_from must be of type str, got None"),
        ("colour", 1, "config.colour is no key of a run"),
    ],
    ids=str,
)
def test_a_section_or_a_value_of_another_kind_is_refused_wherever_the_config_is_from(
    key, value, message
):
    spec = {**plain(load_config("digits/float")), key: value}
    for use in (check_sections, build_work):
        with pytest.raises(ValueError, match=message):
            use(spec)


def test_every_shipped_config_has_the_sections_and_kinds_that_the_base_has():
    for name in shipped_configs():
        spec = plain(load_config(name))
        assert check_sections(spec) == spec == json.loads(json.dumps(spec)), name


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
    assert read("--config.data.splits=train[:9%]+test").data.splits == ("train[:9%]+test",)
    assert read("--config.data.splits=").data.splits == ()
    assert read("--config.budgets[0].limit=4").budgets[0]["limit"] == 4.0
    assert read("--config.budgets={'metric': 'bits', 'limit': 4}").budgets[0]["limit"] == 4
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
        ("--config.=1", "no key ''"),
        ("--config.a..b=1", r"no key 'a\.\.b'"),
        ("--config.rules[=1", r"no key 'rules\[' \(did you mean rules\?\)"),
        ("--config.rules[9]=1", r"no key 'rules\[9\]'"),
        ("--config.seed.x=1", "no key 'seed.x'"),
        ("--config.__class__=1", "no key '__class__'"),
        ("--config.data.to_dict=1", "no key 'data.to_dict'"),
        ("--config.seed=", "config.seed must be of type int, got ''"),
        ("--config.seed=nan", "config.seed must be of type int, got 'nan'"),
        ("--config.seed=90000000000000000", r"config.seed must be between -2\*\*53 and 2\*\*53"),
        (f"--config.seed={'9' * 5000}", "config.seed must be of type int, got '9+ ...."),
        ("--config.method.settle=nan", "config.method.settle must be finite, and no larger"),
        ("--config.method.settle=-inf", "config.method.settle must be finite, and no larger"),
        ("--config.method.settle=1e39", "config.method.settle must be finite, and no larger"),
        ("--config.method.settle=[1]", r"config.method.settle must be of type float, got '\[1\]'"),
        ("--config.budgets[0].limit=inf", r"config.budgets\[0\].limit must be finite, and"),
        (
            "--config.rules=(",
            r"config.rules must be a tuple, as \(1, 2\) or \('a', 'b'\), got '\('",
        ),
        ("--config.rules=__import__('os')", "config.rules must be a tuple"),
        (f"--config.rules={'(' * 5000}", "config.rules must be a tuple"),
        (f"--config.rules={'-' * 50_000}1", "config.rules must be a tuple"),
        ("--config.model={", "config.model is a section: set one of its keys"),
        ("--config.model={}", "config.model.name is missing"),
        ("--config.model={'name': ...}", "config.model.name must be plain data"),
        ("--config.data={'name': 'digits'}", "config.data.augmentation is missing"),
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
