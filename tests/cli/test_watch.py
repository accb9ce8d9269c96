"""The view of runs that go on: one picture into a pipe, and on a terminal until q is pressed."""

import os
import subprocess
import sys
import time

import pytest

from bitjax.cli import watch
from tests.run_folders import write_run


def test_into_a_pipe_goes_one_picture(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "b", status="failed", error="no luck")
    for words in ([tmp_path / "runs"], [tmp_path / "runs", "--once"]):
        watch.main([str(word) for word in words])
        text = capsys.readouterr().out
        assert "1 failed, 1 finished" in text and "b failed: no luck" in text


def test_a_folder_that_is_not_there_is_refused_in_one_line(tmp_path):
    for words, said in (
        ([str(tmp_path / "none")], "there is no folder '.*none' to watch"),
        ([], "the following arguments are required: folders"),
        ([str(tmp_path), "--every=0"], r"--every: must be an integer in \[1, 3600\], got '0'"),
    ):
        with pytest.raises(ValueError, match=said):
            watch.main(words)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["q", "\x03"])
def test_q_and_ctrl_c_end_it_and_leave_the_terminal_as_it_was(key, tmp_path):
    termios = pytest.importorskip("termios", reason="needs a terminal of POSIX")
    write_run(tmp_path / "a")
    ours, theirs = os.openpty()
    before = termios.tcgetattr(theirs)
    program = f"""if True:
        import os, signal, sys
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has none
        import fcntl, termios
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # whose Ctrl-C reaches us
        from bitjax.cli.main import main
        main(["watch", {str(tmp_path)!r}])
    """
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=theirs, stdout=theirs, stderr=theirs
    )
    try:
        said, until = b"", time.monotonic() + 60
        while b"1 finished" not in said and time.monotonic() < until:
            said += os.read(ours, 4096)
        assert b"1 finished" in said
        os.write(ours, key.encode())
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    assert b"Traceback" not in said
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)
