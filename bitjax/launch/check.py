"""Has the doctor look at a run before its first step."""

import jax.numpy as jnp

from bitjax.data import train_batch
from bitjax.diagnostics.doctor import doctor
from bitjax.diagnostics.findings import doctor_report
from bitjax.training.hosts import is_first
from bitjax.training.work import Work


def run_doctor(work: Work) -> None:
    """Checks the first quantized stage on one training batch; errors found are a ValueError."""
    stage = next((s for s in work.method.stages if s.rules), None)
    if stage is None:
        return
    variables = work.enter(stage, work.start)
    size = min(work.settings.batch_size, 64)
    batch = train_batch(work.dataset, size, 0, work.settings.seed, augment=False)
    x = work.preprocess(None, jnp.asarray(batch["image"]))
    findings = doctor(work.wrap(stage), variables, x, labels=jnp.asarray(batch["label"]))
    if findings and is_first():
        print(doctor_report(findings))
    if any(finding.level == "error" for finding in findings):
        raise ValueError(
            "the doctor stopped the run before its first step: what is printed says why."
        )
