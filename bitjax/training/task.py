"""Tasks: what a batch gives a model, and what is measured of its outputs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

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
      figures: `(sums) -> {name: value}`; one of them is `loss`, one is the score.
      score: the figure by which models are compared.
      higher_is_better: whether a higher score is better.
      form: format of the score for people, such as `{:.2%}`.
    """

    name: str
    inputs: Callable[[Preprocess, Any, Batch], tuple[tuple, dict[str, Any]]]
    loss: Callable[[Any, Batch], jax.Array]
    sums: Callable[[Any, Batch], dict[str, jax.Array]]
    figures: Callable[[Mapping[str, Any]], dict[str, Any]]
    score: str
    higher_is_better: bool = True
    form: str = "{:.4g}"


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy of each example, [batch], in nats; float32 or wider.

    Example:
      >>> round(float(cross_entropy(jnp.zeros((1, 2)), jnp.array([0]))[0]), 4)
      0.6931
    """
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(wide, labels)


def classification() -> Task:
    """Images to labels: cross entropy, scored by top-1 accuracy as a fraction.

    Batches are {'image': [n, ...], 'label': int32 [n]}, in evaluation with 'mask': float32 [n].

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
        },
        score="accuracy",
        form="{:.2%}",
    )


def _count_hits(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    hit = jnp.argmax(logits, -1) == batch["label"]
    # Filling is black images: their loss is finite, and the mask removes it.
    mask = batch.get("mask", jnp.ones(hit.shape, jnp.float32))
    return {
        "loss": jnp.sum(cross_entropy(logits, batch["label"]) * mask),
        "correct": jnp.sum(hit * mask),
        "count": jnp.sum(mask),
    }
