"""The built pages, as a browser shows them from files; `make docs` runs this behind Sphinx."""

import time
from pathlib import Path

import pytest

from tests.browser import Browser, find_chromium

PAGES = Path(__file__).parent.parent / "docs" / "_build" / "html"
WIDE = """[...document.querySelectorAll('article *')].filter(e =>
    e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(
        '.table-wrapper, pre, .highlight, div.math, math, table.indextable'
    )).map(e => e.outerHTML.slice(0, 120)).slice(0, 3)"""
pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (PAGES / "index.html").exists():
        pytest.skip("docs/_build/html is not there: make docs")  # only make docs builds it
    find_chromium()
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def test_no_page_scrolls_sideways_on_a_phone(browser):
    found = {}
    for path in sorted(PAGES.rglob("*.html")):
        if "_modules" in path.parts:
            continue
        browser.open(path, width=390, height=844)
        root = "document.documentElement"
        over = browser.run(f"{root}.scrollWidth - {root}.clientWidth")
        if over > 0 or browser.run(WIDE):
            found[path.relative_to(PAGES).as_posix()] = (over, browser.run(WIDE))
    assert not found


@pytest.mark.parametrize("width", [390, 1280])
def test_the_first_page_needs_no_scroll_bar_of_its_code(browser, width):
    browser.open(PAGES / "index.html", width=width, height=900)
    blocks = "[...document.querySelectorAll('article pre')]"
    assert browser.run(f"{blocks}.filter(e => e.scrollWidth > e.clientWidth).length") == 0
    shown = "[...document.querySelectorAll('article img')].filter(e => e.offsetWidth)"
    assert browser.run(f"{shown}.length") == 1
    assert browser.run(f"{shown}.every(e => e.complete && e.naturalWidth > 0)")


def test_search_works_from_files_without_an_error_and_the_corner_has_the_version(browser):
    import bitjax

    browser.open(PAGES / "search.html", width=1280)
    assert bitjax.__version__ in browser.run("document.querySelector('.sidebar-brand').innerText")
    browser.errors.clear()
    browser.click(".sidebar-search")
    browser.type("budget")
    browser.run("document.querySelector('.sidebar-search-container').submit()")
    deadline = time.monotonic() + 30
    found = "document.querySelectorAll('#search-results li').length"
    while not browser.run(found):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not browser.errors
