"""One run in the terminal: what the folder holds, and what its model does with a batch."""

import json

import pytest

from bitjax.cli import inspect
from bitjax.runs.folder import config_hash
from bitjax.runs.manifest import read_manifest, write_manifest
from tests.run_folders import write_run


def call(capsys, *words):
    inspect.main([str(word) for word in words])
    return capsys.readouterr().out


def test_sites_bits_and_costs_are_printed_without_loading_the_model(tmp_path, capsys):
    run = write_run(tmp_path / "run", bits=(3, 32))
    text = call(capsys, run, "--no-model")
    row = next(line for line in text.splitlines() if "conv2/kernel" in line)
    # 4608 weights of 3 bits are 1.7 kB; 73,728 of all 159,232 MACs are 46.3 % where bits are equal.
    assert row.split() == [
        "conv2/kernel",
        "3.25",
        "->",
        "3",
        "━━━",
        "4,608",
        "1.7",
        "73,728",
        "46.3",
    ]
    floats = next(line for line in text.splitlines() if "conv2/input" in line)
    assert "float" in floats and "━" not in floats
    assert "Loom" in text and "configs/digits/lsq.py" in text


def test_what_the_model_would_show_is_left_out_with_the_reason(tmp_path, capsys):
    text = call(capsys, write_run(tmp_path / "run"))
    assert "conv3/input" in text
    assert "are left out: there is no " in text and "checkpoints" in text


@pytest.mark.parametrize("settings", [{}, {"model": {"name": "no_such_net"}}])
def test_a_config_that_this_version_cannot_build_costs_the_model_only(tmp_path, capsys, settings):
    run = write_run(tmp_path / "run", settings=settings)
    (run / "checkpoints").mkdir()
    text = call(capsys, run)
    assert "conv3/input" in text and "findings are left out: " in text


def test_no_run_or_several_end_in_one_line(tmp_path):
    for i in range(2):
        write_run(tmp_path / "runs" / str(i), seed=i)
    for words, said in (
        ([], "arguments are required: run"),
        ([tmp_path, "--batch=0"], r"--batch: must be an integer in \[1, 10000\], got '0'"),
        ([tmp_path / "none"], "does not exist"),
        ([tmp_path / "runs"], "holds several runs, name one"),
    ):
        with pytest.raises(ValueError, match=said):
            inspect.main([str(word) for word in words])


@pytest.mark.slow
def test_saturation_zeros_and_findings_come_from_the_runs_own_model(tmp_path, capsys):
    from bitjax.launch.build import build_work, open_folder
    from bitjax.launch.schema import plain
    from bitjax.training.runner import run
    from configs.digits.lsq import get_config

    config = get_config()
    config.model = {"name": "mlp", "num_classes": 10, "features": (16,)}
    config.method.steps = 2
    config.rules = (
        (".*/kernel", {"name": "ternary"}),
        (".*/input", {"name": "uniform", "bits": 4, "signed": False}),
    )
    work = build_work(config, source="configs/digits/lsq.py")
    run(work, open_folder(config, tmp_path / "run"), show=False)
    looks, findings = inspect.look_inside(inspect.load_run(tmp_path / "run"), 32)
    assert set(looks) == {s for s in work.costs if not s.startswith("none")}
    for site, look in looks.items():
        assert 0 <= look.saturated <= 1
        if site.endswith("kernel"):
            assert 0.2 < look.zeros < 0.8  # ternary kernels have about a third to a half
    # the image is normalised, so that an unsigned input loses what is below 0
    assert "use signed=True" in findings
    text = call(capsys, tmp_path / "run")
    assert "doctor:" in text and "left out" not in text
    # looked into where there are neither so many devices nor an accelerator
    config.devices, config.steps_per_dispatch, config.accumulate = 64, 5, 3
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    result["config_hash"] = config_hash(plain(config))
    (tmp_path / "run" / "config.json").write_text(json.dumps(plain(config)))
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    for path in (tmp_path / "run" / "checkpoints").iterdir():  # which say whose they are
        manifest = read_manifest(path)
        manifest["meta"]["run"]["config_hash"] = result["config_hash"]
        (path / "manifest.json").unlink()
        write_manifest(path, manifest)
    text = call(capsys, tmp_path / "run")
    assert "doctor:" in text and "left out" not in text
