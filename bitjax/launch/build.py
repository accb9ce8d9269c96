"""From a config (plain data) to objects: the registry, and the checks at the front door."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import bitjax as bj
from bitjax import data, methods
from bitjax.frameworks.linen import Quantized
from bitjax.launch.programs import keys_named, program, shown
from bitjax.launch.registry import METHODS, MODELS, QUANTIZERS, find, keys_of, make
from bitjax.launch.schema import check_sections, plain
from bitjax.launch.start import find_start, load_start
from bitjax.runs.folder import config_hash, open_run
from bitjax.training import hosts
from bitjax.training.identity import checksum
from bitjax.training.parallel import Placement
from bitjax.training.settings import Settings, check_settings
from bitjax.training.work import Work, make_work


def build_rules(specs: Any) -> tuple[bj.Rule, ...]:
    """Rules from (pattern, quantizer spec or None) pairs."""
    rules = []
    for i, entry in enumerate(specs):
        pair = isinstance(entry, list | tuple) and len(entry) == 2
        if not pair or not isinstance(entry[0], str):
            raise ValueError(
                f"config.rules[{i}] must be (pattern, {{'name': quantizer, ...}} or None), "
                f"got {shown(entry)}."
            )
        pattern, spec = entry
        quantizer = None if spec is None else make(QUANTIZERS, f"rules[{i}]", spec)
        try:
            rules.append(bj.rule(pattern, quantizer))
        except (TypeError, ValueError) as error:
            raise ValueError(f"config.rules[{i}]: {error}") from error
    return tuple(rules)


def _build_budgets(specs: Any) -> tuple[bj.Budget, ...]:
    """Budgets from mappings with `metric`, `limit` and perhaps `sites`."""
    for i, spec in enumerate(specs):
        if not isinstance(spec, Mapping):
            raise ValueError(
                f"config.budgets[{i}] must be {{'metric': ..., 'limit': ..., 'sites': pattern}}, "
                f"got {shown(spec)}."
            )
    named = ({"name": "budget", **spec} for spec in specs)
    return tuple(make({"budget": bj.budget}, f"budgets[{i}]", s) for i, s in enumerate(named))


def build_method(config: Mapping[str, Any], rules: tuple[bj.Rule, ...]) -> methods.Method:
    """The method with the config's rules and budgets."""
    extra: dict[str, Any] = {}
    name = config["method"].get("name")
    parameters = inspect.signature(find(METHODS, "method", config["method"])).parameters
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
    limits = _build_budgets(config["budgets"])
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
            raise ValueError(
                f"config.method ({name}): steps of {stage.name!r} must be 0 or more, got "
                f"{stage.steps}."
            )
    return method


_OF_DATA = ("batch_size", "eval_batch_size", "augmentation")  # settings under config.data
_SETTINGS = {
    name: f"config.{'data.' if name in _OF_DATA else ''}{name}" for name in Settings._fields
}


def _build_settings(config: Mapping[str, Any]) -> Settings:
    """The settings of a config, apart from its method's."""
    values = {k: (config["data"] if k in _OF_DATA else config)[k] for k in _SETTINGS}
    with keys_named(_SETTINGS):
        return check_settings(Settings(**values))


def check_config(config: Mapping[str, Any]) -> methods.Method:
    """The method of a config, everything else it names made too, without data and variables."""
    method = build_method(config, build_rules(config["rules"]))
    make(MODELS, "model", config["model"])
    _check_data_name(config["data"])
    _build_settings(config)
    return method


def _check_data_name(spec: Mapping[str, Any]) -> None:
    if not data.is_known(spec["name"]):
        raise ValueError(
            f"config.data.name must be one of {sorted(data.SOURCES)}, 'tfds:NAME', 'folder:PATH', "
            f"'npz:PATH', 'tokens:PATH' or 'text:PATH', got {shown(spec['name'])}."
        )


