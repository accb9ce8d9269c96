"""A command that Ctrl-C meets while it starts, and one whose output nobody reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Ctrl-C at the moment at which a module is looked for.
INTERRUPTED = """
import os, signal, sys

class Interrupt:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == at:
            os.kill(os.getpid(), signal.SIGINT)

# What a shell starts in the background ignores it, and so do its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt)
at = sys.argv.pop(1)
from bitjax.cli.main import main
main()
"""
TINY = ["digits/float", "--config.model.name=mlp", "--config.method.steps=20", "--nodoctor"]


def command(*words, **streams):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    with subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, **streams
    ) as process:
        out, err = process.communicate(timeout=300)
    return process.returncode, (out or b"").decode(), (err or b"").decode()


def unread():
    """The writing end of a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_the_command_minds_ctrl_c_and_shows_its_help_without_loading_jax():
    program = "import sys; from bitjax.cli.main import main; main(['--help']); print(*sys.modules)"
    code, out, _ = command("-c", program)
    assert code == 0 and not {"jax", "flax", "numpy", "absl"} & set(out.split("\n")[-2].split())


@pytest.mark.parametrize("module", ["absl", pytest.param("jaxlib._jax", marks=pytest.mark.slow)])
def test_ctrl_c_while_a_module_loads_ends_in_one_line(module, tmp_path):
    words = ["train", *TINY, f"--workdir={tmp_path / 'run'}"]
    assert command("-c", INTERRUPTED, module, *words) == (130, "", "interrupted\n")
    assert not (tmp_path / "run").exists()


def test_a_command_that_only_prints_ends_quietly_if_nobody_reads_it():
    assert command("-m", "bitjax", "--help", stdout=unread()) == (0, "", "")


def test_a_command_that_only_prints_fails_in_one_line_if_the_disk_is_full():
    with open("/dev/full", "w") as full:
        code, _, err = command("-m", "bitjax", "--help", stdout=full)
    assert code == 1
    assert err == "error: what is printed could not be written (No space left on device).\n"


@pytest.mark.slow
def test_a_comparison_that_nobody_reads_writes_its_page(tmp_path):
    words = ["compare", "results/digits/float", "--out", str(tmp_path / "page.html")]
    assert command("-m", "bitjax", *words, stdout=unread()) == (0, "", "")
    assert (tmp_path / "page.html").read_text().rstrip().endswith("</html>")


@pytest.mark.slow
@pytest.mark.parametrize("place", ["a pipe", "a full disk", "nothing"])
def test_a_run_goes_on_when_what_it_prints_is_lost(place, tmp_path):
    words = ["-m", "bitjax", "train", *TINY, f"--workdir={tmp_path}"]
    if place == "nothing":
        close = "import os, sys; os.close(1); os.close(2); python = sys.executable; "
        close += "os.execv(python, [python, *sys.argv[1:]])"
        assert command("-c", close, *words) == (0, "", "")
    else:
        stream = unread() if place == "a pipe" else os.open("/dev/full", os.O_WRONLY)
        reason = "Broken pipe" if place == "a pipe" else "No space left on device"
        code, _, err = command(*words, stdout=stream)
        assert (code, err) == (0, f"what is printed is lost ({reason}); the work goes on\n")
        os.close(stream)
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "finished"
