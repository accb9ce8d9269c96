"""Streams from files: what is mapped, which vocabulary is meant, and files that are wrong."""

import json
import os
import pickle
import zipfile

import numpy as np
import pytest

from bitjax.data import TokenDataset, decode, eval_batches, fingerprint, load, train_batch
from bitjax.files import mapped
from bitjax.files.reading import FileError

TRAIN = np.array([1, 5, 6, 1, 7, 1, 6, 6, 6, 5], np.uint16)
TEST = np.array([1, 6, 7, 1, 5, 6], np.uint16)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with own.npz, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BITJAX_DATA", raising=False)
    np.savez(tmp_path / "own.npz", train=TRAIN, test=TEST)
    return tmp_path


def is_mapped(array):
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return True
        array = array.base
    return False


def test_tokens_of_an_npz_file_are_a_data_set(files):
    data = load("tokens:own.npz", context=3)
    assert isinstance(data, TokenDataset) and data.name == "tokens:own.npz"
    assert (data.num_train, data.num_eval, data.eval_split) == (3, 2, "test")
    assert (data.vocabulary, data.task, data.form) == (8, "next_token", "documents")
    assert data.about["train_left_out"] == 2
    assert data.eval_sample(2)["tokens"].tolist() == [[1, 6, 7], [1, 5, 6]]
    windows = load("tokens:own.npz", context=3, marker=-1)
    assert (windows.form, windows.marker, windows.num_train, windows.num_eval) == (
        "windows", None, 2, 2,
    )  # fmt: skip
    assert load("tokens:own.npz").context == 512


def test_a_path_is_looked_for_here_and_then_in_the_data_folder(files, monkeypatch):
    inner = files / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    remedy = "own.npz is missing; give its path from here, from config.data.root or from BIT"
    with pytest.raises(FileNotFoundError, match=remedy):
        load("tokens:own.npz")
    assert load("tokens:own.npz", root=files).num_train == 3
    monkeypatch.setenv("BITJAX_DATA", str(files))
    assert load("tokens:own.npz").num_train == 3
    np.savez("own.npz", train=TRAIN[:5], test=TEST)
    assert load("tokens:own.npz").num_train == 2


def test_splits_are_those_of_the_file_unless_documents_are_held_out(files):
    np.savez("three.npz", train=TRAIN, validation=TEST[:3], test=TEST)
    own = load("tokens:three.npz", eval_split="validation")
    assert (own.num_train, own.num_eval, own.eval_split) == (3, 1, "validation")
    held = load("tokens:three.npz", eval_split="validation", validation=1)
    assert (held.num_train, held.num_eval, held.eval_split) == (2, 1, "validation")
    assert load("tokens:three.npz", validation=1).num_eval == 2
    np.savez("one.npz", train=TRAIN)
    with pytest.raises(ValueError, match="training examples only; set `eval_split` to 'validation"):
        load("tokens:one.npz")
    assert load("tokens:one.npz", eval_split="validation", validation=2).num_train == 1


@pytest.mark.parametrize("held_out", [0, 1])
def test_another_file_is_trained_on_and_what_is_evaluated_stays(files, held_out):
    keys = {"validation": held_out, "eval_split": "validation" if held_out else "test"}
    np.savez("drawn.npz", train=np.array([1, 2, 2, 1, 3, 1, 4, 4], np.uint8))
    own = load("tokens:own.npz", context=3, **keys)
    other = load("tokens:own.npz", context=3, train_from="drawn.npz", **keys)
    first = other.train_examples(np.arange(3), seed=0, positions=np.arange(3), augment=False)
    assert first["tokens"].tolist() == [[1, 2, 2], [1, 3, 1], [1, 4, 4]]
    assert other.num_train == 3 and other.eval_split == own.eval_split
    for key, values in own.eval_sample(9).items():
        np.testing.assert_array_equal(other.eval_sample(9)[key], values)
    assert fingerprint(own) != fingerprint(other)


def test_limits_keep_the_first_examples(files):
    few = load("tokens:own.npz", limit=2, eval_limit=1)
    assert (few.num_train, few.num_eval) == (2, 1)
    none = load("tokens:own.npz", train=False)
    assert (none.num_train, none.num_eval) == (0, 2)
    digits = load("digits", eval_limit=7)
    assert (digits.num_train, digits.num_eval) == (1437, 7)
    assert load("digits", limit=3, eval_limit=7).num_eval == 3


