"""A finished run is taken away in one command; what it leaves is whole, checked and shown."""

import json
import os
import sys

import numpy as np
import pytest

import bitjax as bj
from bitjax.cli import compare, export, inspect
from bitjax.launch import exports
from bitjax.runs.records import read_run
from tests.run_folders import write_run

CHECK = {
    "runtime": "onnxruntime", "versions": {"onnxruntime": "1.32"}, "images": 1000, "top1": 0.9,
    "evaluation": 0.9, "outputs": 3e-7, "first": "conv2/input", "margin": 4e-8, "same": 998,
    "border": 2, "broken": 0, "holds": True,
    "sites": [{"name": "conv2/input", "kind": "codes", "count": 9000, "differ": 2}],
}  # fmt: skip
FILES = [
    {"format": "packed", "path": "model.safetensors", "payload": 80, "bytes": 100, "checks": []},
    {"format": "qdq", "path": "model.qdq.onnx", "bytes": 2345, "checks": [CHECK]},
]


def exported(folder, files=FILES, **facts):
    """A run with an export, as the command leaves it."""
    run = write_run(folder, files={"model": {k: FILES[0][k] for k in ("path", "bytes", "payload")}})
    result = json.loads((run / "result.json").read_text())
    (run / "export").mkdir()
    listed = {key: result[key] for key in ("config_hash", "score")} | {"files": files, **facts}
    (run / "export" / "export.json").write_text(json.dumps(listed))
    (run / "export" / "model.qdq.onnx").write_bytes(b"x")
    return run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "arguments are required: run"),
        (["RUN", "--to=packed,tflite"], "--to takes some of packed,qdq,.*, got 'tflite'"),
        (["RUN", "--check", "--images=0"], r"--images: must be an integer in \[1, 10000000\]"),
        (["RUN/none"], "does not exist"),
        (["RUN"], "there is no .*checkpoints, and it holds the weights"),
    ],
)
def test_what_cannot_be_exported_is_one_line(tmp_path, words, said):
    run = write_run(tmp_path / "run")
    before = sorted(os.listdir(run))
    with pytest.raises(ValueError, match=said) as error:
        export.main([word.replace("RUN", str(run)) for word in [*words, "--to=packed"]
                     if word != "--to=packed" or not any("--to" in w for w in words)])  # fmt: skip
    assert "\n" not in str(error.value) and sorted(os.listdir(run)) == before


def test_a_run_that_is_not_finished_is_not_exported(tmp_path):
    run = write_run(tmp_path / "run", status="stopped", error="Stopped: by a signal")
    with pytest.raises(ValueError, match="is 'stopped', not finished"):
        export.main([str(run), "--to=packed"])
    assert not (run / "export").exists()


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("onnx", ["--to=qdq"]),
        ("flatbuffers", ["--to=stablehlo"]),
        ("onnxruntime", ["--to=qdq", "--check"]),
        ("qonnx", ["--to=qonnx", "--check"]),
    ],
)
def test_a_package_that_is_missing_is_told_before_anything_is_read(monkeypatch, package, words):
    if package != "onnx":
        for needed in ("onnx", "onnxruntime"):
            pytest.importorskip(needed)  # an extra has it, not the core
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs {package}.*: pip install 'bitjax\[export\]'"):
        export.main(["no/such/run", *words])


def test_inspect_and_the_page_show_files_sizes_and_differences(tmp_path, capsys):
    run = exported(tmp_path / "run")
    inspect.main([str(run), "--no-model"])
    text = capsys.readouterr().out
    assert "model.safetensors: packed, 100 bytes" in text
    line = next(line for line in text.splitlines() if line.startswith("export/model.qdq.onnx"))
    for part in ("2,345 bytes", "onnxruntime 1.32", "2 of 9,000", "conv2/input (4e-08)", "3e-07"):
        assert part in line
    compare.main([str(run), f"--out={tmp_path / 'report.html'}"])
    page = (tmp_path / "report.html").read_text()
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    files = data["runs"][0]["files"]
    assert [row[0] for row in files["rows"]] == [
        "model.safetensors",
        "export/model.safetensors",
        "export/model.qdq.onnx",
    ]
    # A link only to what is there, from where the page is.
    assert files["links"] == [None, None, "./run/export/model.qdq.onnx"]
    assert "0 of" not in files["rows"][2][5] and files["rows"][2][-1] == "yes"


@pytest.mark.parametrize(
    ("files", "facts", "said"),
    [
        ([{**FILES[1], "path": "../../secret"}], {}, "is no name of a file"),
        ([{**FILES[1], "bytes": "many"}], {}, "cannot be read"),
        ([{**FILES[1], "checks": [{}]}], {}, "cannot be read"),
        ("all", {}, "cannot be read"),
        (FILES, {"config_hash": "0" * 12}, "of another run, or of other figures"),
    ],
)
def test_an_export_that_is_damaged_is_a_note_and_the_run_is_read(tmp_path, files, facts, said):
    record = read_run(exported(tmp_path / "run", files, **facts))
    assert len(record.files) == 1 and record.score.value == 0.9
    assert said in record.notes[0] and "\n" not in record.notes[0]


