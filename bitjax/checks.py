"""What an argument may be, written once as data: the check, its message and the tests read it.

A table maps the names of arguments to what each may be. `@checked(bits=integer(1, 16))` refuses
everything else where the call enters, and `allowed_of` gives the table back. What goes with what
is checked in the function.
"""

import difflib
import functools
import inspect
import math
import numbers
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])

_LARGEST = 3.4e38  # of float32, which all settings become
_MOST = 2**31 - 1  # of int32


class Allowed(NamedTuple):
    """What one argument may be.

    Attributes:
      kind: `integer`, `whole` (an integer, perhaps as 4.0), `number`, `switch`, `choice`,
        `pattern`, `text`, `function`, `array`, `dtype`, `batches`, `value` (of the types `of`),
        `several`, `mapping` or `one of`.
      low: the least number.
      high: the greatest number.
      above: whether `low` itself is too small.
      below: whether `high` itself is too large.
      of: the values of a choice, the types of a value, what the entries of `several` and `mapping`
        may be, the parts of `one of`.
      hint: a sentence for the message that says what to do.
    """

    kind: str
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    of: tuple[Any, ...] = ()
    hint: str = ""

    def holds(self, value: Any) -> bool:
        """Whether a value is allowed."""
        return _HOLDS[self.kind](self, value)

    def __str__(self) -> str:
        return _SAYS[self.kind](self)


Table = Mapping[str, Allowed]


def integer(low: float, high: float = _MOST) -> Allowed:
    """An integer in [low, high]."""
    return Allowed("integer", low, high)


def whole(low: float, high: float, hint: str = "") -> Allowed:
    """A number in [low, high] without a fraction, 4 or 4.0."""
    return Allowed("whole", low, high, hint=hint)


def number(
    low: float = -math.inf, high: float = math.inf, *, above: bool = False, below: bool = False
) -> Allowed:
    """A finite number from `low` to `high`, the ends allowed unless it is `above` or `below`."""
    return Allowed("number", low, high, above, below)


def choice(*values: Any) -> Allowed:
    """One of a few values."""
    return Allowed("choice", of=values)


def several(entries: Allowed, low: int = 0, high: float = math.inf, *, hint: str = "") -> Allowed:
    """A list or tuple of `low` to `high` entries."""
    return Allowed("several", low, high, of=(entries,), hint=hint)


def mapping(entries: Allowed | None = None) -> Allowed:
    """A mapping from names, to such entries."""
    return Allowed("mapping", of=(entries,) if entries else ())


def either(*parts: Allowed) -> Allowed:
    """What one of the parts allows."""
    return Allowed("one of", of=parts)


def instance(*types: type, hint: str = "") -> Allowed:
    """An instance of one of the types."""
    return Allowed("value", of=types, hint=hint)


SWITCH = Allowed("switch")
PATTERN = Allowed("pattern")
TEXT = Allowed("text")
FUNCTION = Allowed("function")
ARRAY = Allowed("array")
DTYPE = Allowed("dtype")
BATCHES = Allowed("batches", hint="give a list, [x], or an iterator of batches.")
NONE = choice(None)


def _plain(given: Any) -> Any:
    """A scalar array as Python's number; a traced one has none yet."""
    if isinstance(given, jax.core.Tracer):
        return given
    return given.item() if hasattr(given, "item") and getattr(given, "ndim", None) == 0 else given


def _is_traced(value: Any, kind: Any) -> bool:
    """Whether it is a scalar under `jit`, `vmap` or `grad`, of which the type alone is known."""
    traced = isinstance(value, jax.core.Tracer) and value.ndim == 0
    return traced and jnp.issubdtype(value.dtype, kind) and _is_array(ARRAY, value)


def _is_number(allowed: Allowed, value: Any) -> bool:
    if isinstance(value, jax.core.Tracer):
        return _is_traced(value, jnp.number)
    given = _plain(value)
    real = isinstance(given, numbers.Real) and not isinstance(given, bool)
    return real and _is_between(allowed, given)


