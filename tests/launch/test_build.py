"""A config becomes a run, or one clear line that names key, value, expectation and remedy."""

import importlib.util
import re
import shutil
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import bitjax as bj
from bitjax.frameworks.probe import probe
from bitjax.launch.build import build_data, build_method, build_rules, build_work, open_folder
from bitjax.launch.check import run_doctor
from bitjax.launch.registry import MODELS, make
from bitjax.launch.schema import plain
from bitjax.launch.start import find_start, load_start
from bitjax.models import ImageNetResNet
from bitjax.rules import quantizer_of
from bitjax.runs.checkpoint import Checkpoints
from bitjax.training.runner import run as run_work
from bitjax.variables import site_name
from configs.base import get_config as base
from configs.cifar10.resnet20_250 import POINTS
from configs.cifar10.resnet20_long import POINTS as LONG_POINTS
from configs.cifar10.resnet20_planes import POINTS as ALLOCATED
from configs.cifar10.resnet20_solved import POINTS as UNTRAINED
from tests.data.sets import encoded, picture, write_tfds

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(p for p in ROOT.glob("configs/*/*.py") if p.parent.name != "tables")


def digits(**changes):
    """A small valid config with some keys changed; `data_name` stands for data.name."""
    config = base()
    config.model = {"name": "mlp", "features": (4,), "num_classes": 10}
    config.data.name = "digits"
    config.method = {"name": "uniform", "steps": 0}
    config.rules = ((".*", {"name": "uniform", "bits": 8}),)
    with config.unlocked():
        for key, value in changes.items():
            node = config
            *path, last = key.split("__")
            for name in path:
                node = node[name]
            if isinstance(node, ConfigDict):
                with node.ignore_type():
                    node[last] = value
            else:
                node[last] = value
    return config


