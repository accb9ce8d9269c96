"""Reads streams of tokens, or the bytes of a text, with the vocabulary that is beside them."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bitjax.checks import ARRAY, checked, instance
from bitjax.data.decoding import evaluation_split
from bitjax.data.records import digest_of
from bitjax.data.token_streams import hold_out, token_dataset
from bitjax.data.tokens import TokenDataset
from bitjax.files.mapped import bytes_array, npy_array, npz_array
from bitjax.files.npz import npz_names
from bitjax.files.reading import FileError, MissingError, printable, read_json

SPLITS = ("train", "validation", "test")
MARKER = 1  # which begins a document in the files of most SentencePiece vocabularies
_ELSEWHERE = "give its path from here, from config.data.root or from BITJAX_DATA"
_DRAWN = "draw it (python -m experiments.draw), or name another file in config.data.train_from"
_FORM = (
    "copy it again, or give an .npz file of 'train' and 'test' (and 'validation', 'vocabulary') "
    "or an .npy file: integers [N] from 0"
)
_PIECES = 'copy it again, or give {"pieces": [a text for each token]}'
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Streams(NamedTuple):
    """The streams of a file by split, and what is known of their vocabulary."""

    splits: dict[str, np.ndarray]
    vocabulary: int = 0  # 0: nobody says
    pieces: tuple[str, ...] = ()


def load_tokens(
    name: str,
    root: str | os.PathLike | None,
    *,
    validation: int,
    eval_split: str,
    context: int,
    train_context: int,
    marker: int,
    form: str,
    train_from: str | os.PathLike | None,
) -> TokenDataset:
    """The tokens of tokens:PATH, or the bytes of text:FILE; arguments as of `load`."""
    kind, _, rest = name.partition(":")
    path = _existing(rest, root)
    read = _bytes_of_text if kind == "text" else _tokens_of
    streams = read(path)
    evaluation = evaluation_split(printable(name), tuple(streams.splits), validation, eval_split)
    # No byte begins the documents of a text, unless another than the default is named.
    none = marker < 0 or (kind == "text" and marker == MARKER)
    dataset = token_dataset(
        printable(name),
        streams.splits["train"],
        None if evaluation == "train" else streams.splits[evaluation],
        context=context,
        train_context=train_context,
        marker=None if none else marker,
        form=form,
        vocabulary=streams.vocabulary,
        pieces=streams.pieces,
        eval_split="validation" if evaluation == "train" else evaluation,
    )
    dataset = hold_out(dataset, validation, eval_split) if validation else dataset
    if not train_from:
        return dataset
    other = _existing(str(train_from), root, _DRAWN)
    return _trained_on(dataset, printable(other), read(other).splits["train"])


def _trained_on(dataset: TokenDataset, name: str, train: np.ndarray) -> TokenDataset:
    """The data with another training stream, cut in the same way."""
    other = token_dataset(
        name,
        train,
        context=dataset.context,
        train_context=dataset.train_context,
        marker=dataset.marker,
        form=dataset.form,
        vocabulary=dataset.vocabulary,
    )
    origin = digest_of(dataset.origin, other.origin)
    return dataset._replace(tokens=other.tokens, spans=other.spans, origin=origin)


def _existing(path: str, root: str | os.PathLike | None, remedy: str = _ELSEWHERE) -> Path:
    found = _find(path, root)
    if not os.path.exists(found):
        raise MissingError(found, "is missing", remedy)
    return found


def _find(path: str, root: str | os.PathLike | None) -> Path:
    """A file's place: below `root`, or below the working folder or else `$BITJAX_DATA`."""
    # Not Path's, which raises a RuntimeError where it does not know a user.
    path = os.path.expanduser(path)
    if root or os.path.lexists(path):
        return Path(root or "", path)
    return Path(os.environ.get("BITJAX_DATA", ""), path)


def _tokens_of(path: Path) -> Streams:
    """The streams of an npz or npy file of tokens."""
    if path.suffix == ".npy":
        return _named(path, Streams({"train": npy_array(path, _FORM)}), None)
    there = npz_names(path, _FORM)
    if "train" not in there:
        raise FileError(path, f"holds {sorted(there)}", _FORM)
    splits = {split: npz_array(path, split, _FORM) for split in SPLITS if split in there}
    said = npz_array(path, "vocabulary", _FORM) if "vocabulary" in there else None
    return _named(path, Streams(splits), said)


