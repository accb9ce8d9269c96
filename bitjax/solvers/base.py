"""The result of every solver."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Solution(NamedTuple):
    """A solver's answer.

    Attributes:
        value: the answer itself, in the form that the solver's docstring states.
        objective: the minimised function at `value`.
        stats: figures of the search and bounds on its error; the solver's docstring has the keys.
    """

    value: Any
    objective: Any
    stats: Mapping[str, Any]