WEIGHT = {"name": "uniform", "bits": 8}
LEARNED = ((".*", {"name": "bitlength"}),)
PRUNING = {"name": "bitpruning", "steps": 10}
PLANES = {"name": "bottleneck", "float_steps": 5, "steps": 5}
CODES = {"name": "tsq", "code_steps": 5, "fine_tune_steps": 5}
TERNARY = ((".*/kernel", {"name": "ternary", "fit": "stored"}),)
TEXT = {
    "data__name": f"text:{__file__}",
    "data__validation": 1,
    "data__eval_split": "validation",
}
BUDGET = {"metric": "bits", "limit": 4.0}
WRONG = {
    "unknown method": (
        {"method": {"name": "bitprunning"}},
        r"config.method.name must be one of \['bitpruning', .*'uniform'\], got 'bitprunning'",
    ),
    "no method": ({"method": {"name": ""}}, "config.method.name must be one of .*, got ''"),
    "unknown argument of a method": (
        {"method": {"name": "lsq", "step": 3}},
        r"config.method.step is no setting of 'lsq' \(value 3\); it has .*steps",
    ),
    "missing argument of a method": (
        {"method": {"name": "lsq"}},
        "config.method.steps is missing: 'lsq' needs it",
    ),
    "wrong type for a method": (
        {"method": {"name": "lsq", "steps": "many"}},
        "config.method.steps must be of type int, got 'many'",
    ),
    "unknown setting beside a recipe": (
        {"method": {"name": "lsq", "steps": 3, "learning": 0.1}},
        r"config.method.learning is no setting of 'lsq' \(value 0.1\); it has average, dampen",
    ),
    "wrong type in a recipe": (
        {"method": {"name": "lsq", "steps": 3, "warmup": 0.5}},
        "config.method.warmup must be of type int, got 0.5",
    ),
    "teacher out of bounds": (
        {"method": {"name": "lsq", "steps": 3, "distill": 2.0}},
        r"config.method.distill must be in \[0, 1\], got 2",
    ),
    "negative steps": (
        {"method": {"name": "lsq", "steps": -4}},
        "config.method.steps must be an integer of 0 or more, got -4",
    ),
    "unknown model": (
        {"model": {"name": "resnet21"}},
        r"config.model.name must be one of \[.*'mlp', .*'resnet20', .*got 'resnet21'",
    ),
    "unknown argument of a model": (
        {"model": {"name": "mlp", "width": 3}},
        r"config.model.width is no setting of 'mlp' \(value 3\); it has .*features",
    ),
    "wrong type for a model": (
        {"model": {"name": "small_cnn", "width": 1.5}},
        "config.model.width must be of type int, got 1.5",
    ),
    "wrong number of classes": (
        {"model__num_classes": 5},
        "config.model.num_classes must be 10 for 'digits', got 5",
    ),
    "unknown writer": (
        {"writers": ("tensorbord",)},
        "config.writers must be among tensorboard, wandb, mlflow or .*got 'tensorbord'",
    ),
    "writer that does not import": (
        {"writers": ("no_such_module:Mine",)},
        r"config.writers \(no_such_module:Mine\): ModuleNotFoundError: No module named",
    ),
    "unknown data": (
        {"data__name": "imagenet"},
        r"config.data.name must be one of \['cifar10', 'digits', .*got 'imagenet'",
    ),
    "unknown split": (
        {"data__eval_split": "valid"},
        r"config.data.eval_split must be one of .*'validation'\], got 'valid'",
    ),
    "too much held out": (
        {"data__validation": 5000},
        "config.data.validation must be less than the 1437 .*got 5000",
    ),
    "a key of tokens for images": (
        {"data__context": 64},
        "config.data.context is for tokens: and text: sets, got 64 for digits; leave it 0",
    ),
    "a key of images for tokens": (
        {**TEXT, "data__mean": (0.5,)},
        "config.data.mean must be empty, no images are there, for 'text:",
    ),
    "an augmentation for tokens": (
        {**TEXT, "data__augmentation": "shift"},
        "config.data.augmentation is for images, got 'shift' for text:",
    ),
    "a context that scores nothing": (
        {**TEXT, "data__context": 1},
        "config.data.context must be at least 2, got 1",
    ),
    "unknown augmentation": (
        {"data__augmentation": "flip"},
        r"config.data.augmentation must be one of .*got 'flip'; did you mean 'crop_flip'",
    ),
    "mean of another number of channels": (
        {"data__mean": (0.5, 0.5, 0.5)},
        "config.data.mean must have 1 numbers for 'digits', got",
    ),
    "NaN as the mean": (
        {"data__mean": (float("nan"),)},
        r"config.data.mean\[0\] must be finite, and no larger than float32 can hold, got nan",
    ),
    "empty batches": (
        {"data__batch_size": 0},
        "config.data.batch_size must be an integer in .*got 0",
    ),
    "never logging": ({"log_every": 0}, "config.log_every must be an integer of 1 or more, got 0"),
    "missing files": (
        {"data__name": "cifar10", "data__root": "/no/such/folder"},
        "/no/such/folder/cifar10/cifar10_train_1.npz is missing; copy it again",
    ),
    "TFDS set that is not prepared": (
        {"data__name": "tfds:cifar10", "data__root": "/no/such/folder"},
        "tfds:cifar10 is not prepared in /no/such/folder/cifar10; prepare it by `bitjax "
        "prepare tfds:cifar10` with the root /no/such/folder",
    ),
    "TFDS set that does not exist": (
        {"data__name": "tfds:cifar11", "data__root": "/no/such/folder"},
        r"config.data.name: TFDS has no data set 'cifar11'; did you mean tfds:",
    ),
    "folder that is missing": (
        {"data__name": "folder:no/such", "data__root": "/folder"},
        "folder:no/such: /folder/no/such is not a folder; expected PATH/train/CLASS",
    ),
    "random crops of a set in memory": (
        {"data__augmentation": "random_resized_crop"},
        r"config.data.augmentation 'random_resized_crop' is for tfds: and folder:",
    ),
    "unknown quantizer": (
        {"rules": ((".*", {"name": "uniformm"}),)},
        r"config.rules\[0\].name must be one of \['binary', 'bitlength', .*got 'uniformm'",
    ),
    "unknown argument of a quantizer": (
        {"rules": ((".*", {"name": "uniform", "bit": 3}),)},
        r"config.rules\[0\].bit is no setting of 'uniform' \(value 3\); it has bits,",
    ),
    "bits out of range": (
        {"rules": (("dense1/.*", WEIGHT), (".*", {"name": "uniform", "bits": 17}))},
        r"config.rules\[1\].bits must be an integer in \[1, 16\], got 17",
    ),
    "fractional bits where they are fixed": (
        {"rules": ((".*", {"name": "uniform", "bits": 4.5}),)},
        r"config.rules\[0\].bits must be an integer in .*, got 4.5; bitlength\(\)",
    ),
    "unknown choice of a quantizer": (
        {"rules": ((".*", {"name": "uniform", "range": "max"}),)},
        r"config.rules\[0\].range must be one of .*got 'max'",
    ),
    "quantizer that is no mapping": (
        {"rules": ((".*", "uniform"),)},
        r"config.rules\[0\] must be \{'name': ..., settings\}, got 'uniform'",
    ),
    "rule that is no pair": (
        {"rules": (".*",)},
        r"config.rules\[0\] must be \(pattern, .*got '.\*'",
    ),
    "pattern that is no text": (
        {"rules": (([], WEIGHT),)},
        r"config.rules\[0\] must be \(pattern, .*got \[\[\], \{'name': 'uniform', 'bits': 8\}\]",
    ),
    "pattern that is no expression": (
        {"rules": (("(stem/.*", WEIGHT),)},
        r"config.rules\[0\]: `pattern` must be a regular expression, got '\(stem/.\*'",
    ),
    "rule that matches nothing": (
        {"rules": (("stem/.*", WEIGHT), (".*", WEIGHT))},
        r"config.rules: rule 'stem/.\*' does nothing: .* Sites: dense1/kernel, dense1/input",
    ),
    "no rules": (
        {"rules": ()},
        "config.rules gives no site a quantizer, but config.method.name='uniform' quantizes: add",
    ),
    "rules without a quantizer": (
        {"rules": ((".*", None),)},
        "config.rules gives no site a quantizer",
    ),
    "rules of a float method": (
        {"method": {"name": "full_precision", "steps": 3}},
        "config.rules has 1 rules, but config.method.name='full_precision' quantizes nothing",
    ),
    "budgets of fixed bits": (
        {"budgets": ({"metric": "bits", "limit": 4.0},)},
        "config.budgets is not empty, but config.method.name='uniform' chooses no bits",
    ),
    "unknown metric": (
        {"method": PRUNING, "rules": LEARNED, "budgets": ({"metric": "size", "limit": 4.0},)},
        r"config.budgets\[0\].metric must be one of .*got 'size'",
    ),
    "budget without a limit": (
        {"method": PRUNING, "rules": LEARNED, "budgets": ({"metric": "bits"},)},
        r"config.budgets\[0\].limit is missing: 'budget' needs it",
    ),
    "budget on sites that are not there": (
        {"method": PRUNING, "rules": LEARNED, "budgets": ({**BUDGET, "sites": "nope"},)},
        r"config.method \(bitpruning\): the budget on bits names sites 'nope', which match none",
    ),
    "budget that the least bits miss": (
        {"method": PRUNING, "rules": LEARNED, "budgets": ({**BUDGET, "limit": 0.1},)},
        "the budget of 0.1 on bits of sites '.*' cannot be met: the fewest bits allowed cost 1. R",
    ),
    "width below 1": (
        {"model": {"name": "resnet20", "width": -3}},
        r"config.model.width must be an integer in \[1, 65536\], got -3",
    ),
    "dtype that is none": (
        {"model": {"name": "mlp", "dtype": "int7"}},
        r"config.model.dtype must be one of .*, got 'int7'",
    ),
    "budget with a further key": (
        {"method": PRUNING, "rules": LEARNED, "budgets": ({**BUDGET, "site": "nope"},)},
        r"config.budgets\[0\].site is no setting of 'budget' \(value 'nope'\); it has limit, metr",
    ),
    "budget that is no mapping": (
        {"method": PRUNING, "rules": LEARNED, "budgets": (3,)},
        r"config.budgets\[0\] must be \{'metric': ..., 'limit': ..., 'sites': pattern\}, got 3",
    ),
    "weights of sites that are not there": (
        {"method": {**PRUNING, "gamma": 0.1, "criterion": {"nope": 1.0}}, "rules": LEARNED},
        "config.method.criterion weighs 'nope', which is no site. Sites: dense1/kernel",
    ),
    "unknown criterion": (
        {"method": {**PRUNING, "criterion": "equals"}, "rules": LEARNED},
        "config.method.criterion must be one of .*, got 'equals'",
    ),
    "ties of sites that are not there": (
        {"method": {**PRUNING, "tied": ("nope",)}, "rules": LEARNED},
        "config.method.tied 'nope' matches no site that learns its bits. Sites that do: dense1/",
    ),
    "bits that nothing learns": (
        {"method": PRUNING},
        r"config.method \(bitpruning\): bitpruning has no bits to learn: give at least one site",
    ),
    "negative steps of a float stage": (
        {"method": {**PLANES, "float_steps": -1}},
        "config.method.float_steps must be an integer of 0 or more, got -1",
    ),
    "planes of no site, behind a float stage": (
        {"method": PLANES},
        r"config.method \(bottleneck\): allocate has no planes to choose: give at least one",
    ),
    "rate out of bounds, behind a float stage": (
        {"method": {**PLANES, "rate": 9.0}},
        r"config.method.rate must be in \[",
    ),
    **{
        f"{name}={value} of tsq's solver, behind two stages": (
            {"method": {**CODES, name: value}, "rules": TERNARY},
            rf"config.method.{name} must be .*, got {re.escape(repr(value))}",
        )
        for name, value in (
            ("ridge", -1.0),
            ("positions", 0),
            ("starts", 0),
            ("iterations", -1),
            ("target", "code"),
            ("strengths", [-1.0]),
            ("calibration_batches", 0),
            ("fine_tune_steps", -1),
        )  # fmt: skip
    },
    "kernels that tsq cannot solve": (
        {"method": CODES, "rules": ((".*/input", WEIGHT), ("head/kernel", WEIGHT))},
        r"config.method \(tsq\): tsq has no kernel to solve",
    ),
    "argument that the config has elsewhere": (
        {"method": {"name": "lsq", "steps": 3, "rules": ()}},
        "config.method.rules is no setting of 'lsq'",
    ),
    "name that is no text": (
        {"rules": ((".*", {"name": ["uniform"]}),)},
        r"config.rules\[0\].name must be one of .*, got \['uniform'\]",
    ),
    "model that is too large for the images": (
        {"model": {"name": "vgg16"}},
        r"config.model \(vgg16\) fails on \(2, 8, 8, 1\) images of 'digits': `x` must have images",
    ),
    "features that are no numbers": (
        {"model": {"name": "mlp", "features": "abc", "num_classes": 10}},
        r"config.model.features must be a list, each an integer in \[1, 65536\], got 'abc'",
    ),
    "mean that is no number": (
        {"data__mean": ("a",)},
        r"config.data.mean must have 1 numbers for 'digits', got \['a'\]",
    ),
    "batch that takes all memory": (
        {"data__batch_size": 2**31},
        r"config.data.batch_size must be an integer in \[1, 65536\], got 2147483648",
    ),
    "more devices than there are": ({"devices": 99}, "config.devices must be at most [0-9]+, what"),
    "start with an endless name": ({"init_from": "x" * 5000}, "x is missing; give the path of"),
    "missing start": (
        {"init_from": "no/such/run"},
        "no/such/run is missing; give the path of",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_config_is_one_line_before_any_training(name, tmp_path):
    changes, message = WRONG[name]
    with pytest.raises((ValueError, OSError), match=message) as caught:
        build_work(digits(**changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists(), "the folder is free for the corrected config"


def test_a_layer_that_cannot_be_quantized_is_named_where_a_rule_asks_for_it(monkeypatch):
    class Normed(nn.Module):
        num_classes: int = 10

        @nn.compact
        def __call__(self, x, train: bool = False):
            x = nn.LayerNorm(name="norm")(x.reshape(len(x), -1))
            return nn.Dense(self.num_classes, name="head")(x)

    monkeypatch.setitem(MODELS, "normed", Normed)
    config = digits(model={"name": "normed"}, rules=(("norm/.*", WEIGHT), (".*", WEIGHT)))
    with pytest.raises(ValueError, match="'norm/bias', which no product reads") as caught:
        build_work(config)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_config_makes_sites_of_the_addends_of_sums(monkeypatch):
    class Residual(nn.Module):
        num_classes: int = 10

        @nn.compact
        def __call__(self, x, train: bool = False):
            x = nn.relu(nn.Dense(4, name="first")(x.reshape(len(x), -1)))
            return nn.Dense(self.num_classes, name="head")(x + nn.Dense(4, name="second")(x))

    monkeypatch.setitem(MODELS, "residual", Residual)
    rules = (("sum0/.*", {"name": "uniform", "bits": 6}), (".*", WEIGHT))
    config = digits(model={"name": "residual"}, rules=rules)
    with pytest.raises(ValueError, match="rule 'sum0/.*' does nothing"):
        build_work(config)
    config.sums = True
    work = build_work(config)
    assert {"sum0/left", "sum0/right"} < {*work.costs}
    variables = work.enter(work.method.stages[0], work.start)
    assert float(variables["quant"]["sum0"]["right"]["bits"]) == 6
    looked_at = run_doctor(work)
    first, again = (looked_at.enter(work.method.stages[0], work.start)["quant"] for _ in range(2))
    pairs = zip(*map(jax.tree.leaves, (first, again, variables["quant"])), strict=True)
    assert all(a is b and np.array_equal(a, c) for a, b, c in pairs), "they are made once"


def test_the_doctor_prints_its_findings_and_stops_a_run_in_one_line(capsys):
    work = build_work(digits(rules=((".*", {"name": "uniform", "bits": 1}),)))
    with pytest.raises(ValueError, match="the doctor stopped the run before its first") as caught:
        run_doctor(work)
    assert "\n" not in str(caught.value)
    assert "error    dense1/kernel: is quantized to all zeros" in capsys.readouterr().out


def test_a_damaged_file_of_data_is_named(tmp_path, data_root):
    folder = tmp_path / "fashion_mnist"
    shutil.copytree(data_root / "fashion_mnist", folder)
    path = folder / "train-labels-idx1-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    config = digits(data__name="fashion_mnist", data__root=str(tmp_path))
    with pytest.raises(ValueError, match=f"{path} is damaged: expected md5 .*download it again"):
        build_work(config)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="the folder '.*/file/run' must be one .*hoose another"):
        open_folder(digits(), tmp_path / "file" / "run")
    with pytest.raises(ValueError, match="the folder '.*/file' must be one that can be written"):
        open_folder(digits(), tmp_path / "file")


def test_a_folder_that_holds_another_run_is_kept_and_the_difference_shown(tmp_path):
    open_folder(digits(), tmp_path)
    open_folder(digits(seed=1), tmp_path)  # nothing had begun under the other config
    (tmp_path / "metrics.jsonl").write_text("")
    open_folder(digits(seed=1), tmp_path)
    with pytest.raises(
        ValueError, match=r"different config \(.*seed: 1 there, 2 now.*\)"
    ) as caught:
        open_folder(digits(seed=2, data__batch_size=64), tmp_path)
    assert "data.batch_size: 128 there, 64 now" in str(caught.value)
    with pytest.raises(ValueError, match="holds a run already, and it is not to be resumed"):
        open_folder(digits(seed=1), tmp_path, resume=False)


def test_a_start_must_fit_the_model(tmp_path, monkeypatch, data_root):
    model = MODELS["resnet32"]()
    path = data_root / "pretrained" / "cifar10_resnet20.npz"
    sample = np.zeros((1, 32, 32, 3), np.float32)
    with pytest.raises(ValueError, match=r"config.init_from=.* missing: \S+/stage1/block4/\S+ "):
        load_start(find_start(str(path)), model, sample)
    monkeypatch.setenv("BITJAX_DATA", str(data_root))
    start = find_start("pretrained/cifar10_resnet20.npz")
    found = load_start(start, MODELS["resnet20"](), sample)
    assert found["params"]["head"]["kernel"].shape == (64, 10)
    folded = load_start(start, MODELS["resnet20"](norm="none"), sample)
    assert [*folded] == ["params"] and folded["params"]["stem"]["bias"].shape == (16,)
    start, tokens = find_start("stories/llama_260k.npz"), np.ones((1, 4), np.int32)
    found = load_start(start, MODELS["llama"](), tokens)
    assert found["params"]["layers_4"]["attention"]["wk"]["kernel"].shape == (64, 32)
    with pytest.raises(ValueError, match=r"config.init_from=.* missing: params/layers_5/\S+ "):
        load_start(start, MODELS["llama"](layers=6), tokens)


def test_a_run_starts_from_another_runs_final_weights(tmp_path):
    config = digits(method={"name": "full_precision", "steps": 0}, rules=())
    work = build_work(config)
    run_work(work, open_folder(config, tmp_path / "float"), show=False)
    again = build_work(digits(init_from=str(tmp_path / "float"), seed=9))
    jax.tree.map(np.testing.assert_array_equal, again.start, work.start)
    with pytest.raises(ValueError, match=r"float has no folder 'best'. Train .*keep_best=True"):
        build_work(digits(init_from=str(tmp_path / "float@best")))
    better = jax.tree.map(lambda leaf: leaf + 1, work.start)
    with Checkpoints(tmp_path / "float" / "best") as best:
        best.save(0, {"variables": better}, {"accuracy": 0.5})
    config = digits(init_from=str(tmp_path / "float@best"), seed=9)
    again = build_work(config)
    jax.tree.map(np.testing.assert_array_equal, again.start, better)
    # Of a quantized run only what the float model has is taken.
    run_work(again, open_folder(config, tmp_path / "quantized"), show=False)
    third = build_work(digits(init_from=str(tmp_path / "quantized")))
    jax.tree.map(np.testing.assert_array_equal, third.start, better)
    shutil.rmtree(tmp_path / "float" / "best")
    shutil.copytree(tmp_path / "float" / "checkpoints", tmp_path / "float" / "best")
    with pytest.raises(
        ValueError, match="the weights that the run in .*quantized' starts from are"
    ):
        run_work(build_work(config), tmp_path / "quantized", show=False)


def test_make_takes_scalars_of_the_annotated_types_only():
    def thing(count: int = 1, rate: float | None = None, flag: bool = False, free=None):
        return count, rate, flag, free

    registry = {"thing": thing}
    good = {"name": "thing", "count": 3, "rate": 2, "flag": True, "free": "anything"}
    assert make(registry, "x", good) == (3, 2, True, "anything")
    assert make(registry, "x", {"name": "thing", "rate": None}) == (1, None, False, None)
    for key, value in (("count", True), ("count", 1.5), ("rate", "1"), ("flag", 1)):
        with pytest.raises(ValueError, match=rf"config.x.{key} must be of type .*, got {value!r}"):
            make(registry, "x", {"name": "thing", key: value})


ARGUMENTS = {
    "bitpruning": ("", "costs"),
    "resnet20_250": POINTS,
    "resnet20_solved": UNTRAINED,
    "resnet20_long": LONG_POINTS,
    "resnet20_planes": ALLOCATED,
    "resnet8_projected": ("float", "solved_t"),
    "resnet20_uniform": ("w8a8", "w4a4"),
    "resnet20_bottleneck_a4": (
        "300",
        "0,uniform",
        "0,window",
        "0,truncated",
        "0,lasso",
        "0,solved",
    ),
    "resnet20_tsq_a2": ("a2", "a4", "a4_tuned", "float"),
    "vgg_small_hwgq": ("w128", "w32"),
    "vgg_small_twn_a2": ("w128", "w32"),
    "vgg_small_tsq_a2": ("w128", "w32"),
    "vgg_small_float": ("w128", "w32"),
}
ARGUMENTS |= {
    "imagenet/float": ("resnet18", "resnet50", "vgg16", "mobilenet_v2", "alexnet_torch", "alexnet"),
    "imagenet/bitpruning": ("resnet18", "alexnet_torch", "mobilenet_v2"),
    "imagenet/tsq": ("alexnet", "vgg16"),
    "imagenet/bottleneck": ("4", "5"),
    "imagenet/squeezenet": ("solved_w4", "bottleneck_w4a8", "measured_w4a8"),
}
SIDES = {
    "alexnet": 63,
    "alexnet_bn": 67,
    "squeezenet": 35,
}  # the smallest they take; others take 32


VARIANTS = {"resnet20_bottleneck_a3", "resnet20_bottleneck_a3_5", "resnet20_bottleneck_a5"}
VARIANTS |= {"vgg_small_hwgq", "vgg_small_twn_a2", "hwgq", "twn", "resnet20_int8"}
VARIANTS |= {
    "resnet20_long",
    "resnet20_planes",
    "resnet8_projected",
    "uniform_w3",
    "solved_w3",
    "solved_w2",
    "bitpruning_wa",
    "resnet20_uniform",
}


def arguments(path):
    name = path.stem if path.parent.name != "imagenet" else f"imagenet/{path.stem}"
    return ARGUMENTS.get(name, ("",))


def configs():
    for path in CONFIGS:
        for arg in arguments(path):
            name = f"{path.parent.name}/{path.stem}{':' if arg else ''}{arg}"
            # Variants of one file differ in little, and ImageNet's are slow tests themselves.
            more = arg != arguments(path)[0] or path.parent.name == "imagenet"
            more = more or path.stem in VARIANTS
            yield pytest.param(path, arg, id=name, marks=[pytest.mark.slow] if more else [])


@pytest.mark.parametrize(("path", "arg"), list(configs()))
def test_every_config_builds_its_method_its_model_and_its_rules(path, arg):
    config = config_of(path, arg)
    spec = plain(config)
    rules = build_rules(spec["rules"])
    method = build_method(spec, rules)
    model = make(MODELS, "model", spec["model"])
    side, of_tokens = SIDES.get(spec["model"]["name"], 32), bool(spec["data"]["context"])
    image = (8, 8, 1) if spec["data"]["name"] == "digits" else (side, side, 3)
    x = np.zeros((2, 8), np.int32) if of_tokens else np.zeros((2, *image), np.float32)
    wrap = partial(bj.Quantized, model, sums=spec["sums"])
    sites = bj.site_costs(wrap(), x)
    for chosen_rules in {id(stage.rules): stage.rules for stage in method.stages}.values():
        shapes = jax.eval_shape(wrap(chosen_rules).init, jax.random.PRNGKey(0), x)
        chosen = {site for site in sites if quantizer_of(chosen_rules, site)}
        # Ends stay float, and where there is no rule of theirs some inputs that nothing trains.
        own = of_tokens or path.stem in ("squeezenet", "resnet20_solved", "resnet8_projected")
        if spec["method"]["name"] not in ("bottleneck", "hwgq", "twn", "tsq") and not own:
            assert chosen == (set(sites) if rules else set())
        assert set(bj.bits_of(shapes)) == chosen
    heading = path.read_text().split('"""')[1]
    name = path.relative_to(ROOT / "configs").with_suffix("")
    assert re.search(rf"bitjax (train|sweep) {name}\b", heading), (
        "the command in its heading is its own"
    )


def config_of(path, arg):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg) if arg else module.get_config()


IMAGENET = [  # those that need all of it
    (path, arg)
    for path in CONFIGS
    if path.parent.name == "imagenet" and path.stem != "squeezenet"
    for arg in arguments(path)
]


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A prepared TFDS set of ImageNet's name and form, of four images a split."""
    root = tmp_path_factory.mktemp("tfds")
    splits = {
        split: [
            {"image": encoded(picture(start + i, 70 + i, 80), "JPEG"), "label": 300 * i, "id": ""}
            for i in range(4)
        ]
        for split, start in (("train", 0), ("validation", 9))
    }
    write_tfds(root, "imagenet2012", splits, shape=(None, None, 3), num_classes=1000)
    return root


def test_imagenet_configs_are_refused_where_it_is_not_prepared(tmp_path, imagenet):
    config = config_of(ROOT / "configs/imagenet/float.py", "resnet50")
    config.data.root = str(tmp_path)
    with pytest.raises(FileNotFoundError, match="prepare tfds:imagenet2012` with"):
        build_work(config)
    config.data.root = str(imagenet)
    dataset = build_data(plain(config))
    assert dataset.image_shape == (224, 224, 3) and dataset.shorter == 256
    assert dataset.random_crop and dataset.num_classes == 1000
    assert dataset.eval_split == "validation"


def test_all_imagenet_configs_read_the_same_images():
    # What they are compared with, and what they start from, must have seen the same pictures.
    def images(path, arg):
        spec = plain(config_of(path, arg))
        assert spec["model"]["num_classes"] == 1000
        size = {"alexnet_bn": 227}.get(spec["model"]["name"], 0)  # 0: the data set's, 224
        assert spec["data"].pop("image_size", 0) == size
        return spec["data"]

    assert images(*IMAGENET[0])["name"] == "tfds:imagenet2012"
    assert all(images(*config) == images(*IMAGENET[0]) for config in IMAGENET)


def shrink(config, monkeypatch):
    """Makes a config's model small; dense layers of 4096 take minutes to solve."""
    config.model.width = 2
    if config.model.name == "resnet50":
        small = partial(ImageNetResNet, blocks=(1, 1), bottleneck=True)
        monkeypatch.setitem(MODELS, "resnet50", small)
    if config.model.name == "resnet18":
        monkeypatch.setitem(MODELS, "resnet18", partial(ImageNetResNet, blocks=(1, 1)))
    if config.model.name == "mobilenet_v2":
        config.model.width = 4  # its least
        config.model.stages = ((1, 2, 1, 1), (6, 3, 2, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "arg"),
    # A VGG has AlexNet's kinds of layers, but compiles for two minutes.
    [c for c in IMAGENET if c[1] not in ("5", "vgg16")],
    ids=lambda p: getattr(p, "stem", p),
)
def test_every_imagenet_config_takes_a_step_on_images_of_imagenets_form(
    path, arg, imagenet, monkeypatch
):
    config = config_of(path, arg)
    config.data.root = str(imagenet)
    config.data.image_size = SIDES.get(config.model.name, 32)
    config.update(init_from="", calibration_size=2)
    config.data.update(batch_size=2, eval_batch_size=4)
    config.method.update({"warmup": 0, "code_steps" if "tsq" in path.stem else "steps": 1})
    shrink(config, monkeypatch)
    if "bitpruning" in path.stem:
        config.method.update(fine_tune=0.0, settle=0.0)
    if "calibration_batches" in config.method:
        config.method.calibration_batches = 1
    result, _ = run_work(build_work(config), show=False)
    assert result["steps"] == 1 and np.isfinite(result["stages"][-1]["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet_torch", "resnet18", "mobilenet_v2"])
def test_the_rules_of_bitpruning_give_a_sign_where_the_network_has_one(name, monkeypatch):
    config = config_of(ROOT / "configs" / "imagenet" / "bitpruning.py", name)
    shrink(config, monkeypatch)
    spec = plain(config)
    side = SIDES.get(spec["model"]["name"], 32)
    x = np.random.default_rng(0).normal(size=(4, side, side, 3)).astype(np.float32)
    model = make(MODELS, "model", spec["model"])

    @jax.jit
    def run(x):
        variables = model.init(jax.random.key(0), x)
        seen = probe(model, variables, (x,), {}, lambda seen: jnp.min(seen.raw("input")))
        return {site_name(layer, "input"): least for layer, least in seen.records}

    found = {site: value < 0 for site, value in run(x).items()}
    rules = build_rules(spec["rules"])
    assert {site: quantizer_of(rules, site).traits.numbers == "signed" for site in found} == found


@pytest.mark.slow
def test_the_data_and_the_starts_of_all_configs_are_there(data_root, monkeypatch):
    monkeypatch.setenv("BITJAX_DATA", str(data_root))
    seen = set()
    for path, arg in (param.values for param in configs()):
        spec = plain(config_of(path, arg))
        needs = (spec["data"]["name"], spec["init_from"], spec["model"]["name"])
        made = (needs[1], spec["data"]["train_from"])  # by a run, or drawn
        if needs in seen or needs[0].startswith("tfds:") or any(m[:5] == "runs/" for m in made):
            continue
        seen.add(needs)
        data = build_data(spec)
        assert data.num_train >= 500 and data.num_eval > 100
        model = make(MODELS, "model", spec["model"])
        batch = data.eval_sample(1)
        sample = batch["tokens"] if "tokens" in batch else np.float32(batch["image"])
        start = load_start(find_start(spec["init_from"]), model, sample)
        assert (start is None) == (not spec["init_from"])
    assert len(seen) == 6
