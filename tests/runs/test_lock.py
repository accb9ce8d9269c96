"""One process writes to a run folder, and the operating system lets it go, whatever happens."""

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest

import bitjax.runs.lock as module
from bitjax.runs.lock import LOCK, InUseError, LostError, lock

# A process without JAX that locks a folder, says its number or its child's, and stays.
PROGRAM = """
import importlib.util, os, sys, time
spec = importlib.util.spec_from_file_location("lock", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
held = module.lock(sys.argv[2])
if sys.argv[3] == "hold" or os.fork() == 0:
    print(os.getpid(), flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def process(folder, what="hold", **options):
    """A process that has locked a folder, or was refused it; killed in the end."""
    command = [sys.executable, "-S", "-c", PROGRAM, module.__file__, str(folder), what]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, **options) as running:
        try:
            yield running
        finally:
            running.kill()


def said(running):
    """What a process says once it has the lock; nothing if it was refused."""
    return running.stdout.readline().strip()


def test_a_second_process_is_refused_with_who_has_the_folder_until_that_one_is_killed(tmp_path):
    folder = tmp_path / "run"
    with process(folder) as holder:
        assert said(holder)
        who = rf"process {holder.pid} on {re.escape(socket.gethostname())} has it since "
        who += r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
        remedy = r"Wait for it, stop it, or choose another folder\. If its machine is gone, remove "
        with pytest.raises(InUseError) as refused:
            lock(folder)
        told = rf"the folder '{folder}' is in use: {who}\. {remedy}{folder}/\.lock\."
        assert re.fullmatch(told, str(refused.value)), refused.value
        assert re.fullmatch(f"{who}\n", (folder / LOCK).read_text()), "nothing was changed"
    with lock(folder) as held:
        assert lock(folder) is held, "a process is one owner"
        with process(folder) as second:
            assert said(second) == "" and "InUseError" in second.stderr.read()
    with process(folder) as third:
        assert said(third)


def test_a_forked_child_that_outlives_its_parent_has_no_part_in_the_lock(tmp_path):
    with process(tmp_path, "fork") as parent:
        child = int(said(parent))
    try:
        lock(tmp_path).close()
    finally:
        os.kill(child, 9)


def test_a_lock_that_is_handed_to_a_child_is_the_childs_from_its_first_moment(tmp_path):
    held = lock(tmp_path)
    with process(tmp_path, **held.for_child(os.environ)) as child:
        held.close()
        with pytest.raises(InUseError):
            lock(tmp_path)
        assert said(child)
        with pytest.raises(InUseError, match=f"process {child.pid} on "):
            lock(tmp_path)
    lock(tmp_path).close()


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_removed_or_replaced_is_noticed(again, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with lock("run") as held:
        held.check()
        monkeypatch.chdir("/")
        held.check()
        shutil.rmtree(tmp_path / "run")
        if again:
            lock(tmp_path / "run").close()
        assert held.lost
        with pytest.raises(LostError, match="the folder 'run', or .lock in it, was removed or rep"):
            held.check()


def test_a_folder_that_got_another_name_is_the_same_folder(tmp_path):
    lock(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    with lock(tmp_path / "b") as held:
        held.check()


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, caplog):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), lock(tmp_path) as held:
        assert not held.lost
    assert "cannot be locked (No locks available): see to it that no other" in caplog.text


@pytest.mark.parametrize("text", [b"", b"\xff\0\n", b"process 1\x1b[2J", b"pro" * 999])
def test_a_lock_file_that_holds_anything_else_is_not_shown(text, tmp_path):
    with process(tmp_path) as holder:
        assert said(holder)
        (tmp_path / LOCK).write_bytes(text)
        with pytest.raises(InUseError, match="in use: another process has it. Wait"):
            lock(tmp_path)


@pytest.mark.parametrize("plant", [lambda path: os.mkfifo(path), lambda path: path.mkdir()])
def test_what_is_planted_for_a_lock_is_named(plant, tmp_path):
    plant(tmp_path / LOCK)
    with pytest.raises(OSError, match=r"\.lock"):
        lock(tmp_path)


def test_a_link_for_a_lock_is_not_followed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match=r"\.lock"):
        lock(tmp_path / "run")
    assert not (tmp_path / "outside").exists()