def _is_between(allowed: Allowed, given: Any) -> bool:
    low, high = max(allowed.low, -_LARGEST), allowed.high
    # Python compares integers of any size.
    inside = low <= given <= (high if math.isfinite(high) else _LARGEST)
    return inside and not (allowed.above and given == low) and not (allowed.below and given == high)


def _is_choice(allowed: Allowed, given: Any) -> bool:
    # True is no 1.
    same = (one for one in allowed.of if isinstance(given, bool) == isinstance(one, bool))
    return any(isinstance(given, type(one)) and given == one for one in same)


def _is_array(allowed: Allowed, given: Any) -> bool:
    del allowed
    try:
        dtype = given.dtype if hasattr(given, "dtype") else np.asarray(given).dtype
    except (TypeError, ValueError):
        return False
    return jnp.issubdtype(dtype, jnp.number) and not jnp.issubdtype(dtype, jnp.complexfloating)


def _is_dtype(allowed: Allowed, given: Any) -> bool:
    del allowed
    try:
        return given is not None and jnp.issubdtype(jnp.dtype(given), jnp.floating)
    except TypeError:
        return False


def _is_pattern(allowed: Allowed, given: Any) -> bool:
    del allowed
    try:
        return isinstance(given, str) and re.compile(given) is not None
    except (re.error, RecursionError, OverflowError):
        return False


_HOLDS: dict[str, Callable[[Allowed, Any], bool]] = {
    "number": _is_number,
    "whole": lambda a, v: (
        _is_number(a, v) and (_is_traced(v, jnp.number) or _plain(v) == int(_plain(v)))
    ),
    "integer": lambda a, v: (
        _is_number(a, v) and (_is_traced(v, jnp.integer) or isinstance(_plain(v), numbers.Integral))
    ),
    "switch": lambda a, v: isinstance(_plain(v), bool),
    "choice": _is_choice,
    "pattern": _is_pattern,
    "text": lambda a, v: isinstance(v, str),
    "function": lambda a, v: callable(v),
    "array": _is_array,
    "dtype": _is_dtype,
    "batches": lambda a, v: isinstance(v, Iterable) and not isinstance(v, str | bytes | Mapping),
    "mapping": lambda a, v: (
        isinstance(v, Mapping)
        and all(isinstance(name, str) for name in v)
        and all(part.holds(one) for part in a.of for one in v.values())
    ),
    "value": lambda a, v: isinstance(v, a.of),
    "several": lambda a, v: (
        isinstance(v, list | tuple)
        and a.low <= len(v) <= a.high
        and all(a.of[0].holds(one) for one in v)
    ),
    "one of": lambda a, v: any(part.holds(v) for part in a.of),
}


def _bounds(allowed: Allowed) -> str:
    low, high = allowed.low, allowed.high  # never `high` alone
    if math.isinf(low):
        return ""
    if high >= _LARGEST or high == _MOST:
        return f" above {low:g}" if allowed.above else f" of {low:g} or more"
    ends = "(" if allowed.above else "[", ")" if allowed.below else "]"
    return f" in {ends[0]}{low:.10g}, {high:.10g}{ends[1]}"


def _length(allowed: Allowed) -> str:
    if math.isfinite(allowed.high):
        return f" of {allowed.low:g} to {allowed.high:g}"
    return f" of {allowed.low:g} or more" if allowed.low else ""


_SAYS: dict[str, Callable[[Allowed], str]] = {
    "number": lambda a: f"{'' if a.high < _LARGEST else 'a finite number'}{_bounds(a)}".strip(),
    "whole": lambda a: f"an integer{_bounds(a)}",
    "integer": lambda a: f"an integer{_bounds(a)}",
    "switch": lambda a: "True or False",
    "choice": lambda a: f"one of {list(a.of)}" if len(a.of) > 1 else f"{a.of[0]!r}",
    "pattern": lambda a: "a regular expression",
    "text": lambda a: "text",
    "function": lambda a: "a function",
    "array": lambda a: "an array of real numbers",
    "dtype": lambda a: "a dtype of floats, such as 'bfloat16'",
    "batches": lambda a: "batches one after the other",
    "mapping": lambda a: f"a mapping from names{f' to {a.of[0]}' if a.of else ''}",
    "value": lambda a: " or ".join(f"a {kind.__name__}" for kind in a.of),
    "several": lambda a: f"a list{_length(a)}, each {a.of[0]}",
    "one of": lambda a: " or ".join(map(str, a.of)),
}


