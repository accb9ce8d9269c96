"""The page: what is in it as text, and what a browser makes of it."""

import html.parser
import json
import re
import shutil
import subprocess
import time

import pytest

from bitjax.report.comparison import compare
from bitjax.report.html import curve, page, page_script
from bitjax.runs.records import Skipped, read_runs
from tests.browser import Browser, find_chromium
from tests.run_folders import write_many, write_run

NASTY = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2>&amp;'\"`|"


class Parts(html.parser.HTMLParser):
    """The elements of a page and the text of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.open: list[str] = []
        self.scripts: list[tuple[dict, str]] = []
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            attrs, before = self.scripts[-1]
            self.scripts[-1] = (attrs, before + data)


def make_page(folders, **options):
    records, skipped = read_runs(folders)
    comparison = compare(records, skipped=skipped, group=True)
    return page(comparison, {r.folder: f"make {r.folder}" for r in records}, **options)


def test_the_page_is_well_formed_and_holds_every_run_as_data(tmp_path):
    folders = [write_run(tmp_path / f"r{i}", seed=i) for i in range(3)]
    parts = Parts(make_page(folders))
    assert not parts.open
    data = json.loads(next(text for attrs, text in parts.scripts if attrs.get("id") == "data"))
    assert [run["folder"] for run in data["runs"]] == [str(f) for f in folders]
    assert data["runs"][0]["command"] == f"make {folders[0]}"
    assert {run["commit"] for run in data["runs"]} == {"0123456789ab"}
    assert [len(run["bits"]) for run in data["runs"]] == [8, 8, 8]


def test_the_page_asks_the_network_for_nothing(tmp_path):
    parts = Parts(make_page([write_run(tmp_path / "run")]))
    assert not [attrs for _, attrs in parts.tags if "src" in attrs or "href" in attrs]
    policy = next(a["content"] for _, a in parts.tags if "http-equiv" in a)
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_names_with_html_in_them_stay_text(tmp_path):
    run = write_run(tmp_path / "run", name=NASTY, device=NASTY, commit=NASTY)
    records, _ = read_runs([run])
    comparison = compare(records, skipped=[Skipped(NASTY, NASTY)])
    text = page(comparison, {str(run): NASTY}, title=NASTY)
    parts = Parts(text)
    assert [a.get("id") for a, _ in parts.scripts] == ["data", None]
    assert not [tag for tag, _ in parts.tags if tag == "img"]
    # "</script " and "<!--" would do harm as well: no "<" at all is the rule that covers all.
    assert not set("<>") & set(parts.scripts[0][1])
    data = json.loads(parts.scripts[0][1])
    assert data["runs"][0]["command"] == data["skipped"][0]["folder"] == NASTY


def test_curves_are_thinned_and_keep_their_last_row(tmp_path):
    (record,), _ = read_runs([write_run(tmp_path / "run", rows=1001)])
    found = curve(record)
    assert len(found["step"]) <= 120 and found["step"][-1] == 10010
    assert len(found["accuracy"]) == len(found["step"]) and "eval_accuracy" not in found
    (short,), _ = read_runs([write_run(tmp_path / "short", rows=3)])
    assert curve(short)["step"] == [10, 20, 30]


def test_a_page_of_two_scores_says_of_each_group_which_is_its_own(tmp_path):
    text = write_run(tmp_path / "text", measured={"perplexity": 3.79}, data="tokens", cache=1280)
    parts = Parts(make_page([write_run(tmp_path / "images"), text]))
    data = json.loads(parts.scripts[0][1])
    scores = [(g["score"]["key"], g["score"]["higher"]) for g in data["groups"]]
    assert scores == [("accuracy", True), ("perplexity", False)]
    keys = [figure["key"] for figure in data["figures"]]
    place = keys.index("perplexity")
    assert [run["figures"][place] for run in data["runs"]] == [None, 3.79]
    assert "perplexity" in data["runs"][1]["curve"] and "accuracy" in data["runs"][0]["curve"]
    assert "cache_bytes_per_token" in {cost["key"] for cost in data["costs"]}
    assert [group["rows"][0]["count"] for group in data["groups"]] == [1, 1]


def test_evaluations_between_logged_rows_make_no_holes_in_a_curve(tmp_path):
    run = write_run(tmp_path / "run", rows=200)
    path = run / "metrics.jsonl"
    logged = path.read_text().splitlines()
    steps = [json.loads(line)["step"] for line in logged]
    evaluated = [json.dumps({"step": step, "eval_accuracy": 0.5}) for step in steps]
    path.write_text(
        "\n".join(line for pair in zip(logged, evaluated, strict=True) for line in pair)
    )
    (record,), _ = read_runs([run])
    found = curve(record)
    assert found["step"][-1] == steps[-1] and None not in found["accuracy"] + found["bits"]


def test_numbers_that_are_not_finite_become_null(tmp_path):
    run = write_run(tmp_path / "run", rows=3)
    path = run / "metrics.jsonl"
    path.write_text(re.sub(r'"loss": [\d.e-]+', '"loss": "NaN"', path.read_text(), count=1))
    (record,), _ = read_runs([run])
    assert curve(record)["loss"][0] is None


def test_the_script_is_javascript(tmp_path):
    if not (node := shutil.which("node")):
        pytest.skip("needs node on the PATH; the browser's test asks more of the script")
    path = tmp_path / "page.js"
    path.write_text(page_script())
    subprocess.run([node, "--check", str(path)], check=True)


@pytest.mark.slow
def test_a_page_of_200_runs_is_built_in_10_seconds_and_below_5_megabytes(tmp_path):
    folders = write_many(tmp_path, 200)
    began = time.monotonic()
    text = make_page(folders)
    assert time.monotonic() - began < 10
    assert len(text.encode()) < 5 * 2**20


@pytest.mark.slow
@pytest.mark.browser
def test_a_browser_sorts_filters_and_shows_every_run_without_an_error(tmp_path):
    find_chromium()
    folders = write_many(tmp_path / "runs", 200)
    folders.append(write_run(tmp_path / "nasty", name=NASTY, method="lsq", seed=0))
    rates = {"rates": [1, 2], "sqnr": {NASTY: [4.0, 9.5], "bound: Gaussian": [6.0, 12.0]}}
    (folders[-1] / "distortion.json").write_text(json.dumps(rates))
    broken = tmp_path / "runs" / "broken <b>"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    path = tmp_path / "report.html"
    path.write_text(make_page([*folders, broken], title=NASTY))

    def column(key):
        """A column of the runs' table from top to bottom."""
        return browser.run(
            "(() => { const heads = [...document.querySelectorAll('#runs th')];"
            f" const i = heads.findIndex(h => h.dataset.key === '{key}');"
            " return [...document.querySelectorAll('#runs tbody tr')].map("
            "r => r.children[i].textContent); })()"
        )

    with Browser(tmp_path / "profile") as browser:
        browser.open(path)
        # every run is there
        assert sorted(column("folder")) == sorted(str(f) for f in folders)
        assert "201 of 201" in browser.run("document.getElementById('count').textContent")
        assert "not finished" in browser.run("document.getElementById('skipped').textContent")
        points = "document.querySelectorAll('#pareto-0 circle').length"
        assert browser.run(points) > 200
        # sorts, both ways
        accuracies = [float(text) for text in column("accuracy")]
        assert accuracies == sorted(accuracies, reverse=True)
        browser.click("#runs th[data-key='accuracy'] button")
        assert [float(t) for t in column("accuracy")] == sorted(accuracies)
        browser.click("#runs th[data-key='label'] button")
        assert column("method") != column("label") and len(column("label")) == 201
        labels = column("label")
        browser.click("#runs th[data-key='label'] button")
        assert column("label") != labels and sorted(column("label")) == sorted(labels)
        # filters, the chart too
        browser.click("#filter")
        browser.type("BitPruning seed3")
        wanted = [f for f in folders if "bitpruning" in str(f) and str(f).endswith("s3")]
        assert sorted(column("folder")) == sorted(map(str, wanted)) and wanted
        assert browser.run(points) == 2 * len(wanted)
        # another cost, and a run's own pictures and command
        browser.run("document.getElementById('cost').value = 'loom'")
        browser.run("document.getElementById('cost').dispatchEvent(new Event('change'))")
        assert "time on Loom" in browser.run("document.getElementById('pareto-0').textContent")
        browser.click("#runs tbody tr:last-child td")
        chosen = column("folder")[-1]
        assert browser.run("document.getElementById('command').textContent") == f"make {chosen}"
        assert browser.run("document.querySelectorAll('#bits-chart rect').length") == 40
        assert browser.run("document.querySelectorAll('#curve-accuracy path.curve').length") == 5
        assert browser.run("document.querySelectorAll('#map-0 rect').length") == 40 * len(wanted)
        # a name is text
        browser.run("document.getElementById('filter').value = 'script'")
        browser.run("document.getElementById('filter').dispatchEvent(new Event('input'))")
        assert column("label") == [NASTY]
        browser.click("#runs tbody tr td")
        assert browser.run("document.querySelectorAll('#distortion path.curve').length") == 1
        assert browser.run("document.querySelectorAll('#distortion path.front').length") == 1
        assert browser.run("document.title") == " ".join(NASTY.split())
        assert browser.run("window.hacked") is None
        assert browser.run("document.querySelectorAll('img').length") == 0
        # a filter that nothing passes
        browser.run("document.getElementById('filter').value = 'no such run'")
        browser.run("document.getElementById('filter').dispatchEvent(new Event('input'))")
        assert column("label") == []
        none = browser.run("document.getElementById('none').textContent")
        assert none.startswith('No run has all of "no", "such", "run" in its setting')
        browser.open(path, dark=True)
        assert browser.errors == []
        assert all(url.startswith(("file:", "about:", "data:")) for url in browser.requests)