def _bytes_of_text(path: Path) -> Streams:
    """The bytes of a file as tokens."""
    content = bytes_array(path)
    return Streams({"train": content}, 256, tuple(map(chr, range(256))))


def _named(path: Path, streams: Streams, said: np.ndarray | None) -> Streams:
    """The streams with their vocabulary: what the npz file says, or a file beside it."""
    if said is not None and said.ndim == 0 and said.dtype.kind in "iu" and said > 0:
        return streams._replace(vocabulary=int(said))
    if said is not None and said.ndim == 1 and said.dtype.kind in "US" and len(said):
        pieces = (p.decode("latin-1") if isinstance(p, bytes) else p for p in said.tolist())
        return streams._replace(vocabulary=len(said), pieces=tuple(pieces))
    if said is not None:
        what = f"holds a `vocabulary` of {said.dtype} {said.shape}"
        raise FileError(path, what, "give the number of tokens, or the text of each")
    beside = path.with_name("vocabulary.json")
    if not os.path.lexists(beside):
        return streams
    found = read_json(beside, _PIECES)
    pieces = found.get("pieces") if isinstance(found, dict) else None
    if not isinstance(pieces, list) or not pieces or not all(isinstance(p, str) for p in pieces):
        raise FileError(beside, "holds no `pieces`", _PIECES)
    return streams._replace(vocabulary=len(pieces), pieces=tuple(pieces))


@checked(dataset=instance(TokenDataset), tokens=ARRAY)
def decode(dataset: TokenDataset, tokens: np.ndarray) -> str:
    """The text of some tokens; documents are lines.

    A piece is bytes, as the characters of Latin-1, or one byte as '<0x0A>'. The bytes together are
    UTF-8; what is none of it is shown as a question mark in a diamond.

    Args:
      dataset: The data, which know the pieces of their vocabulary.
      tokens: [N] integers in [0, vocabulary).

    Returns:
      The text. The marker of documents is left out, with a space that follows it.

    Raises:
      ValueError: If the data know no pieces, or a token is beyond the vocabulary.

    Example:
      >>> from bitjax.data import token_dataset
      >>> pieces = ("<s>", " na", "<0xC3>", "\xafve")
      >>> data = token_dataset("own", np.arange(4), pieces=pieces, context=2)
      >>> decode(data, np.array([1, 2, 3]))
      ' naïve'
    """
    if not dataset.pieces:
        raise ValueError(
            f"`dataset` {dataset.name} knows no text of its tokens; put vocabulary.json beside its "
            "file, or give `pieces`."
        )
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ValueError(f"`tokens` must be integers [N], got {tokens.dtype} {tokens.shape}.")
    numbers = tokens.tolist()
    if numbers and not 0 <= min(numbers) <= max(numbers) < len(dataset.pieces):
        wrong = min(numbers) if min(numbers) < 0 else max(numbers)
        raise ValueError(f"`tokens` must be in [0, {len(dataset.pieces)}), got {wrong}.")
    lines: list[list[int]] = [[]]
    for token in numbers:
        if token == dataset.marker:
            lines.append([])
        else:
            lines[-1].append(token)
    # What stands before the first marker goes on from elsewhere, so its space stays.
    texts = [_text(dataset.pieces, lines[0])]
    texts += [_text(dataset.pieces, line).removeprefix(" ") for line in lines[1:]]
    return "\n".join(texts if lines[0] else texts[1:])


def _text(pieces: tuple[str, ...], tokens: Iterable[int]) -> str:
    # A vocabulary of characters that Latin-1 has not is text already.
    return b"".join(_bytes_of(pieces[token]) for token in tokens).decode("utf-8", "replace")


def _bytes_of(piece: str) -> bytes:
    if found := _BYTE.fullmatch(piece):
        return bytes([int(found[1], 16)])
    try:
        return piece.encode("latin-1")
    except UnicodeEncodeError:
        return piece.encode("utf-8")
