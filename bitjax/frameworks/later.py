"""Sites that only the training call of a model has, such as those of auxiliary classifiers."""

from collections.abc import Mapping
from typing import Any

from bitjax.frameworks.call import Asked, Variables
from bitjax.variables import QUANT, STATS


def later_call(
    model: Any,
    asked: Asked,
    variables: Variables,
    args: tuple,
    kwargs: Mapping[str, Any],
    rngs: Mapping[str, Any],
    *,
    method: Any = None,
) -> Asked | None:
    """The training call of a `Model`, if it has sites that the call `asked` has not."""
    # `method` is which of a Linen module's methods is called.
    if not model.rules:
        return None
    given = model.as_training(args, kwargs, method)
    if given is None:
        return None
    mutable = [name for name in variables if name not in ("params", QUANT, STATS)]
    try:
        later = model.ask(variables, *given, rngs=rngs, mutable=mutable, method=method)
    except Exception:  # of any kind: the call is a user's
        # It may need what nobody gave: parameters that a float init without `train=True` did not
        # make, further arguments, a device axis. Where it is called, it says so itself.
        return None
    return later if later_sites(asked, later) else None


def later_sites(asked: Asked, later: Asked | None) -> frozenset[str]:
    """The sites of a training call that are not those of the call before it."""
    if later is None:
        return frozenset()
    return frozenset(later.call.program.sites) - frozenset(asked.call.program.sites)
