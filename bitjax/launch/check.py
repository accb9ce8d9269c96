"""Has the doctor look at a run before its first step."""

from collections.abc import Mapping
from typing import Any

import jax

from bitjax.data import train_batch
from bitjax.diagnostics.doctor import doctor
from bitjax.diagnostics.findings import Findings, doctor_report
from bitjax.training.hosts import is_first
from bitjax.training.work import Work
from bitjax.variables import as_batch

_TOKENS = 4096  # of a batch that is looked at: attention keeps the square of each example's


def run_doctor(work: Work) -> Work:
    """Checks the first quantized stage on one training batch; errors found are a ValueError.

    The work comes back with the variables that were looked at, so that they are made once.
    """
    stage = next((s for s in work.method.stages if s.rules), None)
    if stage is None:
        return work
    variables = work.enter(stage, work.start)
    batch = batch_to_look_at(work, min(work.settings.batch_size, 64))
    findings = examine(work, work.wrap(stage), variables, batch)
    if findings and is_first():
        print(doctor_report(findings))
    if any(finding.level == "error" for finding in findings):
        raise ValueError(
            "the doctor stopped the run before its first step: what is printed says why."
        )
    return work._replace(entered=(stage, variables))


def batch_to_look_at(work: Work, size: int) -> dict[str, jax.Array]:
    """The first training examples, at most `size` of them, not augmented."""
    dataset, size = work.dataset, min(size, work.dataset.num_train)
    tokens = dataset.specs(1).get("tokens")
    if tokens is not None:
        size = min(size, max(1, _TOKENS // tokens.size))
    batch = train_batch(dataset, size, 0, work.settings.seed, augment=False)
    return jax.device_put(batch)


def examine(
    work: Work, model: Any, variables: Mapping[str, Any], batch: Mapping[str, jax.Array]
) -> Findings:
    """What the doctor finds on a batch, by the loss that the task evaluates."""
    task, inputs = work.task, as_batch(*work.inputs(None, batch))
    if task.name == "classification":
        return doctor(model, variables, inputs, labels=batch["label"])

    def loss(outputs, batch):
        return task.figures(task.sums(outputs, batch))["loss"]

    return doctor(model, variables, inputs, labels=batch, loss=loss)
