"""The pictures of the documentation come from committed results."""

import pytest

from experiments import gallery


def test_a_picture_that_is_not_there_is_an_error_that_lists_them():
    with pytest.raises(ValueError, match="no picture 'map': choose among overview, graph"):
        gallery.main(["map"])


def test_the_texts_and_planes_are_those_of_the_committed_notebooks(tmp_path, monkeypatch):
    committed = {
        name: (gallery.IMAGES / name).read_bytes() for name in ("continuation.txt", "planes.png")
    }
    monkeypatch.setattr(gallery, "IMAGES", tmp_path)
    for path in gallery.notebooks():
        assert path.read_bytes() == committed[path.name], "make pictures"


def test_the_terminals_table_is_drawn_from_results(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "IMAGES", tmp_path)
    (svg,) = gallery.terminal()
    text = svg.read_text("utf-8")
    assert "bitpruning" in text and "@font-face" not in text  # no letters from the network
