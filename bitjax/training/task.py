"""Tasks: what a batch gives a model, and what is measured of its outputs."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bitjax.bottleneck.outputs import divergence
from bitjax.checks import SWITCH, checked

Batch = Mapping[str, Any]
Preprocess = Callable[[jax.Array | None, jax.Array], jax.Array]


class Task(NamedTuple):
    """What a model is trained and evaluated for, as pure functions of batches.

    Attributes:
      name: such as `classification`.
      inputs: `(preprocess, key, batch) -> (args, kwargs)` of the model's call. `preprocess` is the
        data set's, `(key, images) -> array`; `key` is None where nothing is augmented.
      loss: `(outputs, batch) -> scalar`, the mean over the batch.
      sums: `(outputs, batch) -> {name: scalar}`, added up over batches and devices; only examples
        whose `mask` is 1 count, where the batch has a mask.
      figures: `(sums) -> {name: value}`, of traced sums and of Python's floats; one of them is
        `loss`, one is the score.
      score: the figure by which models are compared.
      higher_is_better: whether a higher score is better.
      form: format of the score for people, such as `{:.2%}`.
      check: `(outputs, batch, dataset)`, a ValueError where the outputs' shapes do not go with the
        data; both are given as `jax.ShapeDtypeStruct`s. None checks nothing.
      compare: `(outputs, float outputs, batch) -> {name: scalar}`, added up with `sums` in
        evaluation; the latter are those of the network that the run started from. `figures` gets
        sums without these in training. None: that network is not asked.
      weights: `(batch) -> array` that says how much each prediction counts, of the outputs' shape
        without classes; a teacher is listened to there. None: all count alike.
    """

    name: str
    inputs: Callable[[Preprocess, Any, Batch], tuple[tuple, dict[str, Any]]]
    loss: Callable[[Any, Batch], jax.Array]
    sums: Callable[[Any, Batch], dict[str, jax.Array]]
    figures: Callable[[Mapping[str, Any]], dict[str, Any]]
    score: str
    higher_is_better: bool = True
    form: str = "{:.4g}"
    check: Callable[[Any, Batch, Any], None] | None = None
    compare: Callable[[Any, Any, Batch], dict[str, jax.Array]] | None = None
    weights: Callable[[Batch], jax.Array] | None = None


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy of each example, in nats; of logits [..., classes], float32 or wider.

    Example:
      >>> round(float(cross_entropy(jnp.zeros((1, 2)), jnp.array([0]))[0]), 4)
      0.6931
    """
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(wide, labels)


@checked(kl=SWITCH)
def classification(*, kl: bool = False) -> Task:
    """Images to labels: cross entropy, scored by top-1 accuracy as a fraction.

    Batches are {'image': [n, ...], 'label': int32 [n]}, in evaluation with 'mask': float32 [n].

    Args:
      kl: whether evaluation also gives the mean divergence KL of the float network's classes from
        the model's, in nats. It tells apart what few examples' accuracy does not.

    Example:
      >>> task = classification()
      >>> batch = {"label": jnp.array([0, 1])}
      >>> sums = task.sums(jnp.array([[2.0, 0.0], [2.0, 0.0]]), batch)
      >>> float(task.figures(sums)["accuracy"])
      0.5
    """
    return Task(
        name="classification",
        inputs=lambda preprocess, key, batch: ((preprocess(key, batch["image"]),), {}),
        loss=lambda logits, batch: jnp.mean(cross_entropy(logits, batch["label"])),
        sums=_count_hits,
        figures=lambda sums: {
            "accuracy": sums["correct"] / sums["count"],
            "loss": sums["loss"] / sums["count"],
            **_mean_kl(sums, sums["count"]),
        },
        score="accuracy",
        form="{:.2%}",
        check=_check_classes,
        compare=partial(_sum_kl, _mask_of) if kl else None,
    )


def _sum_kl(counts: Callable, outputs: Any, float_outputs: Any, batch: Batch) -> dict[str, Any]:
    each = divergence(float_outputs, outputs)
    return {"kl": jnp.sum(each * counts(batch, each.shape))}


def _mean_kl(sums: Mapping[str, Any], count: Any) -> dict[str, Any]:
    """The figure `kl`; nothing in training, where the float network is not asked."""
    return {"kl": sums["kl"] / count} if "kl" in sums else {}


def _mask_of(batch: Batch, shape: tuple[int, ...]) -> jax.Array:
    return batch.get("mask", jnp.ones(shape, jnp.float32))


def _check_classes(outputs: Any, batch: Batch, dataset: Any) -> None:
    wanted = (batch["label"].shape[0], dataset.num_classes)
    if getattr(outputs, "shape", None) != wanted:
        raise _wrong_logits(wanted, outputs, f"{wanted[0]} examples of {dataset.name!r}")


def _wrong_logits(wanted: object, outputs: Any, of: str, fix: str = "") -> ValueError:
    found = getattr(outputs, "shape", type(outputs).__name__)
    fix = f": {fix}" if fix else ""
    return ValueError(f"`model` must give logits of shape {wanted} for {of}, got {found}{fix}.")