@pytest.mark.parametrize("kind", ["stored", "compressed", "npy", "text"])
def test_large_files_are_mapped_and_give_the_same_batches(files, kind, monkeypatch):
    options = {"context": 3, "validation": 1, "eval_split": "validation"}
    name = "tokens:own.npz"
    if kind == "compressed":
        np.savez_compressed("own.npz", train=TRAIN, test=TEST)
    elif kind == "npy":
        np.save("own.npy", TRAIN)
        name = "tokens:own.npy"
    elif kind == "text":
        (files / "own.txt").write_bytes("Ein Gruß\n".encode())
        name = "text:own.txt"
    read = load(name, **options)
    for function in ("npz_array", "npy_array", "bytes_array"):
        monkeypatch.setitem(getattr(mapped, function).__kwdefaults__, "least", 1)
    large = load(name, **options)
    assert not is_mapped(read.tokens)
    assert is_mapped(large.tokens) == (kind != "compressed")
    assert fingerprint(read) == fingerprint(large)
    for step in range(4):
        one, other = (train_batch(data, 2, step, 0) for data in (read, large))
        np.testing.assert_array_equal(one["tokens"], other["tokens"])
    assert decode_all(large) == decode_all(read)


def decode_all(data):
    tokens = np.concatenate([batch["tokens"] for batch in eval_batches(data, 2)]).reshape(-1)
    return decode(data, tokens) if data.pieces else tokens.tolist()


def test_a_text_is_bytes(files):
    (files / "own.txt").write_bytes(b"a line\nand \xc3\xa9\n" * 9)
    data = load("text:own.txt", validation=1, eval_split="validation", context=7)
    assert (data.vocabulary, data.form, data.marker) == (256, "windows", None)
    shown = decode(data, data.eval_sample(1)["tokens"][0])
    assert len(shown.encode()) >= 7 and shown.replace("\ufffd", "") in "a line\nand é\n" * 9
    lines = load("text:own.txt", validation=1, eval_split="validation", marker=97, context=7)
    assert lines.form == "documents" and lines.num_train == 17


@pytest.mark.parametrize("said", ["number", "pieces", "beside", "nobody"])
def test_the_vocabulary_is_what_the_file_or_its_neighbour_says(files, said):
    pieces = [f" {number}" for number in range(9)]
    (files / "vocabulary.json").write_text(json.dumps({"pieces": pieces}))
    known = {"number": np.array(12), "pieces": np.array([*pieces, "<0x41>"])}
    if said in known:
        np.savez("own.npz", train=TRAIN, test=TEST, vocabulary=known[said])
    if said == "nobody":
        os.remove("vocabulary.json")
    data = load("tokens:own.npz")
    assert data.vocabulary == {"number": 12, "pieces": 10, "beside": 9, "nobody": 8}[said]
    assert len(data.pieces) == {"number": 0, "pieces": 10, "beside": 9, "nobody": 0}[said]
    if data.pieces:
        assert decode(data, np.array([1, 5, 6])) == "5 6"


def test_the_stories_are_what_their_readme_says(data_root):
    data = load("tokens:stories/tokens.npz", root=data_root, eval_limit=120)
    assert (data.num_train, data.vocabulary, data.context) == (808, 512, 512)
    (batch,) = eval_batches(data, 120)
    assert batch["scored"].sum() == 43_083
    text = decode(data, data.eval_sample(1)["tokens"][0])
    assert text.startswith("Lily liked to play the flute. She had")


def npz_of(**arrays):
    return lambda path: np.savez(path, **{"train": TRAIN, "test": TEST, **arrays})


def without_train(path):
    np.savez(path, test=TEST)


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def no_archive(path):
    path.write_bytes(b"text")


def flipped(path):
    content = bytearray(path.read_bytes())
    content[170] ^= 1
    path.write_bytes(bytes(content))


def pickled(path):
    path.write_bytes(pickle.dumps(TRAIN))


