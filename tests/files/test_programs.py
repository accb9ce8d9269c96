"""Compiled programs are kept between processes, and a folder that is bad stops no run."""

import os
import resource
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from bitjax.files import programs
from bitjax.files.programs import keep_programs
from tests.kept import cache_in

EVENTS: Counter[str] = Counter()
jax.monitoring.register_event_listener(lambda name, **_: EVENTS.update([name.split("/")[-1]]))
LONG_AGO = 1e9  # seconds since 1970


@pytest.fixture
def cache(tmp_path):
    with cache_in(tmp_path / "cache"):
        yield tmp_path / "cache"


def answer():
    """Compiles a function, as a process does that has not yet; 42."""
    return int(jax.jit(lambda x: x * 6, inline=False)(jnp.int32(7)))


def entries(folder):
    return sorted(folder.glob("jit__lambda*-cache"))


def test_a_program_that_was_kept_is_found_and_not_compiled_again(cache):
    folder = keep_programs()
    assert folder.is_relative_to(cache / "programs") and keep_programs() == folder
    assert answer() == 42
    (entry,), before, hits = entries(folder), os.stat(folder).st_mtime_ns, EVENTS["cache_hits"]
    assert answer() == 42
    assert entries(folder) == [entry] and os.stat(folder).st_mtime_ns == before
    assert EVENTS["cache_hits"] > hits


def garbage(entry):
    entry.write_bytes(b"no program" * 100)


def cut_short(entry):
    os.truncate(entry, entry.stat().st_size // 2)


def empty(entry):
    os.truncate(entry, 0)


def of_another_version(entry):
    import zlib

    entry.write_bytes(zlib.compress(b"\0\0\0\1" + b"a program of another XLA"))


def a_folder(entry):
    entry.unlink()
    entry.mkdir()


@pytest.mark.parametrize("damage", [garbage, cut_short, empty, of_another_version, a_folder])
def test_a_damaged_entry_is_one_line_and_compiled_again(damage, cache, capsys):
    folder = keep_programs()
    answer()
    (entry,) = entries(folder)
    damage(entry)
    os.utime(entry, (LONG_AGO, LONG_AGO))
    assert answer() == answer() == 42
    said = capsys.readouterr().err
    assert (
        said.startswith(f"warning: a program kept in {folder} is damaged") and said.count("\n") == 1
    )
    if damage is not a_folder:
        hits = EVENTS["cache_hits"]
        assert entries(folder) == [entry] and answer() == 42 and EVENTS["cache_hits"] > hits


def test_an_entry_that_another_process_is_writing_or_has_removed_is_no_news(cache, capsys):
    folder = keep_programs()
    answer()
    (entry,) = entries(folder)
    cut_short(entry)
    assert answer() == 42
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_one_line_and_leaves_no_half_entries(cache, capsys):
    folder = keep_programs()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        assert answer() == 42 and int(jax.jit(lambda x: x - 1)(jnp.int32(7))) == 6
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert said.startswith(f"warning: compiled programs are not kept in {folder}: OSError: ")
    assert said.count("\n") == 1 and not entries(folder)


def occupied(cache, monkeypatch):
    cache.write_text("a file")


def cannot_be_made(cache, monkeypatch):
    monkeypatch.setenv("BITJAX_CACHE_DIR", "/proc/no/such")


def cannot_be_written(cache, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # whom nothing stops runs this


def of_another_user(cache, monkeypatch):
    (cache / "programs").mkdir(parents=True)
    monkeypatch.setattr(os, "getuid", lambda: 12345)


@pytest.mark.parametrize("bad", [occupied, cannot_be_made, cannot_be_written, of_another_user])
def test_a_folder_that_cannot_be_used_is_one_line_and_nothing_is_kept(
    bad, cache, monkeypatch, capsys
):
    bad(cache, monkeypatch)
    assert keep_programs() is None and answer() == 42
    said = capsys.readouterr().err
    assert said.startswith("warning: compiled programs are not kept in ") and said.count("\n") == 1
    assert os.environ["BITJAX_CACHE_DIR"] in said


def test_nothing_is_kept_where_the_user_says_so_and_jaxs_own_options_win(
    cache, monkeypatch, tmp_path
):
    for name, value in (
        ("jax_compilation_cache_dir", str(tmp_path / "own")),
        ("jax_enable_compilation_cache", False),
    ):
        before = getattr(jax.config, name)
        jax.config.update(name, value)
        assert keep_programs() is None and getattr(jax.config, name) == value
        jax.config.update(name, before)
    monkeypatch.setenv("BITJAX_CACHE_DIR", "")
    assert keep_programs() is None and jax.config.jax_compilation_cache_dir is None
    assert not cache.exists()


def test_the_programs_that_were_not_used_for_longest_go_where_all_are_too_many(cache):
    folder = keep_programs()
    other = folder.parent / "jaxlib-0.1-old"
    other.mkdir()
    sizes = {other / "a-cache": 100, folder / "b-cache": 5000, folder / "c-cache": 100}
    for age, (path, size) in enumerate(sizes.items()):
        path.write_bytes(b"x" * size)
        os.utime(path, (LONG_AGO + age, LONG_AGO))  # read last, written at once
    foreign = [folder.parent / "notes.txt", folder / "d.txt"]
    for path in foreign:
        path.write_bytes(b"x" * 10_000)
    programs._shrink(folder.parent, most=16384)  # all of them, in blocks of 4096
    assert all(path.exists() for path in sizes)
    programs._shrink(folder.parent, most=16383)  # to three quarters
    assert [path.exists() for path in sizes] == [False, False, True]
    assert all(path.exists() for path in foreign)


CPU = "model name\t: fast\nflags\t\t: avx2 {more}\ncpu MHz\t\t: {now}\n"


def test_another_processor_or_number_of_cores_has_programs_of_its_own(monkeypatch):
    def kind(more, now, cores):
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: CPU.format(more=more, now=now))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        return programs._kind()

    assert kind("", 1000, 2) == kind("", 2000, 2)
    assert len({kind("", 1000, 2), kind("avx512f", 1000, 2), kind("", 1000, 1)}) == 3
