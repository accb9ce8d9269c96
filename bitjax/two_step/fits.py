"""One group of a layer's filters solved: from second moments, then behind what follows the layer.

Two-Step Quantization: Wang et al., CVPR 2018; the solvers are `solvers/code_descent.py` and
`solvers/output_codes.py`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.linen.targets import Affine, OutputLevels
from bitjax.quantizers.base import Axes, Codes, Quantizer
from bitjax.solvers.code_descent import Fit, fit_codes
from bitjax.solvers.output_codes import fit_output_codes
from bitjax.solvers.sample_descent import fit_codes_to_samples
from bitjax.solvers.targets import output_of
from bitjax.two_step.data import Moments


class SolveOptions(NamedTuple):
    """How layers are solved.

    Attributes:
      target: `codes` for the finest that is known of each layer, `sum` or `output`, see
        `layer_targets.plan_layers`.
      asymmetric: inputs from the network as far as it is solved; else the teacher's own.
      float_inputs: whether the teacher's inputs are float too; else quantized as the model's, which
        is what it learned in the first step, if it did.
      positions: patches of an example.
      ridge: pull towards the float filters, see `solvers.fit_codes`.
      joint: every code at its own best scale; else one scale for each sweep.
      pair_moves: also changes two codes at once; not where patches are fewer than inputs.
      starts: of the descent; likewise.
      strengths: lambda of the splitting, one after the other, for the targets `codes` and `relu`.
      iterations: of the splitting, for each strength.
      max_sweeps: of one descent.
      seed: of patches and starts.
    """

    target: str = "codes"
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


class GroupFit(NamedTuple):
    """What became of a group.

    Attributes:
      fit: in units of the layer's output.
      error: sum over filters of E (z - v)^2 of the linear fit.
      energy: sum of E (z - mean z)^2.
      mismatch: share of held-out codes behind the quantizer that are not the teacher's, or None.
    """

    fit: Fit
    error: float
    energy: float
    mismatch: float | None = None


def fit_group(
    moments: Moments,
    float_MxN: Any,
    start_MxN: Any,
    grid: Any,
    settings: SolveOptions,
    key: jax.Array,
) -> GroupFit:
    """The fit whose outputs are nearest to the target's, from second moments alone."""
    found = fit_codes(
        moments.gram_NxN, moments.cross_MxN, moments.energy_M, grid, start_MxN,
        mean_N=moments.mean_N, target_mean_M=moments.target_mean_M, ridge=settings.ridge,
        float_MxN=float_MxN, joint=settings.joint, pair_moves=settings.pair_moves,
        starts=settings.starts, key=key, max_sweeps=settings.max_sweeps,
    )  # fmt: skip
    return GroupFit(found.value, float(np.sum(found.objective)), float(np.sum(moments.energy_M)))


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
    """As `fit_group`, from patches that are fewer than inputs: one start, and no pair moves."""
    found = fit_codes_to_samples(
        x_TxN, z_TxM, grid, start_MxN, intercept=intercept, ridge=settings.ridge,
        float_MxN=float_MxN, joint=settings.joint, max_sweeps=settings.max_sweeps,
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
    """The fit that is best behind the normalisation and the quantizer, or the ReLU, after it.

    Solved in units of the quantizer's step, so that lambda means the same everywhere.
    """
    fit = found.fit
    if levels is None:  # a ReLU: in units of what comes through it
        spread = float(jnp.sqrt(jnp.mean(jnp.square(z_TxM * affine.gain_M))))
        levels = OutputLevels(spread or 1.0, 0.0, 0)
    alive = affine.gain_M != 0  # a channel may be constant behind its normalisation
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
        float_MxN=float_MxN * gain[:, None],
    ).value  # fmt: skip
    keep = jnp.asarray(alive)
    back = Fit(
        jnp.where(keep[:, None], best.codes_MxN * sign[:, None], fit.codes_MxN),
        jnp.where(keep, best.scale_M / abs(gain), fit.scale_M),
        jnp.where(keep, (best.intercept_M - offset) / gain, fit.intercept_M),
    )
    mismatch = None
    if count is not None:
        held = slice(-max(1, len(x_TxN) // 5), None)  # what `fit_output_codes` judges by
        v = x_TxN[held] @ (best.scale_M[:, None] * best.codes_MxN).T + best.intercept_M
        mismatch = float(jnp.mean(output_of(v, 1.0, threshold, count) != y[held]))
    return found._replace(fit=back, mismatch=mismatch)


def away_from_0(gain_M: Any) -> Any:
    """Gains to divide by: a channel that hardly passes cannot make good for others."""
    least = 0.1 * np.median(np.abs(gain_M))
    return np.where(np.abs(gain_M) > least, gain_M, np.inf)


def start_of(quantizer: Quantizer, float_GxMxN: Any) -> tuple[Any, Any]:
    """Codes that the quantizer gives the float filters, and its grid of codes."""
    filters = jnp.asarray(float_GxMxN.reshape(-1, float_GxMxN.shape[-1]), jnp.float32)
    params, _ = quantizer.init(filters, Axes((0,), -1))
    scale = params["scale"]
    codes = jnp.where(scale > 0, jnp.rint(quantizer.apply(params, {}, filters) / scale), 0)
    one = {**params, "scale": jnp.ones((1, 1))}
    every = Codes(jnp.arange(2 ** round(float(params["bits"])))[:, None])
    grid = np.unique(np.asarray(quantizer.decode(one, {}, every), np.float64))
    if 0 not in grid:
        codes = jnp.where(codes == 0, 1, codes)
    return np.asarray(codes, np.float64).reshape(float_GxMxN.shape), grid
