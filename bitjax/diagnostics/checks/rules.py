"""Findings on rules: those that do nothing, alternatives that do nothing, work out of reach."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence

from bitjax.diagnostics.findings import Found
from bitjax.frameworks.call import check_programs
from bitjax.program.body import Body
from bitjax.program.program import Program
from bitjax.rules import Rule, find

# What a group that is matched may open with; looking ahead or behind is no alternative for a name.
_OPENS = re.compile(r"\((?:\?(?::|>|P<\w+>|[aiLmsux-]+:)|(?!\?))")
_OUT_OF_REACH = 0.01  # share of the multiply-adds


def idle_rules(rules: Iterable[Rule], programs: Sequence[Program]) -> tuple[list[Rule], list]:
    """The rules that do something, and a finding for each of the others."""
    found: list[Found] = []
    rules = list(rules)
    while rules:
        try:
            check_programs(rules, programs)
            break
        except ValueError as error:
            text = str(error)
            idle = next(r for r in rules if text.startswith(f"rule {r.pattern!r} "))
            message = text.removeprefix(f"rule {idle.pattern!r} ")
            found.append(Found("error", idle.pattern, f"the rule {message}"))
            rules = [r for r in rules if r is not idle]
    return rules, found


def idle_alternatives(rules: Iterable[Rule], programs: Sequence[Program]) -> Iterator[Found]:
    """Alternatives of a rule's pattern, `(conv1|haed)/kernel`, that match no site."""
    sites = list(dict.fromkeys(site for program in programs for site in program.sites))
    for rule in rules:
        inside = -1
        for start, end, alone in sorted(alternatives(rule.pattern)):
            if start < inside or any(find([Rule(alone, None)], site) for site in sites):
                continue
            inside = end  # of what is part of it nothing more is said
            text = rule.pattern[start:end]
            near = difflib.get_close_matches(alone, sites, n=1, cutoff=0.0)
            message = (
                f"its alternative {text!r} matches none of the {len(sites)} sites, so what it means"
                f" stays as other rules have it, or float: correct the pattern, or leave it out. "
                f"Nearest site: {near[0]}"
            )
            yield Found("warning", rule.pattern, message)


def alternatives(pattern: str) -> list[tuple[int, int, str]]:
    """Of every alternative its start, its end, and the pattern with it in its group alone."""
    found: list[tuple[int, int, str]] = []
    # Of each open group where it starts, and where its alternatives do; None in what is passed by.
    groups: list[tuple[int, list[int]] | None] = [(0, [0])]
    i = 0
    while i <= len(pattern):
        if i == len(pattern) or pattern[i] == ")":
            group = groups.pop() if groups else None
            repeated = pattern[i + 1 : i + 2] in tuple("*+?{")
            if group is not None and len(group[1]) > 1 and not repeated:
                start, starts = group
                for first, after in zip(starts, [*starts[1:], i + 1], strict=True):
                    alone = pattern[:start] + pattern[first : after - 1] + pattern[i:]
                    found.append((first, after - 1, alone))
        elif pattern[i] == "\\":
            i += 1
        elif pattern[i] == "[":
            i = _end_of_class(pattern, i)
        elif pattern[i] == "(":
            opened = _OPENS.match(pattern, i)
            inner = opened is not None and groups and groups[-1] is not None
            groups.append((opened.end(), [opened.end()]) if inner and opened else None)
            i = opened.end() - 1 if opened else i
        elif pattern[i] == "|" and groups and groups[-1] is not None:
            groups[-1][1].append(i + 1)
        i += 1
    return [one for one in found if _compiles(one[2])]


def _end_of_class(pattern, start):
    """Where `[...]` ends; a `]` that comes first is part of it."""
    inner = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]").match(pattern, start)
    return inner.end() - 1 if inner else start


def _compiles(pattern):
    try:
        re.compile(pattern)
    except re.error:
        return False  # a reference to a group that is gone
    return True


def out_of_reach(program: Program) -> Iterator[Found]:
    """Products that no rule can name."""
    total = program.macs
    places: dict[tuple[str, str], int] = {}
    for part in program.unread:
        place = part.scope or "the model itself", part.why
        places[place] = places.get(place, 0) + part.macs
    for (scope, why), macs in sorted(places.items(), key=lambda item: -item[1]):
        if macs > _OUT_OF_REACH * total:
            message = (
                f"does {100 * macs / total:.1f} % of the multiply-adds where no rule reaches them "
                f"({why}), so they stay float: write them as a product of floats, outside of what "
                "JAX does not open, or count them as float"
            )
            yield Found("warning", scope, message)


def unused_layers(program: Program) -> frozenset[str]:
    """Layers whose output reaches no result."""
    used: set[str] = set()
    every: set[str] = set()

    def walk(body: Body):
        wanted = set(body.outs)
        for op in reversed(body.ops):
            needed = not op.outs or bool(wanted.intersection(op.outs))
            wanted.update(op.ins if needed else ())
            for inner in op.bodies:
                if needed:
                    walk(inner)
                else:
                    every.update(o.product.layer for b in inner.all() for o in b.ops if o.product)
            if op.product is not None:
                every.add(op.product.layer)
                used.update([op.product.layer] if needed else ())

    walk(program.body)
    return frozenset(every - used)


def unused(layers: Iterable[str]) -> Iterator[Found]:
    """A finding for each layer whose output is dropped."""
    for layer in sorted(layers):
        message = (
            "gives an output that reaches no result of the model, so nothing of it is trained: "
            "use it, or take the layer out"
        )
        yield Found("warning", layer or "the model", message)
