"""Makes a data set of streams of tokens: looks at every token once, finds the documents."""

import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bitjax.checks import NONE, TEXT, checked, choice, either, instance, integer, several
from bitjax.data.check import TOKENS
from bitjax.data.order import seeded_order
from bitjax.data.records import digest_of
from bitjax.data.split import VALIDATION_SEED
from bitjax.data.tokens import CONTEXT, TokenDataset, total

FORMS = ("", "documents", "windows")
_CHUNK = 2**24  # tokens that are looked at together; a mapped file is never in memory as a whole
_STREAM = instance(np.ndarray, hint=f"{TOKENS}.")


class _Seen(NamedTuple):
    """What one pass over a stream finds."""

    low: int
    high: int
    marked: np.ndarray  # int64, where the marker stands
    crc: int


@checked(
    name=TEXT,
    train=_STREAM,
    evaluation=either(NONE, _STREAM),
    context=integer(0, 2**24),
    train_context=integer(0, 2**24),
    marker=either(NONE, integer(0)),
    form=choice(*FORMS),
    vocabulary=integer(0),
    pieces=several(TEXT),
    eval_split=choice("test", "validation"),
)
def token_dataset(
    name: str,
    train: np.ndarray,
    evaluation: np.ndarray | None = None,
    *,
    context: int = CONTEXT,
    train_context: int = 0,
    marker: int | None = None,
    form: str = "",
    vocabulary: int = 0,
    pieces: Sequence[str] = (),
    eval_split: str = "test",
) -> TokenDataset:
    """A data set of your own tokens.

    Where `form` is 'documents' an example is a document, cut at `context` tokens, or filled up with
    its marker. Where it is 'windows' an example is `context` tokens of the stream. Windows do not
    overlap; where an epoch's first one begins is drawn from the seed and the epoch.

    Args:
      name: The data set's name.
      train: [T] integers from 0, the training stream. It may be mapped: it is read where it is
        used, after one pass that looks at every token.
      evaluation: [U] integers, the evaluation stream; None: there is none.
      context: Tokens of an example, at least 2; 0 stands for 512.
      train_context: Tokens of a training example, 2 to `context`; 0 stands for `context`.
      marker: The token that begins every document; None: there is none.
      form: 'documents', 'windows', or '' for documents where there is a marker.
      vocabulary: How many tokens there are; 0: as many as `pieces`, or one more than the largest.
      pieces: The text of each token, see `decode`.
      eval_split: Name of the evaluation split.

    Returns:
      The data.

    Raises:
      ValueError: If an argument is out of its range, a token beyond the vocabulary, a stream empty
        or shorter than a window, or documents are asked for that do not begin with the marker.

    Example:
      >>> data = token_dataset("own", np.array([9, 4, 5, 9, 6, 7, 8]), context=3, marker=9)
      >>> data.num_train, data.vocabulary
      (2, 10)
      >>> batch = data.train_examples(np.array([1]), seed=0, positions=np.array([1]), augment=True)
      >>> batch["tokens"].tolist(), batch["scored"].tolist()
      ([[9, 6, 7]], [[0.0, 1.0, 1.0]])
    """
    context = context or CONTEXT
    train_context = train_context or context
    _check_lengths(context, train_context)
    form = form or ("windows" if marker is None else "documents")
    if form == "documents" and marker is None:
        raise ValueError(
            f"`marker` of {name} must be the token that begins a document, got none; give it, or "
            "take form 'windows'."
        )
    streams = {"train": train}
    if evaluation is not None:
        streams["evaluation"] = evaluation
    seen = {split: _look(name, split, each, marker) for split, each in streams.items()}
    vocabulary = vocabulary or len(pieces) or max(s.high for s in seen.values()) + 1
    _check_vocabulary(name, vocabulary, seen, pieces)
    spans = {
        split: _documents(name, split, len(streams[split]), marker, found.marked)
        if form == "documents"
        else np.array([[0, len(streams[split])]])
        for split, found in seen.items()
    }
    if marker is not None and marker >= vocabulary:
        raise ValueError(
            f"`marker` of {name} must be one of the {vocabulary} tokens, got {marker}."
        )
    length = len(train)
    if form == "windows" and length < train_context:
        key = "context" if train_context == context else "train_context"
        raise ValueError(
            f"`train` of {name} has {length} tokens, fewer than a window of {train_context}; "
            + (f"set `{key}` to at most {length}." if length > 1 else "give more tokens.")
        )
    return TokenDataset(
        name=name,
        tokens=train,
        eval_tokens=streams.get("evaluation", train[:0]),
        spans=spans["train"],
        eval_spans=spans.get("evaluation", np.zeros((0, 2), np.int64)),
        vocabulary=vocabulary,
        context=context,
        train_context=train_context,
        marker=marker,
        form=form,
        eval_split=eval_split,
        pieces=tuple(pieces),
        origin=digest_of([found.crc for found in seen.values()]),
    )