def other_members(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train.txt", b"1 2 3")


def beside(text):
    return lambda path: path.with_name("vocabulary.json").write_text(text)


SPOILT = {
    "no train": (without_train, r"own.npz holds \['test'\]; copy it again, or give an .npz file"),
    "cut": (cut, r"own.npz cannot be read \(.*copy it again, or give an .npz"),
    "text": (no_archive, r"own.npz cannot be read \(.*not a zip file"),
    "a bit": (flipped, r"own.npz cannot be read \(.*Bad CRC-32"),
    "pickle": (pickled, r"own.npz cannot be read \(.*not a zip file"),
    "members": (other_members, r"own.npz is a zip file, but 'train.txt' in it is no NumPy array"),
    "objects": (
        npz_of(train=TRAIN.astype(object)),
        r"own.npz cannot be read \(it holds Python",
    ),
    "halves": (
        npz_of(train=TRAIN / 2),
        r"`train` of tokens:own.npz must be integers",
    ),
    "bools": (npz_of(train=TRAIN > 1), r"`train` of .* must be integers \[N\], got bool \(10,\)"),
    "texts": (npz_of(train=TRAIN.astype(str)), r"`train` of .* must be integers \[N\], got <U5"),
    "no marker": (
        npz_of(test=TEST[1:]),
        "`evaluation` of tokens:own.npz must begin with the marker 1",
    ),
    "empty": (npz_of(test=TEST[:0]), "`evaluation` of tokens:own.npz is an empty stream"),
    "beyond": (npz_of(vocabulary=7), "`train` of tokens:own.npz has the token 7, beyond the voca"),
    "none": (npz_of(vocabulary=0), r"own.npz holds a `vocabulary` of int64 \(\); give the number"),
    "ones": (npz_of(vocabulary=np.ones(3)), r"own.npz holds a `vocabulary` of float64 \(3,\); g"),
    "no json": (beside("{"), r"vocabulary.json is not JSON .*give {\"pieces\": \[a text for each"),
    "a list": (beside("[1]"), "vocabulary.json holds no `pieces`; copy it again"),
    "numbers": (beside('{"pieces": [1]}'), "vocabulary.json holds no `pieces`; copy it again"),
    "fewer": (beside('{"pieces": ["a", "b"]}'), "has the token 7, beyond the vocabulary of 2"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_files_that_are_wrong_are_refused_in_a_line(files, case):
    spoil, message = SPOILT[case]
    spoil(files / "own.npz")
    with pytest.raises(ValueError, match=message) as caught:
        load("tokens:own.npz")
    assert "\n" not in str(caught.value)


def longer(path):
    content = bytearray(path.read_bytes())
    place = content.index(b"(10,)")
    content[place : place + 5] = b"(99,)"
    path.write_bytes(bytes(content))


def elsewhere(path):
    content = bytearray(path.read_bytes())
    content[0:4] = b"none"
    path.write_bytes(bytes(content))


def objects(path):
    np.savez(path, train=TRAIN.astype(object))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (longer, "is damaged: 198 bytes are missing at its end"),
        (elsewhere, "is damaged: train is not where it should be"),
        (objects, "holds Python objects, which are never loaded"),
    ],
)
def test_a_mapped_file_is_refused_before_what_is_behind_it_is_shown(files, spoil, message):
    spoil(files / "own.npz")
    with pytest.raises(FileError, match=message):
        mapped.npz_array(files / "own.npz", "train", least=1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "digits",
            {"context": 9},
            "`context` is for tokens: and text: sets, got 9 for",
        ),
        (
            "digits",
            {"marker": -1},
            "`marker` is for tokens: and text: sets, got -1",
        ),
        ("digits", {"form": "windows"}, "`form` is for tokens: and text: .*leave it ''"),
        ("digits", {"train_from": "own.npz"}, "`train_from` is for tokens: and text: sets"),
        (
            "tokens:own.npz",
            {"train_from": "gone.npz"},
            "gone.npz is missing; draw it .*train_from",
        ),
        (
            "tokens:own.npz",
            {"image_size": 9},
            "`image_size` is for tfds: and folder: sets",
        ),
        ("tokens:own.npz", {"splits": ("a", "b")}, "`splits` is for tfds: sets"),
        ("tokens:own.npz", {"augmentation": "shift"}, "`augmentation` is for images, got 'shift'"),
        ("text:own.npz", {"form": "documents"}, "`marker` of text:own.npz must be the token that"),
        ("tokens:own.npz", {"context": 1}, "`context` must be at least 2, got 1"),
        ("tokens:own.npz", {"validation": 3}, "`validation` must be less than the 3 training docu"),
        ("tokens:own.npz", {"form": "lines"}, "`form` must be one of"),
        ("text:gone.txt", {}, "gone.txt is missing; give its path from here"),
        ("tokens:gone.npy", {}, "gone.npy is missing; give its path from here"),
    ],
)
def test_keys_of_another_kind_of_data_are_refused(files, name, options, message):
    given = {"eval_split": "validation", "validation": 1} if name[:4] == "text" else {}
    with pytest.raises(ValueError, match=message):
        load(name, **given | options)
