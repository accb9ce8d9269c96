"""A folder of compiled programs for a test, in the test's own process."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

_OPTIONS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@contextlib.contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """Has a folder be the user's cache, as in a process that has kept nothing yet."""
    before = {name: getattr(jax.config, name) for name in _OPTIONS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITJAX_CACHE_DIR", str(folder))
        jax.config.update("jax_compilation_cache_dir", None)
        reset_cache()
        try:
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            reset_cache()