def _check_lengths(context: int, train_context: int) -> None:
    if context < 2:
        raise ValueError(
            f"`context` must be at least 2, got {context}: a first token has no score."
        )
    if not 2 <= train_context <= context:
        raise ValueError(f"`train_context` must be in [2, {context}], got {train_context}.")


def _look(name: str, split: str, tokens: np.ndarray, marker: int | None) -> _Seen:
    """One pass over a stream: its bounds, its markers and a checksum."""
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ValueError(
            f"`{split}` of {name} must be integers [N], got {tokens.dtype} {tokens.shape}; "
            f"{TOKENS}."
        )
    if not len(tokens):
        fix = "give tokens" if split == "train" else "leave it out, or give tokens"
        raise ValueError(f"`{split}` of {name} is an empty stream; {fix}.")
    low, high, crc, marked = 2**63, -1, 0, []
    for start in range(0, len(tokens), _CHUNK):
        part = np.ascontiguousarray(tokens[start : start + _CHUNK])
        low, high = min(low, int(part.min())), max(high, int(part.max()))
        crc = zlib.crc32(part.view(np.uint8).data, crc)
        if marker is not None:
            marked.append(np.flatnonzero(part == marker) + start)
    if low < 0 or high >= 2**31:
        raise ValueError(
            f"`{split}` of {name} must be tokens in [0, 2**31), got {low if low < 0 else high}; "
            f"{TOKENS}."
        )
    return _Seen(low, high, np.concatenate(marked) if marked else np.zeros(0, np.int64), crc)


def _check_vocabulary(
    name: str, vocabulary: int, seen: Mapping[str, _Seen], pieces: Sequence[str]
) -> None:
    for split, found in seen.items():
        if found.high >= vocabulary:
            raise ValueError(
                f"`{split}` of {name} has the token {found.high}, beyond the vocabulary of "
                f"{vocabulary}; give the vocabulary that the tokens were made with."
            )
    if pieces and len(pieces) != vocabulary:
        raise ValueError(
            f"`pieces` of {name} must be the text of each of the {vocabulary} tokens, got "
            f"{len(pieces)}."
        )


def _documents(
    name: str, split: str, length: int, marker: int | None, marked: np.ndarray
) -> np.ndarray:
    """The spans of documents, each from its marker to the next; a marker alone is none."""
    if not len(marked) or marked[0] != 0:
        where = f"first at {marked[0]}" if len(marked) else "nowhere in it"
        raise ValueError(
            f"`{split}` of {name} must begin with the marker {marker} of documents, which is "
            f"{where}; set `marker` to the token that begins each, or `form` to 'windows'."
        )
    spans = np.stack([marked, np.append(marked[1:], length)], axis=1)
    spans = spans[spans[:, 1] - spans[:, 0] > 1]
    if not len(spans):
        raise ValueError(f"`{split}` of {name} has no document of more than its marker.")
    return spans


def hold_out(dataset: TokenDataset, count: int, eval_split: str) -> TokenDataset:
    """The data without `count` training documents or windows, always the same ones.

    They are what is evaluated where `eval_split` is 'validation'. Windows of training may go on
    behind a window that is held out, but never into it.
    """
    if dataset.form == "documents":
        candidates = dataset.spans
    else:
        starts = np.arange(total(dataset.spans) // dataset.context) * dataset.context
        candidates = np.stack([starts, starts + dataset.context], axis=1)
    if count >= max(len(candidates), 1):
        raise ValueError(
            f"`validation` must be less than the {len(candidates)} training {dataset.form} of "
            f"{dataset.name}, got {count}."
        )
    held = np.sort(seeded_order(len(candidates), VALIDATION_SEED, 0)[:count])
    if dataset.form == "documents":
        left = np.delete(dataset.spans, held, axis=0)
    else:  # What is between them.
        edges = np.concatenate([[0], candidates[held].reshape(-1), [total(dataset.spans)]])
        left = edges.reshape(-1, 2)
        left = left[left[:, 1] > left[:, 0]]
    smaller = dataset._replace(spans=left)
    if eval_split != "validation":
        return smaller
    return smaller._replace(
        eval_tokens=dataset.tokens, eval_spans=candidates[held], eval_split="validation"
    )
