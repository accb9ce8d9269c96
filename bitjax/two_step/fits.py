"""Solves one group of a layer's filters: from second moments, then behind the layer's quantizer.

Two-Step Quantization: Wang et al., CVPR 2018; the solvers are `solvers/code_descent.py` and
`solvers/output_codes.py`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.checks import SWITCH, Allowed, choice, integer, number, several
from bitjax.frameworks.targets import OutputLevels
from bitjax.solvers.code_descent import Fit, fit_codes
from bitjax.solvers.output_codes import fit_output_codes
from bitjax.solvers.sample_descent import fit_codes_to_samples
from bitjax.solvers.targets import output_of
from bitjax.two_step.layer import Affine
from bitjax.two_step.moments import PatchMoments
from bitjax.two_step.starts import STARTS, pruned_of


class SolveOptions(NamedTuple):
    """How layers are solved.

    Attributes:
      target: `codes` solves each layer for the finest target that there is for it: the codes of the
        quantizer that reads it, the positive part of its output, a sum, or its output; `sum` for
        sums and outputs only; `output` for outputs only.
      start: codes that the descent starts from: `rounded` to the float filters, `gptq`, `adaround`,
        or for each filter the better of the first two, `best`, or of all three, `all`, after a
        descent each, on held-out patches.
      damping: GPTQ's, as a share of the Gram matrix's mean diagonal.
      correction: share, 0 to 1, of what is lost in front of a layer that its target makes up for. 1
        targets the teacher's output, 0 what the float kernel gives for the same inputs, as GPTQ.
      asymmetric: whether inputs come from the network as far as it is solved; otherwise they are
        the teacher's own.
      float_inputs: whether the teacher's inputs are float too; else quantized like the model's
        inputs.
      positions: number of patches of an example.
      ridge: strength of the pull towards the float filters, see `bitjax.solvers.fit_codes`.
      joint: whether every code is chosen at its own best scale; otherwise one scale serves a sweep.
      pair_moves: whether two codes may change at once; ignored if patches are fewer than inputs.
      starts: number of starts of the descent; 1 is used if patches are fewer than inputs.
      strengths: the splitting's lambdas, used one after the other, for quantizers' codes and
        positive parts.
      iterations: number of iterations of the splitting, for each strength.
      max_sweeps: largest number of sweeps of one descent; 0 takes the start as it is.
      seed: the seed of patches and starts.
    """

    target: str = "codes"
    start: str = "best"
    damping: float = 0.01
    correction: float = 1.0
    asymmetric: bool = True
    float_inputs: bool = False
    positions: int = 16
    ridge: float = 0.1
    joint: bool = True
    pair_moves: bool = False
    starts: int = 1
    strengths: tuple[float, ...] = (1.0,)
    iterations: int = 5
    max_sweeps: int = 30
    seed: int = 0


# What the options may be, in `solve_layers` and in the method.
SOLVE: dict[str, Allowed] = {
    "target": choice("codes", "sum", "output"),
    "start": choice(*STARTS),
    "damping": number(0),
    "correction": number(0, 1),
    "asymmetric": SWITCH,
    "float_inputs": SWITCH,
    "positions": integer(1),
    "ridge": number(0),
    "joint": SWITCH,
    "pair_moves": SWITCH,
    "starts": integer(1),
    "strengths": several(number(0, above=True), 1),
    "iterations": integer(0),
    "max_sweeps": integer(0),
    "seed": integer(0, 2**32 - 1),
}


class GroupFit(NamedTuple):
    """The solution of a group."""

    fit: Fit  # in units of the layer's output
    error: float  # sum over filters of E (z - v)^2 of the linear fit
    energy: float  # sum over filters of E (z - mean z)^2
    # share of held-out codes behind the quantizer that differ from the teacher's
    mismatch: float | None = None


def fit_group(
    moments: PatchMoments,
    float_MxN: Any,
    start: Fit,
    grid: Any,
    settings: SolveOptions,
    key: jax.Array,
) -> GroupFit:
    """The fit whose outputs are nearest to the target's, from second moments alone."""
    energy = float(np.sum(moments.energy_M))
    if settings.max_sweeps == 0:
        w = np.asarray(start.scale_M)[:, None] * np.asarray(start.codes_MxN)
        loss = moments.energy_M + ((w @ moments.gram_NxN - 2 * moments.cross_MxN) * w).sum(1)
        return GroupFit(start, float(np.sum(loss)), energy)
    found = fit_codes(
        moments.gram_NxN, moments.cross_MxN, moments.energy_M, grid, start.codes_MxN,
        mean_N=moments.mean_N, target_mean_M=moments.target_mean_M, ridge=settings.ridge,
        float_MxN=float_MxN, pruned_MxN=pruned_of(float_MxN, grid), joint=settings.joint,
        pair_moves=settings.pair_moves, starts=settings.starts, key=key,
        max_sweeps=settings.max_sweeps,
    )  # fmt: skip
    return GroupFit(found.value, float(np.sum(found.objective)), energy)


