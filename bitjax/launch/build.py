"""From a config (plain data) to objects: the registry, and the checks at the front door."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import bitjax as bj
from bitjax import data, methods
from bitjax.frameworks.attach import attached_shapes
from bitjax.frameworks.linen import Quantized
from bitjax.launch.programs import keys_named, program, shown
from bitjax.launch.registry import METHODS, MODELS, QUANTIZERS, TASKS, find, keys_of, make
from bitjax.launch.schema import check_sections, plain
from bitjax.launch.start import find_start, load_start
from bitjax.runs.folder import config_hash, hashes_of, open_run
from bitjax.runs.writers import find_writer
from bitjax.training import hosts
from bitjax.training.identity import checksum
from bitjax.training.parallel import Placement
from bitjax.training.settings import Settings, check_images, check_settings
from bitjax.training.task import Task
from bitjax.training.trial import input_shapes, try_task
from bitjax.training.work import Work, make_work, preprocessing, task_of
from bitjax.variables import as_batch


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
            f"config.budgets is not empty, but config.method.name={name!r} chooses no bits: "
            "use bitpruning or measured, or remove the budgets."
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
        settings = check_settings(Settings(**values))
        for name in settings.writers:
            with program(f"config.writers ({name})", kinds=(Exception,)):
                find_writer(name)
        return settings


def _build_task(spec: Mapping[str, Any]) -> Task | None:
    """The task that a config names; None if that is left to the data."""
    if spec["name"]:
        return make(TASKS, "task", spec)
    if others := [key for key in spec if key != "name"]:
        raise ValueError(
            f"config.task.{others[0]} is given, but no config.task.name, whose setting it would be."
        )
    return None


def task_of_config(config: Any) -> Task:
    """The task of a config, whose data are loaded unless it names one."""
    spec = check_sections(plain(config))
    return _build_task(spec["task"]) or task_of(build_data(spec))


def check_config(config: Mapping[str, Any]) -> methods.Method:
    """The method of a config, everything else it names made too, without data and variables."""
    method = build_method(config, build_rules(config["rules"]))
    make(MODELS, "model", config["model"])
    _build_task(config["task"])
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
            train_context=spec["train_context"],
            marker=spec["marker"],
            form=spec["form"],
            train_from=spec["train_from"] or None,
        )
        dataset = _with_moments(dataset, spec)
        data.check_dataset(dataset)
    return dataset


def _with_moments(dataset: Any, spec: Mapping[str, Any]) -> Any:
    """The data set with the mean and the standard deviation that a config gives, if it does."""
    channels = dataset.image_shape[-1] if hasattr(dataset, "image_shape") else 0
    for name in ("mean", "std"):
        numbers = all(type(value) in (int, float) for value in spec[name])
        if spec[name] and not (numbers and len(spec[name]) == channels):
            wanted = f"have {channels} numbers" if channels else "be empty, no images are there,"
            raise ValueError(
                f"`{name}` must {wanted} for {spec['name']!r}, got {shown(spec[name])}."
            )
        if spec[name]:
            dataset = dataset._replace(**{name: tuple(map(float, spec[name]))})
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
    task, settings = _build_task(spec["task"]) or task_of(dataset), _build_settings(spec)
    _try_task(spec, task, model, dataset, settings)
    facts = {
        "name": spec["name"] or source.removeprefix("configs/").removesuffix(".py"),
        "model": spec["model"]["name"],
        "config": source,
        "config_hash": config_hash(spec),
        "budget": spec["budgets"] or None,
    }
    keys = _SETTINGS | keys_of(find(METHODS, "method", spec["method"]), "method")

    def assemble(place: Placement | None) -> Work:
        preprocess = preprocessing(dataset, settings.augmentation)
        args, kwargs = input_shapes(task, dataset, preprocess)
        variables = load_start(start, model, as_batch(args, kwargs))
        known = facts if variables is None else {**facts, "start": checksum(variables)}
        with keys_named(keys, f"config.method ({spec['method']['name']})"):
            work = make_work(
                method, model, dataset, variables, settings, task=task, facts=known, place=place
            )._replace(known_as=hashes_of(spec))
        if rules:  # one that does nothing must not cost an epoch to be found
            with program("config.rules", kinds=(ValueError,)):
                wrapped = Quantized(work.model, rules, sums=settings.sums)
                # Of as many examples as new ranges are fitted on: that trace is used again.
                args, kwargs = work.input_shapes(min(settings.calibration_size, dataset.num_train))
                attached_shapes(wrapped, work.start, args, kwargs)
        return work

    return assemble


def _try_task(
    spec: Mapping[str, Any], task: Task, model: Any, dataset: data.DatasetLike, settings: Settings
) -> None:
    """Refuses a model or a task that fails on such data, or that do not go with each other."""
    classes = getattr(dataset, "num_classes", None)
    given = spec["model"].get("num_classes", classes)
    if classes and spec["task"]["name"] in ("", "classification") and given != classes:
        raise ValueError(
            f"config.model.num_classes must be {classes} for {dataset.name!r}, got {given}."
        )
    names = {"model": f"config.model ({spec['model']['name']})"}
    names["task"] = f"config.task ({spec['task']['name'] or task.name})"
    key, example = next(iter(dataset.specs(2).items()))
    examples = f"{example.shape} {key.removesuffix('s')}s of {dataset.name!r}"

    def guard(argument):
        return program(f"{names[argument]} fails on {examples}")

    with keys_named(_SETTINGS | names):
        check_images(settings, dataset)
        try_task(task, model, dataset, preprocessing(dataset, settings.augmentation), guard)


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
