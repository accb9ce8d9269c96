"""The browser that the tests of a page share."""

import pytest

from experiments.browser import Browser
from tests.browser import find_chromium


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    find_chromium()
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened
        assert opened.errors == []
        assert all(url.startswith(("file:", "about:", "data:")) for url in opened.requests)
