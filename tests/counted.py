"""How many programs a piece of a test compiles, whatever their time."""

import contextlib
from collections.abc import Iterator

from jax import monitoring


@contextlib.contextmanager
def compiling() -> Iterator[list[float]]:
    """Gives a list that gets an entry for every program that is compiled, or read from a file."""
    found: list[float] = []

    def listen(event, seconds, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        monitoring.unregister_event_duration_listener(listen)