def _count_hits(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    hit = jnp.argmax(logits, -1) == batch["label"]
    # Filling is black images: their loss is finite, and the mask removes it.
    mask = _mask_of(batch, hit.shape)
    return {
        "loss": jnp.sum(cross_entropy(logits, batch["label"]) * mask),
        "correct": jnp.sum(hit * mask),
        "count": jnp.sum(mask),
    }


@checked(kl=SWITCH)
def next_token(*, kl: bool = False) -> Task:
    """Tokens to the next ones: mean nats over the tokens that count, scored by perplexity.

    Batches are {'tokens': int32 [n, context], 'scored': float32 [n, context]}, 1 where the
    prediction of a token, from those before it, counts; in evaluation with 'mask': float32 [n]. A
    model takes the tokens and gives logits [n, context, vocabulary]; those at t - 1 predict t.

    Args:
      kl: as `classification` has it, over the tokens that count.

    Example:
      >>> task = next_token()
      >>> batch = {"tokens": jnp.array([[1, 3, 2]]), "scored": jnp.array([[0.0, 1.0, 1.0]])}
      >>> figures = task.figures(task.sums(jnp.zeros((1, 3, 4)), batch))
      >>> round(float(figures["perplexity"]), 4), round(float(figures["bits_per_token"]), 4)
      (4.0, 2.0)
    """
    return Task(
        name="next_token",
        inputs=lambda preprocess, key, batch: ((batch["tokens"],), {}),
        loss=_mean_nats,
        sums=_count_tokens,
        figures=_of_tokens,
        score="perplexity",
        higher_is_better=False,
        form="{:.4f}",
        check=_check_vocabulary,
        compare=partial(_sum_kl, _evaluated_tokens) if kl else None,
        weights=_scored_next,
    )


def _scored_next(batch: Batch) -> jax.Array:
    # The last token's logits predict nothing that is there.
    return jnp.roll(batch["scored"], -1, axis=1).at[:, -1].set(0.0)


def _evaluated_tokens(batch: Batch, shape: tuple[int, ...]) -> jax.Array:
    return _scored_next(batch) * _mask_of(batch, shape[:1])[:, None]


def _predicted(logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Logits [n, context - 1, vocabulary] and the tokens that they predict."""
    return logits[:, :-1], batch["tokens"][:, 1:]


def _mean_nats(logits: jax.Array, batch: Batch) -> jax.Array:
    counts = batch["scored"][:, 1:]
    nats = cross_entropy(*_predicted(logits, batch)) * counts
    # Of a device's part of a batch that is padding there may be nothing to count.
    return jnp.sum(nats) / jnp.maximum(jnp.sum(counts), 1.0)


def _count_tokens(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    logits, tokens = _predicted(logits, batch)
    counts = batch["scored"][:, 1:]
    if "mask" in batch:
        counts = counts * batch["mask"][:, None]
    return {
        "loss": jnp.sum(cross_entropy(logits, tokens) * counts),
        "correct": jnp.sum((jnp.argmax(logits, -1) == tokens) * counts),
        "count": jnp.sum(counts),
    }


def _of_tokens(sums: Mapping[str, Any]) -> dict[str, Any]:
    traced = isinstance(sums["count"], jax.Array)
    count = jnp.maximum(sums["count"], 1.0) if traced else max(sums["count"], 1.0)
    nats = sums["loss"] / count
    return {
        "perplexity": jnp.exp(nats) if traced else _exp(nats),
        "loss": nats,
        "bits_per_token": nats / math.log(2.0),
        "token_accuracy": sums["correct"] / count,
        **_mean_kl(sums, count),
    }


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _check_vocabulary(outputs: Any, batch: Batch, dataset: Any) -> None:
    tokens, shape = batch["tokens"].shape, getattr(outputs, "shape", ())
    least = dataset.vocabulary
    if len(shape) != 3 or shape[:2] != tokens or shape[2] < least:
        wanted = f"({tokens[0]}, {tokens[1]}, {least} or more)"
        of = f"{tokens} tokens of {dataset.name!r}, which has a vocabulary of {least}"
        raise _wrong_logits(wanted, outputs, of, "take a model of so many, or its own tokens")


class ScoreError(ValueError):
    """A score that says nothing: it is NaN or infinite."""


def figures_of(task: Task, sums: Mapping[str, float]) -> dict[str, float]:
    """An evaluation's figures; a `ScoreError` where its sums give none, or no finite score."""
    try:
        figures = {name: float(value) for name, value in task.figures(sums).items()}
    except ArithmeticError as error:  # Python's floats are not divided by zero
        said = ", ".join(f"{name} {value:.4g}" for name, value in sums.items())
        raise ScoreError(
            f"the evaluation's sums ({said}) give no figures ({error}): evaluate examples that "
            "count, or look at the task's `figures`."
        ) from error
    check_score(task, figures)
    return figures


def check_score(task: Task, figures: Mapping[str, float]) -> None:
    """Raises a `ScoreError` where an evaluation's score is not finite."""
    if not math.isfinite(figures[task.score]):
        others = {name: value for name, value in figures.items() if name != task.score}
        said = ", ".join(f"{name} {value:.4g}" for name, value in others.items())
        raise ScoreError(
            f"the evaluation's {task.score} is {figures[task.score]} ({said}), by which nothing "
            "can be compared: give more bits, lower the learning rate, or look at the task's "
            "`figures`."
        )


def all_sums(task: Task, outputs: Any, float_outputs: Any, batch: Batch) -> dict[str, jax.Array]:
    """The sums of an evaluation, also those against the float network where the task compares."""
    sums = task.sums(outputs, batch)
    return sums if task.compare is None else sums | task.compare(outputs, float_outputs, batch)


TASKS: dict[str, Callable[..., Task]] = {
    "classification": classification,
    "next_token": next_token,
}  # by the names that data sets give
