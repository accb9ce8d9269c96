"""A file is written at once or not at all, in its own folder, and a failure says what to do."""

import errno
import os
import resource
import signal

import pytest

from bitjax.files.writing import (
    open_to_append,
    remove_leftovers,
    replacing,
    trouble_of,
    unwritten,
    write_text,
)


def test_a_link_that_was_put_in_the_way_is_replaced_and_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    for name in ("result.json", "result.json.tmp", "metrics.jsonl"):
        (run / name).symlink_to(outside)
    write_text(run / "result.json", "new")
    assert not (run / "result.json").is_symlink() and (run / "result.json").read_text() == "new"
    with pytest.raises(OSError, match=r"metrics.jsonl could not be written .* Remove what stands"):
        open_to_append(run / "metrics.jsonl")
    assert outside.read_text() == "mine"


def test_a_pipe_in_the_way_does_not_hold_a_writer_up(tmp_path):
    os.mkfifo(tmp_path / "a")
    with pytest.raises(OSError, match="could not be written .* Remove what stands there"):
        open_to_append(tmp_path / "a")
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path):
    write_text(tmp_path / "a", "old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a") as file:
        file.write(b"half")
        raise ZeroDivisionError
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match=r"a could not be .* MB are free there\). Free space"):
            write_text(tmp_path / "a", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_what_killed_writers_left_can_be_removed(tmp_path):
    for name in (".0123456789abcdef.tmp", ".env.tmp", "a.tmp"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".env.tmp", "a.tmp"]


def test_others_may_read_a_file_as_far_as_the_umask_lets_them(tmp_path):
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.mkdir(), r"Is a directory\)\. Remove what stands there"),
        (lambda path: path.parent.rmdir(), r"No such file or directory\)\. Make the folder"),
        (
            lambda path: (path.parent.rmdir(), path.parent.touch()),
            r"Not a directory\)\. Remove what stands there",
        ),
    ],
)
def test_the_remedy_is_that_of_the_reason(make, said, tmp_path):
    (tmp_path / "folder").mkdir()
    make(tmp_path / "folder" / "a")
    with pytest.raises(OSError, match=said):
        write_text(tmp_path / "folder" / "a", "x")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free space or quota"),
        (errno.EDQUOT, "Free space or quota"),
        (errno.EACCES, "Change its permissions"),
        (errno.EROFS, "Choose a place that can be written"),
        (errno.ENAMETOOLONG, "Choose a shorter name"),
        (errno.EMFILE, "Allow more open files"),
        (errno.EIO, "Look after the disk"),
    ],
)
def test_only_a_full_disk_is_answered_with_space(number, remedy, tmp_path):
    said = str(unwritten(tmp_path / "a", 100, OSError(number, os.strerror(number))))
    assert remedy in said and os.strerror(number) in said
    assert ("MB are free" in said) == ("space" in remedy)


def test_the_systems_reason_is_found_in_its_own_errors_and_in_the_text_of_others():
    assert trouble_of(OSError(28, "No space left on device")) == "No space left on device"
    assert trouble_of(ValueError("[os_error_code='28']")) == "No space left on device"
    assert trouble_of(ValueError("`bits` must be at least 1")) is None
