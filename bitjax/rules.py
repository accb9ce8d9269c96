"""Rules choose the quantizer of a site; a site is one tensor, `stage2/block1/conv1/kernel`."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bitjax.quantizers.base import Quantizer

ROLES = ("kernel", "input")


class Rule(NamedTuple):
    """A pattern of sites and their quantizer.

    Attributes:
      pattern: a regular expression, matched in full against a site's name.
      quantizer: the quantizer of these sites; None leaves them float.
    """

    pattern: str
    quantizer: Quantizer | None


Rules = Sequence[Rule]


def rule(pattern: str, quantizer: Quantizer | None) -> Rule:
    """Maps the sites whose whole name a regular expression matches to a quantizer or to None.

    Args:
      pattern: a regular expression, matched in full against `layer/path/kernel` or
        `layer/path/input`.
      quantizer: a value such as `lsq(bits=4)`, or None to leave the sites float.

    Raises:
      ValueError: the pattern is not a regular expression.
      TypeError: the quantizer is neither a Quantizer nor None.

    Example:
      >>> rule("(stem|head)/.*", None).pattern
      '(stem|head)/.*'
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"`pattern` {pattern!r} is not a regular expression: {error}.") from error
    if quantizer is not None and not isinstance(quantizer, Quantizer):
        raise TypeError(
            f"`quantizer` of rule {pattern!r} must be a Quantizer such as bitjax.uniform(bits=4), "
            f"or None, got {quantizer!r}."
        )
    return Rule(pattern, quantizer)


def find(rules: Rules, site: str) -> Rule | None:
    """The first rule that matches a site, or None."""
    for candidate in rules:
        if re.fullmatch(candidate.pattern, site):
            return candidate
    return None


def quantizer_of(rules: Rules, site: str) -> Quantizer | None:
    """The quantizer that the rules give a site; None where it stays float."""
    matched = find(rules, site)
    return matched.quantizer if matched else None


def check_rules(
    rules: Rules,
    sites: Iterable[str],
    unreachable: Iterable[tuple[str, str]] = (),
    kernelless: Iterable[tuple[str, str]] = (),
) -> None:
    """A ValueError where a rule decides for no site, or gives an unreachable kernel a quantizer."""
    # `unreachable` are (site, layer kind) of kernels that the wiring does not reach, `kernelless`
    # of layers without a kernel, such as normalisations.
    sites = list(dict.fromkeys(sites))  # a layer that is called twice, or traced twice, is one
    used = {id(matched) for site in sites if (matched := find(rules, site))}
    for strict, others in ((True, unreachable), (False, kernelless)):
        for site, kind in others:
            matched = find(rules, site)
            if matched is None or (not strict and id(matched) in used):
                continue
            if matched.quantizer is not None:
                raise ValueError(
                    f"rule {matched.pattern!r} names {site!r}, but a {kind} layer cannot be "
                    "quantized: it computes without Flax's promote_dtype field (Dense, "
                    "DenseGeneral, Conv, ConvLocal, ConvTranspose, Einsum and Embed have it). Put "
                    f"rule({site!r}, None) before it, or build the layer from those."
                )
            used.add(id(matched))
    for candidate in rules:
        if id(candidate) in used:
            continue
        shadow = next((s for s in sites if re.fullmatch(candidate.pattern, s)), None)
        reason = (
            f"every site it names is decided by an earlier rule ({shadow!r} by "
            f"{find(rules, shadow).pattern!r})"  # pyrefly: ignore
            if shadow
            else "it matches no site in full"
        )
        raise ValueError(
            f"rule {candidate.pattern!r} does nothing: {reason}. Sites: {', '.join(sites)}."
        )
