"""The alternatives of a rule's pattern, which a misspelt name makes idle one by one."""

import re

import pytest

from bitjax.diagnostics.checks.rules import alternatives


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("stem/kernel", []),
        ("(a|b)/kernel", ["(a)/kernel", "(b)/kernel"]),
        ("a/x|b/y", ["a/x", "b/y"]),
        ("(?:a|b)(c|d)", ["(?:a)(c|d)", "(?:b)(c|d)", "(?:a|b)(c)", "(?:a|b)(d)"]),
        ("(a(b|c)|d)", ["(a(b)|d)", "(a(c)|d)", "(a(b|c))", "(d)"]),
        ("(?P<name>a|b)", ["(?P<name>a)", "(?P<name>b)"]),
        (r"a\|b[|)]\(", []),
        (r"[]|)](a|[^]|]b)", [r"[]|)](a)", r"[]|)]([^]|]b)"]),
        ("(?!a|b).*", []),
        ("(a|b)+", []),  # a name may hold both
        (r"(a|(b))\2", [r"((b))\2"]),  # alone, `a` leaves no group 2
    ],
)
def test_each_alternative_is_taken_alone(pattern, expected):
    assert re.compile(pattern)
    found = [alone for _, _, alone in alternatives(pattern)]
    assert sorted(found) == sorted(expected)


def test_an_alternative_is_known_by_its_place():
    pattern = "(stem|haed)/(kernel|input)"
    places = [pattern[start:end] for start, end, _ in alternatives(pattern)]
    assert places == ["stem", "haed", "kernel", "input"]
