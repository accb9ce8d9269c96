"""The settings of a run's training, apart from its method, and their checks."""

from typing import NamedTuple

from bitjax.checks import SWITCH, TEXT, Allowed, check, choice, integer, several
from bitjax.data import AUGMENTATIONS, DatasetLike
from bitjax.methods.base import Method
from bitjax.training.parallel import FORMS, Placement, part_of_batch


class Settings(NamedTuple):
    """The settings of a run's training, apart from its method.

    Attributes:
      batch_size: examples per step.
      eval_batch_size: examples per evaluation step.
      seed: the seed of the batches' order, augmentation, initialisation and draws.
      augmentation: a name in `bitjax.data.AUGMENTATIONS`.
      sums: whether the addends of residual sums are sites too, see `bitjax.Quantized`.
      calibration_size: training images, not augmented, on which a stage's new ranges are fitted.
      log_every: steps between two rows of metrics.
      checkpoint_every: steps between two checkpoints inside a stage.
      eval_every: steps between two evaluations inside a stage; 0 evaluates at its end only.
      keep_checkpoints: how many of the newest are kept, to fall back on one if another is damaged.
      keep_best: also keep the variables of the last stage that evaluated best, in `best/`.
      tensorboard: the same as `tensorboard` among the writers, from before there were others.
      writers: what takes the figures beside `metrics.jsonl`: `tensorboard`, `wandb`, `mlflow`, or
        import paths of your own, see `bitjax.runs.writers`.
      parallel: the form in which a step runs on several devices, one of `parallel.FORMS`.
      devices: how many, over all hosts; 0 takes all.
      accumulate: parts in which a device takes its share of a batch, to save memory.
      steps_per_dispatch: steps that run as one program, on accelerators.
      compute_dtype: dtype of the model's arithmetic, `float32` or `bfloat16`; parameters,
        quantizers and the loss are float32 in either.
      device_data_mb: training images of up to so many MB are kept on an accelerator, which then
        is sent indices only; 0 never does.
    """

    batch_size: int = 128
    eval_batch_size: int = 500
    seed: int = 0
    augmentation: str = "none"
    sums: bool = False
    calibration_size: int = 512
    log_every: int = 10
    checkpoint_every: int = 100
    eval_every: int = 0
    keep_checkpoints: int = 2
    keep_best: bool = False
    tensorboard: bool = False
    writers: tuple[str, ...] = ()
    parallel: str = "auto"
    devices: int = 0
    accumulate: int = 1
    steps_per_dispatch: int = 1
    compute_dtype: str = "float32"
    device_data_mb: int = 1024


_MOST_EXAMPLES = 65_536  # of a batch: more would take the machine's memory before it is refused

# What each of the settings may be.
SETTINGS: dict[str, Allowed] = {
    "batch_size": integer(1, _MOST_EXAMPLES),
    "eval_batch_size": integer(1, _MOST_EXAMPLES),
    "seed": integer(0, 2**32 - 1),
    "augmentation": choice(*sorted(AUGMENTATIONS)),
    "sums": SWITCH,
    "calibration_size": integer(1),
    "log_every": integer(1),
    "checkpoint_every": integer(1),
    "eval_every": integer(0),
    "keep_checkpoints": integer(1),
    "keep_best": SWITCH,
    "tensorboard": SWITCH,
    "writers": several(TEXT, 0, 16),
    "parallel": choice(*FORMS),
    "devices": integer(0),
    "accumulate": integer(1),
    "steps_per_dispatch": integer(1),
    "compute_dtype": choice("float32", "bfloat16"),
    "device_data_mb": integer(0),
}


def check_settings(settings: Settings) -> Settings:
    """Returns the settings if each is in its range, as Python's own numbers."""
    given = settings._asdict()
    check(SETTINGS, given)
    settings = Settings(**{k: v.item() if hasattr(v, "item") else v for k, v in given.items()})
    named = (*settings.writers, *(("tensorboard",) if settings.tensorboard else ()))
    settings = settings._replace(writers=tuple(dict.fromkeys(named)))
    together = settings.steps_per_dispatch
    for name in ("log_every", "checkpoint_every", "eval_every"):
        if getattr(settings, name) % together:
            raise ValueError(
                f"`{name}` must be a multiple of `steps_per_dispatch`, {together}, got "
                f"{getattr(settings, name)}: nothing can happen between steps of one dispatch."
            )
    return settings


def check_images(settings: Settings, dataset: DatasetLike) -> None:
    """Checks that what is done to images is asked of images only."""
    if settings.augmentation != "none" and not hasattr(dataset, "image_shape"):
        raise ValueError(
            f"`augmentation` must be 'none' for {dataset.name!r}, whose examples are no images, "
            f"got {settings.augmentation!r}."
        )


def check_place(settings: Settings, place: Placement, method: Method) -> None:
    """Checks that the settings go with the devices and with the method."""
    part_of_batch(settings.batch_size, settings.accumulate, place)
    together = settings.steps_per_dispatch
    if together > 1 and not place.accelerator:
        raise ValueError(
            f"`steps_per_dispatch` must be 1 on the CPU, got {together}: a convolution inside a "
            "loop that is compiled runs ten times slower there."
        )
    for stage in method.stages:
        if stage.every is not None and stage.every[0] % together:
            raise ValueError(
                f"`steps_per_dispatch` must divide {stage.every[0]}, the steps between two calls "
                f"of stage {stage.name!r}'s function on the host, got {together}."
            )
