"""The page: what is in it as text, and what a browser makes of it."""

import html.parser
import inspect
import json
import re
import shutil
import subprocess

import pytest

from bitjax.quantizers.bitlength import bitlength
from bitjax.report.comparison import compare
from bitjax.report.html import page, page_script
from bitjax.report.page_data import curve, start_bits
from bitjax.runs.records import Skipped, read_runs
from tests.run_folders import write_run

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


def test_a_page_of_many_runs_has_shorter_curves(tmp_path):
    (record,), _ = read_runs([write_run(tmp_path / "run", rows=1001)])
    assert len(curve(record, 24)["step"]) <= 24 and curve(record, 24)["step"][-1] == 10010


def test_what_was_evaluated_on_the_way_is_a_curve_of_its_own_and_kl_is_one(tmp_path):
    run = write_run(tmp_path / "run", rows=2)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 20, "eval_accuracy": 0.5, "eval_kl": 0.25}) + "\n")
    (record,), _ = read_runs([run])
    assert curve(record, before="eval_") == {"step": [20], "accuracy": [0.5], "kl": [0.25]}
    assert curve(record)["step"] == [10, 20] and "kl" not in curve(record)


def test_the_bits_at_the_start_are_those_of_the_first_rule_that_matches(tmp_path):
    (record,), _ = read_runs([write_run(tmp_path / "run")])
    rules = [["conv1/.*", {"name": "uniform", "bits": 6}], ["conv2/kernel", None],
             [".*/kernel", {"name": "bitlength"}], [".*2/input", {"name": "my.own"}]]  # fmt: skip
    assert start_bits(rules, record.sites) == [6, 6, 32, None, 8, 32, 8, 32]
    usual = inspect.signature(bitlength).parameters["init"].default
    assert start_bits([[".*", {"name": "bitlength"}]], record.sites[:1]) == [usual]


@pytest.mark.parametrize("rules", [None, 3, [[1, 2]], [["(", None]], [["(a+)+", None]], [[".*"]],
                                   [[".*" * 9, None]], [[".*", "lsq"]], [[".*", {}]]])  # fmt: skip
def test_rules_that_cannot_be_read_in_time_give_no_start(rules, tmp_path):
    (record,), _ = read_runs([write_run(tmp_path / "run")])
    assert start_bits(rules, record.sites) is None


def test_links_lead_to_what_a_run_keeps_and_has_exported(tmp_path):
    run = write_run(tmp_path / "a run")
    (run / "export").mkdir()
    (run / "export" / "model <1>.onnx").write_bytes(b"x")
    data = json.loads(Parts(make_page([run], beside=str(tmp_path))).scripts[0][1])
    links = dict(data["runs"][0]["links"])
    assert links["result.json"] == "./a%20run/result.json" and "metrics.jsonl" in links
    assert links["export/model <1>.onnx"] == "./a%20run/export/model%20%3C1%3E.onnx"


def test_names_lose_what_all_of_a_group_begin_with_in_warnings_too(tmp_path):
    a = write_run(tmp_path / "a", method="lsq", bits=(2, 2))
    b = write_run(tmp_path / "b", method="pact", bits=(8, 8))
    data = json.loads(Parts(make_page([a, b])).scripts[0][1])
    (group,) = data["groups"]
    assert group["shared"] == "digits/"
    assert "(lsq to pact)" in " ".join(group["warnings"])


def test_a_folder_that_goes_away_while_the_page_is_made_only_loses_its_links(tmp_path):
    run = write_run(tmp_path / "run")
    records, _ = read_runs([run])
    shutil.rmtree(run)
    data = json.loads(Parts(page(compare(records), {})).scripts[0][1])
    assert data["runs"][0]["links"] == [] and data["runs"][0]["figures"]


@pytest.mark.parametrize("cut", ["result.json", "config.json", "bits.csv"])
def test_a_run_that_is_half_written_is_listed_with_the_reason(cut, tmp_path):
    whole, half = write_run(tmp_path / "whole"), write_run(tmp_path / "half", seed=1)
    text = (half / cut).read_text()
    (half / cut).write_text(text[: len(text) // 2 + 1])
    data = json.loads(Parts(make_page([whole, half])).scripts[0][1])
    assert [run["folder"] for run in data["runs"]] == [str(whole)]
    (left,) = data["skipped"]
    assert left["folder"] == str(half) and left["reason"]


def test_a_run_without_a_score_is_listed_with_the_reason(tmp_path):
    whole, none = write_run(tmp_path / "whole"), write_run(tmp_path / "none", score=None)
    result = json.loads((none / "result.json").read_text())
    del result["accuracy"]
    (none / "result.json").write_text(json.dumps(result))
    data = json.loads(Parts(make_page([whole, none])).scripts[0][1])
    assert "result.json has no accuracy; run its config again" in data["skipped"][0]["reason"]
