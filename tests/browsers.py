"""The browser that tests look at pages with."""

import os

import pytest

from experiments.browser import MISSING, find_chromium


def need_chromium() -> None:
    """Skips the test where there is no browser, or fails it where one is required."""
    if find_chromium():
        return
    if os.environ.get("BITJAX_REQUIRE_BROWSER") == "1":
        pytest.fail(MISSING)
    pytest.skip(MISSING)  # a browser is no requirement of the suite
