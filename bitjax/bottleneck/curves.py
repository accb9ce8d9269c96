"""Computes each site's distortion at every rate from its histogram alone."""

from collections.abc import Mapping

import numpy as np

from bitjax.bottleneck.histogram import Histogram
from bitjax.bottleneck.measures import gram, sample
from bitjax.bottleneck.rates import Curve
from bitjax.checks import checked, choice, instance, integer, mapping
from bitjax.solvers.lasso_path import lasso_path
from bitjax.solvers.plane_selection import select_planes
from bitjax.solvers.scale_search import free_scales, window_scales

GRIDS = ("free", "window", "truncated", "lasso")
_PLANES = 8


@checked(histograms=mapping(instance(Histogram)), grid=choice(*GRIDS), max_bits=integer(1, _PLANES))
def rate_curves(
    histograms: Mapping[str, Histogram], *, grid: str = "free", max_bits: int = 8
) -> dict[str, Curve]:
    """The distortion and the scale of every site at 1 to `max_bits` planes.

    Grids:
      free: x is rounded and saturated at the scale of least error (no window of a fine code).
      window: x is rounded and saturated to planes j to j + k - 1 of the 8-bit code over the full
        scale, so scales are powers of two times its step.
      truncated: x keeps the best k planes of a finished 8-bit code over the full scale, as in the
        paper, with their best coefficients; `scale` is the code's.
      lasso: x keeps the k planes that the paper's LASSO chooses, with shrunk coefficients.

    Args:
      histograms: `{site: Histogram}`, from `site_histograms`.
      grid: the name of a grid above.
      max_bits: the greatest rate, at most 8.

    Returns:
      `{site: Curve}` with `bits`, `distortion` (squared units of the site), `scale`, `peak` (the
      largest |x|) and, for the last two grids, `coefficients` [rates, planes].

    Raises:
      ValueError: an unknown grid, or a site with negative elements, whose sign planes of the
        magnitude lose.

    Example:
      >>> import jax.numpy as jnp
      >>> from bitjax.bottleneck.histogram import empty, observe
      >>> curves = rate_curves({"a": observe(empty(), jnp.arange(16.0))}, max_bits=4)
      >>> round(float(curves["a"].scale[3]), 3), float(curves["a"].distortion[3]) < 1e-6
      (1.0, True)
    """
    bits = np.arange(1, max_bits + 1)
    found = {}
    for site, histogram in histograms.items():
        if histogram.negatives:
            raise ValueError(
                f"site {site!r} has {histogram.negatives} negative elements in the calibration "
                "batches: give it another quantizer, or name only sites behind a ReLU."
            )
        peak = max(abs(histogram.low), abs(histogram.high))
        if peak == 0.0:  # a site of zeros needs one level
            found[site] = Curve(bits, np.zeros(max_bits), np.ones(max_bits), 0.0)
            continue
        if grid in ("truncated", "lasso"):
            found[site] = _truncated(histogram, bits, float(peak), grid)
            continue
        values, weights, within = sample(histogram)
        if grid == "free":
            solved = free_scales(values, weights, max_bits=max_bits)
        else:
            step = histogram.full_scale / 2**_PLANES
            solved = window_scales(values, weights, step, max_bits=max_bits)
        found[site] = Curve(bits, solved.objective + within, solved.value.scale, float(peak))
    return found


def _truncated(histogram, bits, peak, grid):
    statistic = gram(histogram, _PLANES, rounded=True)
    G, c, energy = statistic.gram_DxD, statistic.cross_D, statistic.energy
    if grid == "lasso":
        solved = lasso_path(G, c, energy, mean=statistic.mean)
    else:
        solved = select_planes(G, c, energy)
    distortion = solved.objective[bits] * statistic.step**2
    scale = np.full(len(bits), statistic.step)
    return Curve(bits, distortion, scale, peak, solved.value.coefs[bits])
