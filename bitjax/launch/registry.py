"""Turns names in a config into models, quantizers and methods: ours by name, others by import path.

A name with a colon, `my_package.nets:Net`, is looked up in the module before it; the command also
finds modules in the folder that it is called in.
"""

import contextlib
import difflib
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

import bitjax as bj
from bitjax import methods, models
from bitjax.checks import Table, check, choice, integer, number, several
from bitjax.launch.programs import keys_named, program, shown
from bitjax.training.task import TASKS as TASKS
from bitjax.training.task import Task

MODELS: dict[str, Callable] = {
    "mlp": models.MLP,
    "small_cnn": models.SmallCNN,
    "resnet18": models.resnet18,
    "resnet20": models.resnet20,
    "resnet32": models.resnet32,
    "resnet44": models.resnet44,
    "resnet50": models.resnet50,
    "resnet56": models.resnet56,
    "vgg_small": models.VGGSmall,
    "vgg16": models.VGG16,
    "alexnet": models.AlexNet,
    "alexnet_bn": models.AlexNetBN,
    "mobilenet_v2": models.MobileNetV2,
    "squeezenet": models.SqueezeNet,
    "llama": models.Llama,
    "gpt2": models.GPT2,
}


QUANTIZERS: dict[str, Callable] = {
    "uniform": bj.uniform,
    "lsq": bj.lsq,
    "pact": bj.pact,
    "bitlength": bj.bitlength,
    "bitplane": bj.bitplane,
    "halfwave": bj.halfwave,
    "hwgq": bj.hwgq,
    "ternary": bj.ternary,
    "binary": bj.binary,
    "low_bit": bj.low_bit,
}


METHODS: dict[str, Callable] = {
    "full_precision": methods.full_precision,
    "uniform": methods.uniform,
    "lsq": methods.lsq,
    "pact": methods.pact,
    "bitpruning": methods.bitpruning,
    "bottleneck": methods.bottleneck,
    "hwgq": methods.hwgq,
    "twn": methods.twn,
    "tsq": methods.tsq,
    "solved": methods.solved,
    "measured": methods.measured,
}

_SIZE = integer(1, 65_536)
# What fields of our models may be; JAX would refuse them in the middle of a call.
_FIELDS: Table = {
    "num_classes": _SIZE,
    **dict.fromkeys(("width", "layers", "heads", "kv_heads", "hidden", "context"), _SIZE),
    "vocab_size": integer(1, 1_048_576),
    "features": several(_SIZE),
    "stages": several(several(_SIZE, 4), 1),
    "dropout": number(0, 1, below=True),
    "norm": choice("batch", "none"),
    "dtype": choice(None, "float32", "bfloat16", "float16"),
}

_KINDS: dict[str, tuple[type, str]] = {
    "model": (nn.Module, "a Flax Linen Module"),
    "rules": (bj.Quantizer, "a Quantizer"),
    "budgets": (bj.Budget, "a Budget"),
    "method": (methods.Method, "a Method"),
    "task": (Task, "a Task"),
}


def make(registry: Mapping[str, Callable], key: str, spec: Mapping[str, Any], **extra: Any) -> Any:
    """Calls what `spec['name']` names with the rest of `spec`; errors name the config's key."""
    if not isinstance(spec, Mapping):
        raise ValueError(f"config.{key} must be {{'name': ..., settings}}, got {shown(spec)}.")
    factory, name = find(registry, key, spec), spec["name"]
    arguments = {k: v for k, v in spec.items() if k != "name"}
    _check_arguments(factory, key, name, arguments, extra)
    kind, title = _kind(key)
    # Ours raise only these for what a user can put right.
    kinds = (TypeError, ValueError) if name in registry else (BaseException,)
    keys = keys_of(factory, key) | {a: f"config.{key}.{a}" for a in arguments}
    with keys_named(keys), program(f"config.{key} ({name})", kinds=kinds):
        if factory in MODELS.values():
            check(_FIELDS, arguments)
        made = factory(**arguments, **extra)
        if not isinstance(made, kind):
            raise ValueError(f"it must give {title}, got {type(made).__name__}.")
    return made


