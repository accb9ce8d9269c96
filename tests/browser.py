"""What tests ask of a page in a browser."""

import json
import os

import pytest

from bitjax.report.comparison import compare
from bitjax.report.html import page
from bitjax.runs.records import read_runs
from experiments import browser
from experiments.browser import Browser as Browser


def find_chromium() -> None:
    """Skips the test where there is no browser, or fails it where one is required."""
    if browser.find_chromium():
        return
    if os.environ.get("BITJAX_REQUIRE_BROWSER") == "1":
        pytest.fail(browser.MISSING)
    pytest.skip(browser.MISSING)  # a browser is no requirement of the suite


def made_of(folders, **options):
    """The page of run folders."""
    records, skipped = read_runs(folders)
    comparison = compare(records, skipped=skipped, group=True)
    return page(comparison, {r.folder: f"make {r.folder}" for r in records}, **options)


def texts(browser, selector):
    """The text of every element."""
    return browser.run(
        f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)"
    )


def boxes(browser, selector):
    """Left, top, right and bottom of every element in the window, in pixels."""
    return browser.run(
        f"[...document.querySelectorAll({json.dumps(selector)})].map(e => {{"
        " const b = e.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; })"
    )


def column(browser, key, table="#runs"):
    """A column of a table from top to bottom."""
    return browser.run(
        f"(() => {{ const heads = [...document.querySelectorAll('{table} th[data-key]')];"
        f" const i = heads.findIndex(h => h.dataset.key === '{key}');"
        f" return [...document.querySelectorAll('{table} tbody tr')].map("
        "r => r.children[i].textContent); })()"
    )


def put(browser, element, value, event):
    """Gives an input a value, as its event says."""
    browser.run(
        f"(() => {{ const e = document.getElementById('{element}'); e.value = {json.dumps(value)};"
        f" e.dispatchEvent(new Event('{event}')); }})()"
    )


def groups(browser):
    """Opens each group of the page in turn, and gives its number."""
    for place in range(browser.run("document.querySelectorAll('#groups button').length") or 1):
        browser.run(f"document.querySelectorAll('#groups button')[{place}]?.click()")
        yield place


def open_group(browser, title):
    """Opens the only group with this in its title, and gives its number."""
    names = texts(browser, "#groups button")
    (place,) = [place for place, name in enumerate(names) if title in name]
    browser.run(f"document.querySelectorAll('#groups button')[{place}].click()")
    return place
