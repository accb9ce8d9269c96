"""Whatever JSON a run's files hold, reading and comparing end in values, never in an exception."""

import copy
import json
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import given

from bitjax.launch.command import command_of
from bitjax.report.comparison import compare
from bitjax.report.html import page
from bitjax.report.tables import csv_text, json_value, markdown
from bitjax.runs.folder import config_hash
from bitjax.runs.records import read_runs
from bitjax.runs.rows import write_json
from tests.run_folders import write_run

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=3,
)
huge = st.sampled_from([10**400, 1e308, -1, "", "\x00", "\ud800", "a\nb|`<", {"name": "x"}])


def paths(value, path=()):
    """The path of everything inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, below in inside:
        yield (*path, key)
        if isinstance(below, dict | list):
            yield from paths(below, (*path, key))


def changed(value, path, new):
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return value


@given(st.data(), values | huge)
def test_one_value_in_a_file_is_another(data, new):
    with tempfile.TemporaryDirectory() as root:
        fine = write_run(Path(root) / "fine", method="full_precision", rows=2)
        measured = data.draw(st.sampled_from([None, {"perplexity": 3.79, "loss": 1.33}]))
        run = write_run(Path(root) / "run", rows=2, measured=measured, cache=1280)
        name = data.draw(st.sampled_from(["result.json", "config.json", "metrics.jsonl"]))
        text = (run / name).read_text()
        value = [json.loads(line) for line in text.splitlines()]
        value = changed(value, data.draw(st.sampled_from(list(paths(value)))), new)
        (run / name).write_text("\n".join(map(json.dumps, value)))
        if name == "config.json" and isinstance(value[0], dict):  # else it is told by its hash
            result = json.loads((run / "result.json").read_text())
            result["config_hash"] = config_hash(value[0])
            (run / "result.json").write_text(json.dumps(result))
        records, skipped = read_runs([fine, run])
        assert len(records) + len(skipped) == 2 and records[0].folder == str(fine)
        comparison = compare(records, skipped=skipped, group=True)
        page(comparison, {r.folder: command_of(r) for r in records}).encode()
        csv_text(comparison).encode(), markdown(comparison).encode()
        write_json(Path(root) / "all.json", json_value(comparison))


@given(st.sampled_from(["result.json", "config.json", "bits.csv", "metrics.jsonl"]), st.data())
def test_bytes_are_lost_or_changed(name, data):
    with tempfile.TemporaryDirectory() as root:
        run = write_run(Path(root) / "run", rows=2)
        content = bytearray((run / name).read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[place] = data.draw(st.integers(0, 255))
        else:
            del content[place:]
        (run / name).write_bytes(content)
        records, skipped = read_runs([run])
        assert len(records) + len(skipped) == 1