def fit_group_to_samples(
    x_TxN: jax.Array,
    z_TxM: jax.Array,
    float_MxN: Any,
    start_MxN: Any,
    grid: Any,
    settings: SolveOptions,
    *,
    intercept: bool,
) -> GroupFit:
    """As `fit_group`, from patches fewer than inputs: one start, no pair moves."""
    found = fit_codes_to_samples(
        x_TxN, z_TxM, grid, start_MxN, intercept=intercept, ridge=settings.ridge,
        float_MxN=float_MxN, pruned_MxN=pruned_of(float_MxN, grid), joint=settings.joint,
        max_sweeps=max(settings.max_sweeps, 1),
    )  # fmt: skip
    z = np.asarray(z_TxM, np.float64)
    energy = np.sum(np.mean((z - intercept * z.mean(0)) ** 2, axis=0))
    return GroupFit(found.value, float(np.sum(found.objective)), float(energy))


def fit_behind(
    found: GroupFit,
    x_TxN: jax.Array,
    z_TxM: jax.Array,
    affine: Affine,
    levels: OutputLevels | None,
    float_MxN: Any,
    grid: Any,
    settings: SolveOptions,
) -> GroupFit:
    """The fit that is best behind the normalisation and the quantizer, or the ReLU, after it."""
    # In units of the quantizer's step, so that lambda means the same everywhere.
    fit = found.fit
    if levels is None:  # a ReLU: in units of its output
        spread = float(jnp.sqrt(jnp.mean(jnp.square(z_TxM * affine.gain_M))))
        levels = OutputLevels(spread or 1.0, 0.0, 0)
    alive = affine.gain_M != 0  # a gain of 0 makes a channel constant
    gain = np.where(alive, affine.gain_M, 1.0) / levels.step
    sign, offset = np.sign(gain), affine.offset_M / levels.step
    start = Fit(
        fit.codes_MxN * sign[:, None], fit.scale_M * abs(gain), fit.intercept_M * gain + offset
    )
    threshold, count = levels.threshold / levels.step, levels.count or None
    y = output_of(z_TxM * gain + offset, 1.0, threshold, count)
    best = fit_output_codes(
        x_TxN, y, start, grid, step=1.0, threshold=threshold, levels=count,
        strengths=settings.strengths, iterations=settings.iterations, ridge=settings.ridge,
        float_MxN=float_MxN * gain[:, None], pruned_MxN=pruned_of(float_MxN, grid),
    ).value  # fmt: skip
    keep = jnp.asarray(alive)
    back = Fit(
        jnp.where(keep[:, None], best.codes_MxN * sign[:, None], fit.codes_MxN),
        jnp.where(keep, best.scale_M / abs(gain), fit.scale_M),
        jnp.where(keep, (best.intercept_M - offset) / gain, fit.intercept_M),
    )
    mismatch = None
    if count is not None:
        held = slice(-max(1, len(x_TxN) // 5), None)  # the share that `fit_output_codes` holds out
        v = x_TxN[held] @ (best.scale_M[:, None] * best.codes_MxN).T + best.intercept_M
        mismatch = float(jnp.mean(output_of(v, 1.0, threshold, count) != y[held]))
    return found._replace(fit=back, mismatch=mismatch)


def away_from_0(gain_M: Any) -> Any:
    """Replaces near-zero gains by inf, so that nearly dead channels get no correction."""
    least = 0.1 * np.median(np.abs(gain_M))
    return np.where(np.abs(gain_M) > least, gain_M, np.inf)
