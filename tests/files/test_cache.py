"""Where decoded data and compiled programs are kept."""

from pathlib import Path

import pytest

from bitjax.files.cache import cache_folder


@pytest.mark.parametrize(
    ("platform", "named", "base", "folder"),
    [
        ("linux", None, None, "~/.cache/bitjax"),
        ("darwin", None, None, "~/Library/Caches/bitjax"),
        ("linux", None, "/caches", "/caches/bitjax"),
        ("linux", None, "relative", "~/.cache/bitjax"),
        ("linux", "/fast/mine", "/caches", "/fast/mine"),
        ("linux", "~/mine", None, "~/mine"),
        ("linux", "", "/caches", None),
    ],
)
def test_the_cache_lies_where_the_user_keeps_caches(
    platform, named, base, folder, monkeypatch, tmp_path
):
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in (("BITJAX_CACHE_DIR", named), ("XDG_CACHE_HOME", base)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert cache_folder() == (folder and Path(folder.replace("~", str(tmp_path))))


def test_a_relative_folder_that_is_named_is_in_the_folder_that_one_is_in(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITJAX_CACHE_DIR", "mine")
    assert cache_folder() == tmp_path / "mine"
