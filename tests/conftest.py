"""What every test shares: JAX on the CPU, quiet logs, hypothesis profiles and the real data."""

import gc
import logging
import os
from pathlib import Path

from tests.compiling import QUICKLY, SLOW, compile_quickly

# Before the first import of jax, which reads them once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests leave the user's caches alone. What they decode lies in the checkout; programs compile anew.
os.environ["BITJAX_CACHE_DIR"] = str(Path(__file__).parents[1] / ".pytest_cache" / "bitjax")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")
if QUICKLY:
    compile_quickly()

import hypothesis
import pytest

for name in ("absl", "jax", "orbax"):
    logging.getLogger(name).setLevel(logging.ERROR)

gc.set_threshold(50_000, 20, 50)  # as commands do: tracing makes many objects and few cycles

# Derandomized, so that a failure seen once is seen again; the first compilation of a function
# takes longer than any deadline worth setting.
hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=20)
hypothesis.settings.register_profile("slow", deadline=None, derandomize=True, max_examples=200)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session", autouse=SLOW)
def programs_that_tests_start_compile_quickly():
    """Whether a run is resumed, refused or killed does not depend on how its steps compile."""
    import jax

    jax.devices()  # this process has read its own flags now
    compile_quickly()


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder `$BITJAX_DATA` of real data; the test is skipped, or fails in CI, without it."""
    folder = os.environ.get("BITJAX_DATA")
    if folder and Path(folder).is_dir():
        return Path(folder)
    reason = f"needs the real data: BITJAX_DATA is {folder or 'not set'}"
    if os.environ.get("BITJAX_REQUIRE_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)  # real data are no requirement of the suite