def check(table: Table, given: Mapping[str, Any]) -> None:
    """Raises a ValueError, in one line, for the first of the given values that is not allowed."""
    for name, allowed in table.items():
        if name in given and not allowed.holds(given[name]):
            raise ValueError(_refusal(name, allowed, given[name]))


def check_one(name: str, allowed: Allowed, given: Any) -> None:
    """As `check`, of one value whose bounds the call decides."""
    check({name: allowed}, {name: given})


def _hint(allowed: Allowed, given: Any) -> str:
    """What to do, where that is known."""
    if allowed.kind == "one of":
        return next(filter(None, (_hint(part, given) for part in allowed.of)), "")
    if allowed.kind == "whole" and not _is_number(allowed, given):
        return ""  # the hint is for fractions
    beyond = integer(_MOST + 1, _LARGEST)
    if allowed.kind == "integer" and allowed.high == _MOST and _is_number(beyond, given):
        return f"the largest is {_MOST}."
    if allowed.kind == "choice" and isinstance(given, str):
        near = difflib.get_close_matches(given, [v for v in allowed.of if isinstance(v, str)], 1)
        return f"did you mean {near[0]!r}?" if near else ""
    if allowed.kind == "pattern" and isinstance(given, str):
        try:
            re.compile(given)
        except (re.error, RecursionError, OverflowError) as error:
            return f"{error}."
    return allowed.hint


def _refusal(name: str, allowed: Allowed, given: Any) -> str:
    hint = _hint(allowed, given)
    said = " ".join(repr(given).split())
    said = said if len(said) <= 80 else f"{said[:80]}... ({type(given).__name__})"
    return f"`{name}` must be {allowed}, got {said}{f'; {hint}' if hint else '.'}"


def check_names(given: Mapping[str, Any], known: Mapping[str, Any], who: str) -> None:
    """Raises a TypeError, as Python does, for settings that `who` does not have."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}."
            raise TypeError(f"{who}() got an unexpected keyword argument {name!r}; {hint}")


def checked(**table: Allowed) -> Callable[[F], F]:
    """Refuses what the table does not allow, where the function is called."""

    def decorate(function: F) -> F:
        if isinstance(function, type):
            return _checked_fields(function, table)
        signature = inspect.signature(function)
        free = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
        # `**recipe: Unpack[Keywords]` is a list of names, `**kwargs: Any` is not.
        closed = any(typing.get_origin(p.annotation) is typing.Unpack for p in free)
        unknown = set(table) - set(signature.parameters)
        assert free or not unknown, f"{function.__name__} has no argument {unknown}"

        @functools.wraps(function)
        def call(*args, **kwargs):
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError:
                return function(*args, **kwargs)  # which says itself what is missing
            more = given.get(free[0].name, {}) if free else {}
            if closed:
                check_names(more, table, function.__name__)
            check(table, {**given, **more})
            return function(*args, **kwargs)

        vars(call)["allowed"] = table
        return call  # type: ignore[return-value]  it has the function's signature

    return decorate


def _checked_fields(kind: Any, table: Table) -> Any:
    """A dataclass whose fields are checked when it is made, before its own checks."""
    own = kind.__post_init__

    def __post_init__(self):
        check(table, {name: getattr(self, name) for name in table})
        own(self)

    kind.__post_init__, kind.allowed = __post_init__, table
    return kind


def allowed_of(function: Callable[..., Any]) -> Table:
    """The table of a function's arguments, empty where it has none."""
    return getattr(function, "allowed", {})