def test_a_run_without_a_file_says_why(tmp_path):
    run = write_run(tmp_path / "run", files={"model": {"left_out": "it scales each example"}})
    assert read_run(run).notes == ("no packed file: it scales each example",)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run of a small network on the digits."""
    from bitjax.launch.build import build_work, open_folder
    from bitjax.training.runner import run
    from configs.digits.lsq import get_config

    folder = tmp_path_factory.mktemp("finished") / "run"
    config = get_config()
    config.model = {"name": "mlp", "num_classes": 10, "features": (16,)}
    config.method.steps = 30
    config.rules = ((".*", {"name": "lsq", "bits": 4}),)

    def again():
        work = build_work(config, source="configs/digits/lsq.py")
        return run(work, open_folder(config, folder), show=False).result

    return folder, again(), again


@pytest.mark.slow
def test_a_finished_run_leaves_its_model_and_is_left_alone(finished):
    folder, result, again = finished
    model = result["files"]["model"]
    assert model["payload"] == result["cost"]["model_bytes"]
    assert model["bytes"] == (folder / model["path"]).stat().st_size
    packed = bj.load_packed(folder / model["path"])
    assert packed.about["classes"] == 10 and packed.about["max_value"] == 16

    def stamps():
        names = (model["path"], "result.json", "bits.csv", "metrics.jsonl")
        return [(folder / name).stat().st_mtime_ns for name in names]

    before = stamps()
    assert again() == result and stamps() == before
    (folder / model["path"]).unlink()  # but what is missing is made again
    assert again()["files"] == result["files"] and (folder / model["path"]).exists()


@pytest.mark.slow
def test_a_run_is_exported_in_every_format_and_checked(finished, tmp_path, capsys):
    for package in ("onnxruntime", "qonnx", "flatbuffers"):
        pytest.importorskip(package)  # an extra has it, not the core
    folder, result, _ = finished
    words = [str(folder), f"--to={','.join(exports.FORMATS)}", "--check", "--images=120"]
    export.main(words)
    text = capsys.readouterr().out
    listed = json.loads((folder / "export" / "export.json").read_text())
    assert [entry["format"] for entry in listed["files"]] == list(exports.FORMATS)
    for entry in listed["files"]:
        assert entry["bytes"] == (folder / "export" / entry["path"]).stat().st_size
        assert entry["path"] in text
        for check in entry["checks"]:
            assert check["holds"] and check["top1"] == check["evaluation"], check
            assert check["images"] == (16 if check["runtime"] == "numpy" else 120)
    assert listed["score"]["value"] == result["accuracy"]
    assert len(read_run(folder).files) == 1 + len(exports.FORMATS)
    # A packed file of a shipped model is a model too; there is no data set to be right about.
    export.main([str(folder / "model.safetensors"), "--to=integers", f"--out={tmp_path / 'out'}",
                 "--check", "--images=8"])  # fmt: skip
    (entry,) = json.loads((tmp_path / "out" / "export.json").read_text())["files"]
    assert entry["checks"][0]["top1"] is None and entry["checks"][0]["agrees"] == 1


@pytest.mark.slow
def test_an_export_that_fails_leaves_what_was_there(finished, tmp_path):
    folder, _, _ = finished
    source, out = exports.find_source(folder), tmp_path / "out"

    def write(source, formats):
        return exports.export(source, formats, out, images=0, say=lambda *_: None)

    write(source, ["packed"])
    before = (out / "export.json").read_bytes()
    (mine := tmp_path / "mine").mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is there and holds no export"):
        exports.export(source, ["packed"], mine, images=0, say=lambda *_: None)
    broken = source._replace(about={**source.about, "mean": "none"})
    with pytest.raises(ValueError, match="mean"):
        write(broken, ["packed"])
    assert (out / "export.json").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["mine", "out"]
    assert os.listdir(mine) == ["thesis.tex"]


@pytest.mark.slow
def test_the_table_of_runtimes_takes_what_is_there_and_makes_the_rest(finished, tmp_path):
    pytest.importorskip("onnxruntime")  # an extra has it, not the core
    from experiments import runtimes

    folder, result, _ = finished
    row = runtimes.row_of(folder, 40)
    listed = (folder / "export" / "export.json").stat().st_mtime_ns
    again = runtimes.row_of(folder, 40)
    assert again == row and (folder / "export" / "export.json").stat().st_mtime_ns == listed
    line = next(x for x in runtimes.document([row]).splitlines() if "digits/lsq" in x)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == f"{100 * result['accuracy']:.2f}"
    assert len(set(cells[2:5])) == 1 and cells[5] == cells[6] == "40 / 0 / 0"
    assert int(cells[7].replace(",", "")) == result["cost"]["model_bytes"]
    assert np.isclose(float(cells[2]) * 0.4 % 1, 0, atol=1e-6)  # of 40 images
