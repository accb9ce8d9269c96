"""Solves the coefficients of kept planes anew from the averages that their sites observed."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from bitjax.checks import checked
from bitjax.frameworks.linen import Quantized
from bitjax.rules import quantizer_of
from bitjax.solvers.plane_selection import gram_of_codes, levels_increase
from bitjax.variables import QUANT, STATS, VARIABLES

_DEAD = 1e-7  # a plane that is 1 less often does not determine its coefficient
_NO_SITE = (
    "no site has averages to solve coefficients from: give inputs bitplane(coefficients='solved') "
    "quantizers, and run bitjax.calibrate or some training steps first."
)


@checked(variables=VARIABLES)
def solve_coefficients(model: Quantized, variables: Mapping[str, Any]) -> dict[str, Any]:
    r"""Gives planes the coefficients of least squared error, from the averages their sites keep.

    $$\alpha_S = G_{SS}^{-1} c_S, \quad G_{ij} = E\,b_i b_j, \quad c_i = E\,b_i u$$

    S are the planes that a site keeps; they stay the same. If a solution has a negative coefficient
    or a larger code with a lower level, the site keeps its old coefficients.

    Args:
      model: a wrapped model with `bitjax.bitplane(coefficients="solved")` inputs.
      variables: all collections of the model, with `quant_stats` after `bitjax.calibrate` (exact
        averages over its batches) or after training steps (moving averages).

    Returns:
      The variables with new `coefficients` at these sites; everything else as it was.

    Raises:
      ValueError: no site has such a quantizer, or none of them has observed a batch.

    Example:
      >>> import flax.linen as nn, jax
      >>> import bitjax as bj
      >>> x = jnp.abs(jax.random.normal(jax.random.key(0), (256, 8)))
      >>> planes = bj.bitplane(bits=3, depth=3, coefficients="solved")
      >>> model = bj.Quantized(nn.Dense(3), [bj.rule("input", planes)])
      >>> variables = bj.calibrate(model, model.init(jax.random.key(1), x), [x])
      >>> found = solve_coefficients(model, variables)["quant"]["input"]["coefficients"]
      >>> bool(jnp.all(jnp.abs(found / jnp.array([1.0, 2.0, 4.0]) - 1) < 0.2))
      True

    Source: arXiv 2006.05210, its LASSO without the penalty; from moving averages, it is the
      least squares of data that count less the older they are.
    """
    solved = 0

    def visit(quant, stats, path):
        nonlocal solved
        if "coefficients" in quant and "mass" in stats:
            quantizer = quantizer_of(model.rules, "/".join(path))
            assert quantizer is not None, "a site with averages has a quantizer"
            if np.all(np.asarray(stats["count"]) > 0):
                solved += 1
                new = _solve_layers(quant, stats, quantizer.traits.numbers == "signed")
                return {**quant, "coefficients": jnp.asarray(new, jnp.float32)}
            return quant
        return {
            name: visit(node, stats[name], (*path, name))
            if isinstance(node, Mapping) and name in stats
            else node
            for name, node in quant.items()
        }

    quant = visit(variables.get(QUANT, {}), variables.get(STATS, {}), ())
    if not solved:
        raise ValueError(_NO_SITE)
    return {**variables, QUANT: quant}


def _solve_layers(quant, stats, signed):
    """The coefficients of a site, or of the layers of a scan, [..., depth]."""
    old = np.asarray(quant["coefficients"], np.float64)
    lead = old.shape[:-1]
    given = (old, quant["bits"], quant["shift"], stats["mass"], stats["first"])
    flat = [np.asarray(a, np.float64).reshape(-1, *np.shape(a)[len(lead) :]) for a in given]
    rows = [_solve(*(a[i] for a in flat), signed=signed) for i in range(len(flat[0]))]
    return np.stack(rows).reshape(old.shape)


def _solve(old, bits, shift, mass, first, *, signed):
    gram, cross = gram_of_codes(mass, first)
    low, high = int(np.rint(shift)), int(np.rint(shift) + np.rint(bits) - signed)
    kept = np.arange(old.size)
    kept = kept[(kept >= low) & (kept < high) & (np.diagonal(gram) >= _DEAD) & (old > 0)]
    new = old.copy()
    # Equal planes (of a constant) share their coefficient where solving would fail.
    new[kept] = np.linalg.lstsq(gram[np.ix_(kept, kept)], cross[kept], rcond=1e-10)[0]
    window = new[low:high]
    return new if (new[kept] > 0).all() and levels_increase(window) else old
