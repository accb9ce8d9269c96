"""Bad configs: every key, and every argument of a method, a quantizer and a model, made wrong."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

import bitjax as bj
from bitjax.launch.build import build_work
from bitjax.launch.config_files import load_config
from bitjax.launch.registry import METHODS, MODELS, QUANTIZERS
from bitjax.runs.folder import flatten
from configs.base import get_config
from tests.bad_inputs.api import FINE, parameters_of
from tests.bad_inputs.judge import Case
from tests.bad_inputs.values import shown, wrong_values

TRAINED = {"steps": 10}
PLAIN = ((".*", {"name": "uniform", "bits": 8}),)
LEARNED = ((".*", {"name": "bitlength"}),)
STORED = ((".*/kernel", {"name": "ternary", "fit": "stored"}),)
# What each method needs besides its name: settings and rules.
NEEDS: Mapping[str, tuple[dict[str, Any], Any]] = {
    "full_precision": (TRAINED, ()),
    "bitpruning": (TRAINED, LEARNED),
    "bottleneck": ({}, (("head/input", {"name": "bitplane"}),)),
    "tsq": ({"code_steps": 10}, STORED),
    "solved": ({}, STORED),
    "measured": ({}, PLAIN),
    "twn": (TRAINED, ((".*/kernel", {"name": "ternary", "fit": "twn"}),)),
    "hwgq": (TRAINED, ((".*/kernel", {"name": "binary"}),)),
}
# Keys whose values are names or places, or that go to a factory and are made wrong there.
ELSEWHERE = {"model.name", "method.name", "rules", "budgets", "model.num_classes"}


def config(method: str = "uniform", /, **changes: Any) -> ConfigDict:
    """A small config that is right, with the keys of `changes` (dots as `__`) made other."""
    settings, rules = NEEDS.get(method, (TRAINED, PLAIN))
    made = get_config()
    made.model = {"name": "mlp", "features": (4,), "num_classes": 10}
    made.data.name = "digits"
    made.method = {"name": method, **settings}
    made.rules = rules
    if method == "measured":
        made.budgets = ({"metric": "bits", "limit": 4.0},)
    with made.unlocked(), made.ignore_type():
        for key, value in changes.items():
            node = made
            *path, last = key.split("__")
            for name in path:
                node = node[name]
            with node.ignore_type():
                node[last] = value
    return made


def build(method: str = "uniform", /, **changes: Any) -> None:
    """The front door of `bitjax train`, up to the training."""
    build_work(config(method, **changes), source="configs/x.py")


def keys() -> Iterator[Case]:
    """Every key of `configs/base.py` with values of a wrong kind."""
    yield Case("config()", build, good=True)
    for key, right in flatten(get_config().to_dict()).items():
        if key in ELSEWHERE:
            continue
        annotation = tuple if isinstance(right, tuple) else type(right)
        for value in wrong_values(key.split(".")[-1], annotation, right):
            call = functools.partial(build, **{key.replace(".", "__"): value})
            yield Case(f"config({key}={shown(value)})", call, (key.split(".")[-1],))
    for group in ("model", "data", "task", "method"):
        for value in (None, 3, "abc", [], [1]):
            yield Case(
                f"config({group}={shown(value)})",
                functools.partial(build, **{group: value}),
                (group,),
            )


def methods() -> Iterator[Case]:
    """Every argument of every method."""
    for method, factory in METHODS.items():
        settings, rules = NEEDS.get(method, (TRAINED, PLAIN))
        yield Case(f"method {method}()", functools.partial(build, method), good=True)
        for name, (annotation, right) in parameters_of(factory, settings).items():
            if name in ("rules", "budgets"):
                continue
            for value in wrong_values(name, annotation, right):
                spec = {"name": method, **settings, name: value}
                fine = shown(value) in (FINE.get((method, name)) or ())
                call = functools.partial(build, method, method=spec)
                title = f"method {method}({name}={shown(value)})"
                yield Case(title, call, (name,), may_pass=fine)
        yield Case(
            f"method {method}(no_such=3)",
            functools.partial(build, method, method={"name": method, **settings, "no_such": 3}),
            ("no_such",),
        )


def quantizers() -> Iterator[Case]:
    """Every argument of every quantizer, in a rule."""
    for quantizer, factory in QUANTIZERS.items():
        for name, (annotation, right) in parameters_of(factory, {}).items():
            for value in wrong_values(name, annotation, right):
                rules = ((".*", {"name": quantizer, name: value}),)
                yield Case(
                    f"rule {quantizer}({name}={shown(value)})",
                    functools.partial(build, rules=rules), (name,),
                )  # fmt: skip
    broken = (3, None, "abc", [], [()], [(1,)], [(".*",)], [("(", None)], [(3, None)], {},
              [(".*", 3)], [(".*", {})], [(".*", {"name": 3})], [(".*", {"name": None})],
              [(".*", {"name": "lsqq"})], [(".*", {"bits": 3})], [("no/such", {"name": "lsq"})],
              [(".*", {"name": "uniform"}), ("dense1/kernel", {"name": "lsq"})], [None], [[]],
              [(".*", [("name", "lsq")])], [(".*", {"name": "os:system"})],
              [(".*", {"name": "no.such:thing"})], [(".*", {"name": ":"})])  # fmt: skip
    for value in broken:
        yield Case(f"rules({shown(value)})", functools.partial(build, rules=value), ("rule",))


def models() -> Iterator[Case]:
    """Every field of the small models, and names that are none."""
    for model in ("mlp", "small_cnn"):
        for name, (annotation, right) in parameters_of(MODELS[model], {}).items():
            for value in wrong_values(name, annotation, right):
                spec = {"name": model, name: value}
                yield Case(
                    f"model {model}({name}={shown(value)})", functools.partial(build, model=spec),
                    (name,),
                )  # fmt: skip
    for value in (
        "",
        "mlpp",
        None,
        3,
        "os:system",
        "no.such:Net",
        ":",
        "a b:c",
        "flax.linen:Dense",
    ):
        yield Case(
            f"model name={value!r}", functools.partial(build, model={"name": value}),
            ("config.model",),
        )  # fmt: skip


def budgets() -> Iterator[Case]:
    """Every argument of a budget, in a config that takes budgets."""
    right = {"metric": "bits", "limit": 3.0}
    yield Case("budgets()", functools.partial(build, "bitpruning", budgets=(right,)), good=True)
    for name, (annotation, value) in parameters_of(bj.budget, right).items():
        for wrong in wrong_values(name, annotation, value):
            spec = ({**right, name: wrong},)
            call = functools.partial(build, "bitpruning", budgets=spec)
            yield Case(f"budgets({name}={shown(wrong)})", call, (name,))
    for value in (3, None, "abc", [3], [{}], [[]], [{"metric": "bits"}], {"metric": "bits"},
                  [{**right, "limit": 0.1}], [{**right, "sites": "no/such"}],
                  [{**right, "limits": 3}]):  # fmt: skip
        call = functools.partial(build, "bitpruning", budgets=value)
        yield Case(f"budgets({shown(value)})", call, ("budget", "sites"))


def overrides() -> Iterator[Case]:
    """Every key of a shipped config, given a text of a wrong kind on the command line."""
    name = "digits/bitpruning"
    for key, right in flatten(load_config(name).to_dict()).items():
        texts = {
            bool: ("yes please", "2", ""), int: ("3.5", "many", "", "nan", "1e9"),
            float: ("many", "", "1,5", "0x"), tuple: ("(", "[1", "__import__('os')", "a=b"),
        }.get(type(right), ())  # fmt: skip
        for text in texts:
            call = functools.partial(load_config, name, [f"--config.{key}={text}"])
            yield Case(f"--config.{key}={text}", call, (key,))
        for argument in (f"--config.{key}x=3", f"--config.{key}.x=3", f"--config.x.{key}=1"):
            yield Case(argument, functools.partial(load_config, name, [argument]), ("key",))
        if not isinstance(right, bool):
            for argument in (f"--config.{key}", f"--noconfig.{key}", f"--noconfig.{key}=1"):
                yield Case(argument, functools.partial(load_config, name, [argument]), (key,))


SURFACES = {
    "keys": keys, "methods in configs": methods, "quantizers in configs": quantizers,
    "models in configs": models, "budgets in configs": budgets, "overrides": overrides,
}  # fmt: skip
