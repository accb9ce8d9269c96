"""From a config (plain data) to objects: the registry, and the checks at the front door."""

import inspect
import os
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import bitjax as bj
from bitjax import data, methods, models
from bitjax.training import hosts, run_folder
from bitjax.training.checkpoint import Checkpoints
from bitjax.training.parallel import Placement
from bitjax.training.runner import Run, Settings
from bitjax.training.settings import check_settings

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
    parameters = inspect.signature(registry[name]).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = sorted(n for n in parameters if n not in extra and not n.startswith("_"))
    for argument, value in arguments.items():
        if argument not in parameters and not free:
            raise ValueError(
                f"config.{key}.{argument} is no setting of {name!r} (value {value!r}); it has "
                f"{', '.join(known)}."
            )
        if argument in parameters and not _fits(value, parameters[argument].annotation):
            wanted = getattr(parameters[argument].annotation, "__name__", None)
            raise ValueError(
                f"config.{key}.{argument} must be of type "
                f"{wanted or parameters[argument].annotation}, got {value!r}."
            )
    try:
        return registry[name](**arguments, **extra)
    except (TypeError, ValueError) as error:
        raise ValueError(f"config.{key} ({name}): {error}") from error


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


def build_rules(specs: Any) -> tuple[bj.Rule, ...]:
    """Rules from (pattern, quantizer spec or None) pairs."""
    rules = []
    for i, entry in enumerate(specs):
        if not isinstance(entry, list | tuple) or len(entry) != 2:
            raise ValueError(
                f"config.rules[{i}] must be (pattern, {{'name': quantizer, ...}} or None), "
                f"got {entry!r}."
            )
        pattern, spec = entry
        quantizer = None if spec is None else make(QUANTIZERS, f"rules[{i}]", spec)
        try:
            rules.append(bj.rule(pattern, quantizer))
        except (TypeError, ValueError) as error:
            raise ValueError(f"config.rules[{i}]: {error}") from error
    return tuple(rules)


def build_budgets(specs: Any) -> tuple[bj.Budget, ...]:
    """Budgets from mappings with `metric`, `limit` and perhaps `sites`."""
    budgets = []
    for i, spec in enumerate(specs):
        try:
            budgets.append(bj.budget(**spec))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"config.budgets[{i}] must be {{'metric': ..., 'limit': ..., 'sites': pattern}}, "
                f"got {spec!r}: {error}"
            ) from error
    return tuple(budgets)


def build_method(config: Mapping[str, Any], rules: tuple[bj.Rule, ...]) -> methods.Method:
    """The method with the config's rules and budgets."""
    extra: dict[str, Any] = {}
    name = check_name(METHODS, "method", config["method"])
    parameters = inspect.signature(METHODS[name]).parameters
    if "rules" in parameters:
        extra["rules"] = rules
        if not any(rule.quantizer for rule in rules):
            raise ValueError(
                f"config.rules gives no site a quantizer, but config.method.name={name!r} "
                "quantizes: add rules, or choose full_precision."
            )
    elif rules:
        raise ValueError(
            f"config.rules has {len(rules)} rules, but config.method.name={name!r} quantizes "
            "nothing: remove them or choose another method."
        )
    limits = build_budgets(config["budgets"])
    if "budgets" in parameters:
        extra["budgets"] = limits
    elif limits:
        raise ValueError(
            f"config.budgets is not empty, but config.method.name={name!r} learns no bits: use "
            "bitpruning, or remove the budgets."
        )
    method = make(METHODS, "method", config["method"], **extra)
    for stage in method.stages:
        if stage.steps < 0:
            steps = config["method"].get("steps")
            raise ValueError(f"config.method.steps must be 0 or more, got {steps}.")
    return method


def build_settings(config: Mapping[str, Any]) -> Settings:
    """How the run trains, apart from its method."""
    return Settings(
        batch_size=config["data"]["batch_size"],
        eval_batch_size=config["data"]["eval_batch_size"],
        augmentation=config["data"]["augmentation"],
        **{k: config[k] for k in Settings._fields if k in config},
    )


def check_config(config: Mapping[str, Any]) -> methods.Method:
    """Makes what a config names, without data and without a model's variables; the method.

    Raises:
      ValueError: one line, as `build_run` would say it.
    """
    method = build_method(config, build_rules(config["rules"]))
    make(MODELS, "model", config["model"])
    check_settings(build_settings(config))
    return method


