"""How a run trains, apart from its method."""

from typing import NamedTuple

from bitjax.data import AUGMENTATIONS


class Settings(NamedTuple):
    """How a run trains, apart from its method.

    Attributes:
      batch_size: examples per step.
      eval_batch_size: examples per evaluation step.
      seed: of the batches' order, augmentation, initialisation and draws.
      augmentation: a name in `bitjax.data.AUGMENTATIONS`.
      calibration_size: training images, not augmented, on which a stage's new ranges are fitted.
      log_every: steps between two rows of metrics.
      checkpoint_every: steps between two checkpoints inside a stage.
      eval_every: steps between two evaluations inside a stage; 0 evaluates at its end only.
      keep_checkpoints: how many of the newest are kept, to fall back on one if another is damaged.
      keep_best: also keep the variables of the last stage that evaluated best, in `best/`.
      tensorboard: also write TensorBoard's files.
    """

    batch_size: int = 128
    eval_batch_size: int = 500
    seed: int = 0
    augmentation: str = "none"
    calibration_size: int = 512
    log_every: int = 10
    checkpoint_every: int = 100
    eval_every: int = 0
    keep_checkpoints: int = 2
    keep_best: bool = False
    tensorboard: bool = False


def check_settings(settings: Settings) -> Settings:
    """Returns the settings if each is in its range.

    Raises:
      ValueError: one is not; the message names it.

    Example:
      >>> check_settings(Settings(log_every=0))
      Traceback (most recent call last):
      ValueError: `log_every` must be an integer of 1 or more, got 0.
    """
    least = {"seed": 0, "eval_every": 0}
    for name, value in settings._asdict().items():
        if name in ("augmentation", "keep_best", "tensorboard"):
            continue
        low = least.get(name, 1)
        if not isinstance(value, int) or value < low:
            raise ValueError(f"`{name}` must be an integer of {low} or more, got {value!r}.")
    if settings.seed >= 2**32:
        raise ValueError(f"`seed` must be below 2**32, got {settings.seed}.")
    if settings.augmentation not in AUGMENTATIONS:
        raise ValueError(
            f"`augmentation` must be one of {sorted(AUGMENTATIONS)}, got {settings.augmentation!r}."
        )
    return settings