def keys_of(factory: Callable, key: str) -> dict[str, str]:
    """The config's keys of a factory's arguments."""
    own = {name: f"config.{key}.{name}" for name in _settings_of(factory)[0]}
    return own | {"rules": "config.rules", "budgets": "config.budgets"}


def find(registry: Mapping[str, Callable], key: str, spec: Mapping[str, Any]) -> Callable:
    """What `spec['name']` names, a name of the registry or an import path; else a ValueError."""
    name = spec.get("name", "")
    if isinstance(name, str) and name in registry:
        return registry[name]
    module, colon, attribute = str(name).partition(":")
    if not colon:
        raise ValueError(
            f"config.{key}.name must be one of {sorted(registry)}, got {shown(name)}; your own is "
            "named by its import path, 'package.module:Name'."
        )
    where = f"config.{key}.name={name!r}"
    found = _attribute(_imported(module, where), attribute, where)
    kind, title = _kind(key)
    with contextlib.suppress(TypeError, ValueError):  # no signature, no function
        inspect.signature(found)
        if not isinstance(found, kind):
            return found
    raise ValueError(f"{where} must name a class or a function that gives {title}.")


def _kind(key: str) -> tuple[type, str]:
    return _KINDS.get(key.partition("[")[0], (object, "it"))


def _imported(module: str, where: str) -> types.ModuleType:
    if module.partition(".")[0] in sys.stdlib_module_names:  # config.json may be somebody else's
        raise ValueError(f"{where}: {module} is of Python's own library; name a module of yours.")
    named = module or "a module without a name"
    fix = "install it, or work in the folder that has it."
    with program(f"{where}: {named} does not import", fix):
        return importlib.import_module(module)


def _attribute(module: types.ModuleType, name: str, where: str) -> Any:
    if not hasattr(module, name):
        known = [each for each in vars(module) if not each.startswith("_")]
        close = difflib.get_close_matches(name, known, 3, 0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else f"it has {known[:8]}."
        raise ValueError(f"{where}: {module.__name__} has no {name!r}; {hint}")
    return getattr(module, name)


def _check_arguments(
    factory: Callable, key: str, name: str, arguments: Mapping[str, Any], extra: Mapping[str, Any]
) -> None:
    kinds, free, needed = _settings_of(factory)
    hidden = {"name", "parent", *extra}  # the first two are Flax's
    known = sorted(n for n in kinds if n not in hidden and not n.startswith("_"))
    for argument, value in arguments.items():
        if argument in hidden or (argument not in kinds and not free):
            raise ValueError(
                f"config.{key}.{argument} is no setting of {name!r} (value {shown(value)}); it has "
                f"{', '.join(known) or 'none'}."
            )
        if argument in kinds and not _fits(value, kinds[argument]):
            wanted = getattr(kinds[argument], "__name__", None) or kinds[argument]
            raise ValueError(
                f"config.{key}.{argument} must be of type {wanted}, got {shown(value)}."
            )
    if lacks := [n for n in needed if n not in arguments and n not in hidden]:
        raise ValueError(f"config.{key}.{lacks[0]} is missing: {name!r} needs it.")


def _settings_of(factory: Callable) -> tuple[dict[str, Any], bool, list[str]]:
    """What a factory takes by name, with each annotation; whether any other name; what it needs.

    `**recipe: Unpack[Keywords]` stands for the keys of `Keywords`.
    """
    kinds, free, needed = {}, False, []
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            if typing.get_origin(parameter.annotation) is typing.Unpack:
                kinds |= typing.get_type_hints(typing.get_args(parameter.annotation)[0])
            else:
                free = True
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            kinds[name] = parameter.annotation
            needed += [name] if parameter.default is parameter.empty else []
    return kinds, free, needed


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of an annotated type; of others than plain scalars nothing is said."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = typing.get_args(annotation) if union else (annotation,)
    if not set(kinds) <= {bool, int, float, str, type(None)}:
        return True
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, tuple(kinds)) or (isinstance(value, int) and float in kinds)
