"""What every solver returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Solution(NamedTuple):
    """A solver's answer.

    Attributes:
        value: the answer itself, in the form that the solver's docstring states.
        objective: what was minimised, at `value`.
        stats: how the solver got there, and how far from the best it may be; keys in the solver's
            docstring.
    """

    value: Any
    objective: Any
    stats: Mapping[str, Any]