def build_data(config: Mapping[str, Any]) -> data.Dataset | data.StreamedDataset:
    """The data set, normalised as the config says."""
    spec = config["data"]
    if not data.is_known(spec["name"]):
        raise ValueError(
            f"config.data.name must be one of {sorted(data.SOURCES)}, 'tfds:NAME', 'folder:PATH' "
            f"or 'npz:PATH', got {spec['name']!r}."
        )
    try:
        dataset = data.load(
            spec["name"],
            root=spec["root"] or None,
            validation=spec["validation"],
            eval_split=spec["eval_split"],
            image_size=spec["image_size"],
            augmentation=spec["augmentation"],
            splits=spec["splits"],
        )
    except ValueError as error:
        raise ValueError(f"config.data ({spec['name']}): {error}") from error
    channels = dataset.image_shape[-1]
    for name in ("mean", "std"):
        if spec[name]:
            if len(spec[name]) != channels:
                raise ValueError(
                    f"config.data.{name} must have {channels} numbers for {spec['name']!r}, "
                    f"got {spec[name]}."
                )
            moments: dict[str, Any] = {name: tuple(float(v) for v in spec[name])}
            dataset = dataset._replace(**moments)
    data.check_dataset(dataset)
    return dataset


def load_start(init_from: str, model: Any, sample: Any) -> dict[str, Any] | None:
    """Float variables to start from; None if empty.

    Args:
      init_from: a run's folder, with `@best` for those that evaluated best, or a published file.
      model: what they are for.
      sample: of its input.
    """
    if not init_from:
        return None
    name = init_from.removesuffix("@best")
    kind = "best" if name != init_from else "checkpoints"
    path = Path(name)
    if not path.exists():
        path = Path(os.environ.get("BITJAX_DATA", ".")) / name
    seen = hosts.gather(str((path / kind).is_dir()))
    if len(set(seen)) > 1:
        raise ValueError(
            f"config.init_from={init_from!r}: host {seen.index('False')} has no {path / kind}, "
            f"which host {seen.index('True')} has. Put it on a file system that they share."
        )
    if kind == "best" and not (path / kind).is_dir():
        raise ValueError(
            f"config.init_from={init_from!r}: {path} has no folder {kind!r}. Train that run with "
            "config.keep_best=True, or leave @best away."
        )
    shapes = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), sample))
    if (path / kind).is_dir():
        with Checkpoints(path / kind) as checkpoints:
            restored = checkpoints.restore(lambda meta: {"variables": dict(shapes)})
        if restored is None:
            raise ValueError(f"config.init_from={init_from!r} has no checkpoint; finish that run.")
        return restored.state["variables"]
    loaded = hosts.on_all(lambda: models.load_resnet(path))
    found, wanted = (
        {jax.tree_util.keystr(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (loaded, dict(shapes))
    )
    for leaf in sorted(found.keys() | wanted.keys()):
        if found.get(leaf) != wanted.get(leaf):
            raise ValueError(
                f"config.init_from={init_from!r} holds {leaf} of shape {found.get(leaf)}, but "
                f"config.model has {wanted.get(leaf)}: choose the model it was trained as."
            )
    return loaded


def build_run(
    config: Any,
    workdir: str | None,
    *,
    resume: bool = True,
    source: str = "",
    place: Placement | None = None,
) -> Run:
    """A checked `Run` from a config; everything that can be wrong with it is wrong here.

    Args:
      config: a ConfigDict, see `configs/base.py`.
      workdir: the run's folder; None keeps nothing.
      resume: whether the folder may hold this run already.
      source: the config file's path, for the record.
      place: where it computes; chosen by the config unless given.

    Raises:
      ValueError: one line with key, value, expectation and remedy.
    """
    spec = plain(config)
    hosts.check_same(spec)
    rules = build_rules(spec["rules"])
    method = build_method(spec, rules)
    model = make(MODELS, "model", spec["model"])
    dataset = hosts.on_all(lambda: build_data(spec))  # one of them may lack the files
    classes = spec["model"].get("num_classes", dataset.num_classes)
    if classes != dataset.num_classes:
        raise ValueError(
            f"config.model.num_classes must be {dataset.num_classes} for {dataset.name!r}, got "
            f"{classes}."
        )
    sample = np.zeros((2, *dataset.image_shape), np.float32)
    settings = build_settings(spec)
    facts = {
        "name": spec["name"] or source.removeprefix("configs/").removesuffix(".py"),
        "model": spec["model"]["name"],
        "config": source,
        "config_hash": run_folder.config_hash(spec),
        "budget": spec["budgets"] or None,
    }
    start = load_start(spec["init_from"], model, sample)
    run = Run(method, model, dataset, start, settings, facts=facts, place=place)
    if rules:  # a rule that does nothing must not cost a download or an epoch to be found
        jax.eval_shape(bj.Quantized(model, rules).init, jax.random.PRNGKey(0), sample)
    if workdir:
        hosts.on_first(lambda: run_folder.open_run(workdir, spec, resume))
        run.folder = Path(workdir)
    return run
