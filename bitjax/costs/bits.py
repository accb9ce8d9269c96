"""Bits of a model's sites: read from its variables, or set."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.checks import ARRAY, NONE, check_one, checked, either, instance, mapping, number, whole
from bitjax.rules import RULES, Rules, quantizer_of
from bitjax.variables import QUANT, VARIABLES, read_site, write_site

Bits = Mapping[str, Any]


@checked(variables=VARIABLES)
def bits_of(variables: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The `bits` leaf of every quantized site, by site name.

    Args:
      variables: a model's variables, or its `quant` collection.

    Returns:
      `{site: bits}` in the tree's order; float sites are not in it.

    Example:
      >>> bits_of({"quant": {"conv": {"kernel": {"bits": jnp.float32(3.0)}}}})
      {'conv/kernel': Array(3., dtype=float32)}
    """
    quant = variables.get(QUANT, variables)
    check_one(QUANT, instance(Mapping), quant)
    found: dict[str, jax.Array] = {}

    def walk(tree, path):
        if "bits" in tree and not isinstance(tree["bits"], Mapping):
            found["/".join(path)] = tree["bits"]
            return
        for name, sub in tree.items():
            if isinstance(sub, Mapping):
                walk(sub, (*path, name))

    walk(quant, ())
    return found


@checked(variables=VARIABLES, bits=mapping(ARRAY), rules=either(NONE, RULES))
def with_bits(
    variables: Mapping[str, Any], bits: Bits, rules: Rules | None = None
) -> dict[str, Any]:
    """The variables with other bits at some sites; nothing else changes, and nothing compiles anew.

    Args:
      variables: all variables of a model.
      bits: `{site: bits}`, numbers or arrays that broadcast to the site's leaf. What every
        quantizer takes is an integer from 1 to 16.
      rules: the model's rules. With them, a site may have what its own quantizer takes: learned
        bits are fractions, and 0 where it prunes.

    Raises:
      ValueError: a site has no bits (the message lists those that have), or cannot have these.

    Example:
      >>> variables = {"quant": {"conv": {"kernel": {"bits": jnp.float32(3.0)}}}}
      >>> with_bits(variables, {"conv/kernel": 2})
      {'quant': {'conv': {'kernel': {'bits': Array(2., dtype=float32)}}}}
    """
    known, quant = bits_of(variables), variables.get(QUANT, {})
    for site, n in bits.items():
        if site not in known:
            raise ValueError(
                f"`bits` has {site!r}, which has no bits. Sites that have: {', '.join(known)}."
            )
        _check_bits(site, n, rules)
        leaf = jnp.broadcast_to(jnp.asarray(n, jnp.float32), known[site].shape)
        quant = write_site(quant, site, {**read_site(quant, site), "bits": leaf})
    return {**variables, QUANT: quant}


def _check_bits(site, bits, rules):
    """A ValueError for bits that the site's quantizer does not take; traced ones are not known."""
    if isinstance(bits, jax.core.Tracer):
        return
    quantizer = quantizer_of(rules, site) if rules is not None else None
    hint = "fractions and 0 need the model's rules, as with_bits(variables, bits, model.rules)."
    allowed = whole(1, 16, hint=hint if rules is None else "its bits are not learned.")
    if quantizer is not None:
        learned = quantizer.traits.learns_bits
        allowed = number(*learned) if learned else allowed._replace(low=0)
    for one in np.unique(np.asarray(bits)).tolist():
        check_one(f"bits[{site!r}]", allowed, one)
