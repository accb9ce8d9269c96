"""What tests of whole runs share."""

import jax
import pytest


@pytest.fixture(scope="module")
def programs_are_compiled_once(tmp_path_factory):
    """A resumed run compiles what the first one did; here it reads that from a file."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
