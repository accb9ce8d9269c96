"""Values that an argument may be, and values that it may not, from the table of what is allowed."""

import math
from typing import Any

from bitjax.checks import Allowed

_NEVER = ("nonsense", True, None, math.nan, math.inf, -math.inf, [], object())


def inside(allowed: Allowed) -> Any:
    """A value that the table allows."""
    match allowed.kind:
        case "integer" | "whole":
            return int(max(allowed.low, min(allowed.high, 2)))
        case "number":
            ends = max(allowed.low, -8.0), min(allowed.high, 8.0)
            return (ends[0] + ends[1]) / 2
        case "switch":
            return True
        case "array":
            return 2.0
        case "choice" | "one of":
            first = allowed.of[0]
            return inside(first) if isinstance(first, Allowed) else first
        case "pattern" | "text":
            return ".*"
        case "function":
            return list
        case "dtype":
            return "float32"
        case "batches":
            return []
        case "mapping":
            return {"a": inside(allowed.of[0])} if allowed.of else {}
        case "several":
            return [inside(allowed.of[0])] * max(1, int(allowed.low))
        case "value":
            kind = allowed.of[0]
            return (
                {} if kind.__module__ == "collections.abc" else kind.__new__(kind, *_fields(kind))
            )
    raise AssertionError(allowed.kind)


def _fields(kind: type) -> tuple[None, ...]:
    return (None,) * len(getattr(kind, "_fields", ()))


def outside(allowed: Allowed) -> list[Any]:
    """Values just outside what the table allows, and values of other types."""
    near: list[Any] = []
    if math.isfinite(allowed.low) and allowed.kind in ("integer", "whole", "number"):
        near += [allowed.low if allowed.above else allowed.low - 1]
    if math.isfinite(allowed.high):
        near += [allowed.high if allowed.below else allowed.high + 1]
    if allowed.kind in ("integer", "whole"):
        near += [inside(allowed) + 0.5, str(inside(allowed))]
    if allowed.kind == "number":
        near += [str(inside(allowed))]
    if allowed.kind == "switch":
        near += ["yes", 1, 0.0]
    if allowed.kind == "pattern":
        near += ["[", 3]
    if allowed.kind == "several":
        near += [inside(allowed.of[0]), *([one] for one in outside(allowed.of[0]))]
    if allowed.kind == "mapping":
        near += [{3: None}, *({"a": one} for part in allowed.of for one in outside(part))]
    if allowed.kind == "one of":
        near += [one for part in allowed.of for one in outside(part)]
    return [one for one in (*near, *_NEVER) if not allowed.holds(one)]
