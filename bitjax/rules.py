"""Rules choose the quantizer of a site; a site is one tensor, `stage2/block1/conv1/kernel`."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bitjax.checks import NONE, PATTERN, checked, either, instance, several
from bitjax.quantizers.base import QUANTIZER, Quantizer

ROLES = ("kernel", "input")
_CALL = re.compile(r"@\d+$")  # of the input of a call that has a site of its own
_FEW = 12  # sites that a message lists


class Rule(NamedTuple):
    """A pattern of sites and their quantizer.

    Attributes:
      pattern: a regular expression, matched in full against a site's name.
      quantizer: the quantizer of these sites; None leaves them float.
    """

    pattern: str
    quantizer: Quantizer | None


Rules = Sequence[Rule]
RULES = several(instance(Rule), hint="make each by bitjax.rule(pattern, quantizer).")


@checked(pattern=PATTERN, quantizer=either(NONE, QUANTIZER))
def rule(pattern: str, quantizer: Quantizer | None) -> Rule:
    """Maps the sites whose whole name a regular expression matches to a quantizer or to None.

    Args:
      pattern: a regular expression, matched in full against `layer/path/kernel` or
        `layer/path/input`.
      quantizer: a value such as `lsq(bits=4)`, or None to leave the sites float.

    Raises:
      ValueError: the pattern is not a regular expression, or the quantizer is neither a Quantizer
        nor None.

    Example:
      >>> rule("(stem|head)/.*", None).pattern
      '(stem|head)/.*'
    """
    return Rule(pattern, quantizer)


def find(rules: Rules, site: str) -> Rule | None:
    """The first rule that matches a site, or None."""
    for candidate in rules:
        if _matches(candidate, site):
            return candidate
    return None


def quantizer_of(rules: Rules, site: str) -> Quantizer | None:
    """The quantizer that the rules give a site; None where it stays float."""
    matched = find(rules, site)
    return matched.quantizer if matched else None


def check_types(rules: Any) -> None:
    """A TypeError where something else than a list of rules was given."""
    if isinstance(rules, Rule):
        raise TypeError(f"rules are a list: give [rule({rules.pattern!r}, ...)], not a rule alone.")
    if not isinstance(rules, Iterable):
        raise TypeError(f"rules are a list of bitjax.rule(pattern, quantizer), got {rules!r}.")
    for candidate in rules:
        if not isinstance(candidate, Rule):
            kind = type(candidate).__name__
            raise TypeError(f"rules are made by bitjax.rule(pattern, quantizer), got a {kind}.")
        rule(*candidate)  # checked, whoever made it


def check_rules(
    rules: Rules, sites: Iterable[str], unread: Iterable[Any] = (), idle: Iterable[str] = ()
) -> None:
    """A ValueError where a rule decides for no site; it lists the nearest names."""
    # `unread` is work without sites, by its `scope`, `why` and the `layers` of its parameters;
    # `idle` are the paths of parameters that no site holds. What is float may be said to be.
    sites, unread, idle = list(dict.fromkeys(sites)), list(unread), list(idle)
    used = {id(matched) for site in sites if (matched := find(rules, site))}
    for candidate in rules:
        if id(candidate) in used:
            continue
        shadowed = _shadowed(candidate, rules, sites)
        float_already = _outside(candidate, unread, idle)
        if candidate.quantizer is None and float_already and not shadowed:
            continue
        reason = shadowed or float_already or "it matches no site in full"
        raise ValueError(
            f"rule {candidate.pattern!r} does nothing: {reason}. "
            f"{_nearest(candidate, sites, unread)}"
        )


def _shadowed(candidate, rules, sites):
    """That earlier rules decide for all of a rule's sites, as text, or None."""
    shadow = next((s for s in sites if _matches(candidate, s)), None)
    if shadow is None:
        return None
    decided = find(rules, shadow)
    assert decided is not None, "a site that a rule matches is decided by one"
    return f"every site it names is decided by an earlier rule ({shadow!r} by {decided.pattern!r})"


def _outside(candidate, unread, idle):
    """That a rule names what has no site, as text, or None."""
    for work in unread:
        for name in (*filter(None, [work.scope]), *work.layers):
            if _names(candidate.pattern, name):
                return (
                    f"it names {name or 'kernel'!r}, whose work cannot be quantized ({work.why}): "
                    "leave it out, or compute it with products of floats that JAX differentiates"
                )
    for path in idle:
        named = (_names(candidate.pattern, name) for name in (path, _parent(path)) if name)
        if re.fullmatch(candidate.pattern, path) or any(named):
            return f"it names the parameter {path!r}, which no product reads"
    return None


def _parent(path):
    return path.rpartition("/")[0]


def check_masks(rules: Rules, sites: Iterable[Any]) -> None:
    """A ValueError where a masked kernel's quantizer moves zeros: the mask would leak."""
    # `sites` have a name and say whether they are `masked`.
    for site in sites:
        quantizer = quantizer_of(rules, site.name) if site.masked else None
        if quantizer is not None and not quantizer.traits.zero_is_code:
            raise ValueError(
                f"site {site.name!r} is masked, and {quantizer.name!r} has no level 0.0, so what "
                "the mask takes away would come back: give the quantizer zero_on_grid=True, take "
                f"one such as lsq or ternary, or leave the site float by rule({site.name!r}, None)."
            )


def _matches(candidate, site):
    """Whether a rule names a site: in full, or as one of all calls of its layer."""
    names = dict.fromkeys((site, _CALL.sub("", site)))
    return any(re.fullmatch(candidate.pattern, name) for name in names)


def _names(pattern, layer):
    """Whether a pattern names a site that a layer would have."""
    roles = (f"{layer}/{role}" if layer else role for role in ROLES)
    return any(re.fullmatch(pattern, site) for site in roles)


def _nearest(candidate, sites, unread):
    """The sites whose names are most like a pattern, or all where they are few."""
    if not sites and unread:
        return "The model has no sites: none of its products can be quantized."
    if not sites:
        return "The model has no sites: nothing in it multiplies data by parameters."
    if len(sites) <= _FEW:
        return f"Sites: {', '.join(sites)}."
    near = difflib.get_close_matches(candidate.pattern, sites, n=_FEW, cutoff=0.0)
    return f"Nearest of {len(sites)} sites: {', '.join(near)}."