def build_data(config: Mapping[str, Any]) -> data.DatasetLike:
    """The data set, normalised as the config says."""
    spec = config["data"]
    _check_data_name(spec)
    keys = {name: f"config.data.{name}" for name in spec}
    with keys_named(keys), program(f"config.data ({spec['name']})", kinds=(ValueError,)):
        dataset = data.load(
            spec["name"],
            root=spec["root"] or None,
            validation=spec["validation"],
            eval_split=spec["eval_split"],
            image_size=spec["image_size"],
            augmentation=spec["augmentation"],
            splits=spec["splits"],
            eval_limit=spec["eval_limit"],
            context=spec["context"],
            marker=spec["marker"],
            form=spec["form"],
        )
        if isinstance(dataset, data.TokenDataset):
            for name in ("mean", "std"):
                if spec[name]:
                    raise ValueError(
                        f"`{name}` is of pixels, got {shown(spec[name])} for tokens; leave it ()."
                    )
            return dataset
        channels = dataset.image_shape[-1]
        for name in ("mean", "std"):
            numbers = all(type(value) in (int, float) for value in spec[name])
            if spec[name] and not (numbers and len(spec[name]) == channels):
                raise ValueError(
                    f"`{name}` must have {channels} numbers for {spec['name']!r}, got "
                    f"{shown(spec[name])}."
                )
            if spec[name]:
                moments: dict[str, Any] = {name: tuple(map(float, spec[name]))}
                dataset = dataset._replace(**moments)
        data.check_dataset(dataset)
    return dataset


def _checked(config: Any, source: str) -> Callable[[Placement | None], Work]:
    """Checks what a config's run consists of; what it gives makes the `Work`, variables loaded.

    A host needs no other for the checks, but hosts read checkpoints together.
    """
    spec = check_sections(plain(config))
    rules = build_rules(spec["rules"])
    method = build_method(spec, rules)
    model = make(MODELS, "model", spec["model"])
    start = find_start(spec["init_from"])
    dataset = build_data(spec)
    classes = spec["model"].get("num_classes", dataset.num_classes)
    if classes != dataset.num_classes:
        raise ValueError(
            f"config.model.num_classes must be {dataset.num_classes} for {dataset.name!r}, got "
            f"{classes}."
        )
    _check_outputs(spec["model"]["name"], model, dataset)
    facts = {
        "name": spec["name"] or source.removeprefix("configs/").removesuffix(".py"),
        "model": spec["model"]["name"],
        "config": source,
        "config_hash": config_hash(spec),
        "budget": spec["budgets"] or None,
    }
    settings = _build_settings(spec)
    keys = _SETTINGS | keys_of(find(METHODS, "method", spec["method"]), "method")

    def assemble(place: Placement | None) -> Work:
        sample = np.zeros((2, *dataset.image_shape), np.float32)
        variables = load_start(start, model, sample)
        known = facts if variables is None else {**facts, "start": checksum(variables)}
        with keys_named(keys, f"config.method ({spec['method']['name']})"):
            work = make_work(method, model, dataset, variables, settings, facts=known, place=place)
        if rules:  # one that does nothing must not cost an epoch to be found
            with program("config.rules", kinds=(ValueError,)):
                wrapped = Quantized(model, rules, sums=settings.sums)
                jax.eval_shape(wrapped.init, jax.random.PRNGKey(0), sample)
        return work

    return assemble


def _check_outputs(name: str, model: Any, dataset: data.Dataset | data.StreamedDataset) -> None:
    """Refuses a model that fails on such images, or gives other than a number for each class."""
    x = jax.ShapeDtypeStruct((2, *dataset.image_shape), np.float32)
    with program(f"config.model ({name}) fails on {x.shape} images of {dataset.name!r}"):
        outputs, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.PRNGKey(0), x), x)
    found = getattr(outputs, "shape", type(outputs).__name__)
    if found != (2, dataset.num_classes):
        raise ValueError(
            f"config.model ({name}) must give logits of shape {(2, dataset.num_classes)} for 2 "
            f"examples of {dataset.name!r}, got {found}."
        )


def build_work(config: Any, *, source: str = "", place: Placement | None = None) -> Work:
    """A checked `Work` from a config; everything that can be wrong with it is wrong here.

    Args:
      config: a ConfigDict or plain data, see `configs/base.py`.
      source: the config file's name, for the record.
      place: the devices that compute; chosen by the config unless given.

    Raises:
      ValueError: one line with key, value, expectation and remedy.
    """
    return _checked(config, source)(place)


def build_on_hosts(config: Any, source: str) -> Work:
    """As `build_work`, on every host of a run; what goes wrong on one of them stops all."""
    hosts.check_same(plain(config))
    return hosts.on_all(lambda: _checked(config, source))(None)


def open_folder(config: Any, workdir: str | Path, *, resume: bool = True) -> Path:
    """The run's folder, made or checked by the first host, see `runs.folder.open_run`."""
    hosts.on_first(lambda: open_run(workdir, plain(config), resume))
    return Path(workdir)
