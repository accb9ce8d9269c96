"""Names in a config to models, quantizers and methods."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

import bitjax as bj
from bitjax import methods, models

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
}


def plain(config: Any) -> Any:
    """A config as dicts, lists and scalars."""
    if isinstance(config, ConfigDict | Mapping):
        return {key: plain(value) for key, value in config.items()}
    return [plain(v) for v in config] if isinstance(config, list | tuple) else config


def make(registry: Mapping[str, Callable], key: str, spec: Mapping[str, Any], **extra: Any) -> Any:
    """Calls `registry[spec['name']]` with the rest of `spec`, after checking both.

    Raises:
      ValueError: an unknown name or argument, or a wrong value; the message names the config key.
    """
    if not isinstance(spec, Mapping):
        raise ValueError(f"config.{key} must be {{'name': ..., settings}}, got {spec!r}.")
    arguments = {k: v for k, v in spec.items() if k != "name"}
    name = check_name(registry, key, spec)
    kinds, free = settings_of(registry[name])
    known = sorted(n for n in kinds if n not in extra and not n.startswith("_"))
    for argument, value in arguments.items():
        if argument not in kinds and not free:
            raise ValueError(
                f"config.{key}.{argument} is no setting of {name!r} (value {value!r}); it has "
                f"{', '.join(known)}."
            )
        if argument in kinds and not _fits(value, kinds[argument]):
            wanted = getattr(kinds[argument], "__name__", None) or kinds[argument]
            raise ValueError(f"config.{key}.{argument} must be of type {wanted}, got {value!r}.")
    try:
        return registry[name](**arguments, **extra)
    except (TypeError, ValueError) as error:
        raise ValueError(f"config.{key} ({name}): {error}") from error


def settings_of(factory: Callable) -> tuple[dict[str, Any], bool]:
    """What a factory takes by name, with each annotation, and whether it takes any other name.

    `**recipe: Unpack[Keywords]` stands for the keys of `Keywords`.
    """
    kinds, free = {}, False
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind is not parameter.VAR_KEYWORD:
            kinds[name] = parameter.annotation
        elif typing.get_origin(parameter.annotation) is typing.Unpack:
            kinds |= typing.get_type_hints(typing.get_args(parameter.annotation)[0])
        else:
            free = True
    return kinds, free


def check_name(registry: Mapping[str, Callable], key: str, spec: Mapping[str, Any]) -> str:
    """The name of a spec, if it is in the registry; a ValueError with the choices if not."""
    name = spec.get("name", "")
    if name not in registry:
        raise ValueError(f"config.{key}.name must be one of {sorted(registry)}, got {name!r}.")
    return name


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of an annotated type; of others than plain scalars nothing is said."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = typing.get_args(annotation) if union else (annotation,)
    if not set(kinds) <= {bool, int, float, str, type(None)}:
        return True
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, tuple(kinds)) or (isinstance(value, int) and float in kinds)
