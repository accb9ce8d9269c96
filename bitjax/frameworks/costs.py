"""Measures the sites of a model and their costs on one traced forward pass."""

from collections.abc import Mapping
from typing import Any

from bitjax.costs.site import SiteCost
from bitjax.frameworks.shapes import program_of
from bitjax.program.costs import costs_of


def site_costs(model: Any, *args: Any, **kwargs: Any) -> dict[str, SiteCost]:
    """Measures every site of a model by tracing one forward pass; computes nothing.

    A layer that is called several times counts its MACs each time, and a scanned body as often as
    it runs. Zeros of padding count. What only the training call computes, such as an auxiliary
    classifier, does not, unless that call is asked for with `train=True`.

    Args:
      model: a Linen module or `bitjax.Function`, with rules or without; the costs are the same.
      *args: positional arguments of the model; the first array's leading axis is the batch. Those
        of a function begin with its parameters.
      **kwargs: keyword arguments of the model.

    Returns:
      `{site: SiteCost}` in the order of the forward pass, kernels and inputs alike, whatever the
      rules.

    Raises:
      ValueError: no argument is an array with a batch axis.

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp
      >>> costs = site_costs(nn.Dense(4), jnp.ones((2, 3)))
      >>> costs["kernel"].macs, costs["kernel"].elements, costs["input"].elements
      (12, 12, 3)
    """
    program, batch = program_of(model, args, kwargs)
    return costs_of(program, batch)


def costs_with(
    model: Any, variables: Mapping[str, Any], args: tuple, kwargs: Mapping[str, Any]
) -> dict[str, SiteCost]:
    """As `site_costs`, of a model whose variables are known."""
    program, batch = program_of(model, args, kwargs, variables)
    return costs_of(program, batch)


def total_macs(model: Any, *args: Any, **kwargs: Any) -> int:
    """Multiply-adds per example of every product and convolution in the traced program.

    What exceeds `macs(site_costs(...))` is computed outside the sites; `summary` lists it.

    Args:
      model: a Linen module or `bitjax.Function`, with rules or without.
      *args: positional arguments of the model; the first array's leading axis is the batch.
      **kwargs: keyword arguments of the model.

    Returns:
      The multiply-adds of one example, a plain integer.

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp
      >>> total_macs(nn.Dense(4), jnp.ones((2, 3)))
      12
    """
    program, batch = program_of(model, args, kwargs)
    return program.macs // batch
