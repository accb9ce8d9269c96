"""Text as streams of tokens: documents, or windows of one length, for models of language."""

from typing import Any, NamedTuple

import jax
import numpy as np

from bitjax.data.examples import Batch
from bitjax.data.fingerprint import sample

CONTEXT = 512  # tokens of an example, unless a length is asked for
_SHIFT_SEED = 0x517F7  # keeps the words of shifts apart from those of the epochs' orders


class TokenDataset(NamedTuple):
    """Training and evaluation tokens, perhaps of files that are mapped; see `token_dataset`.

    Batches are {'tokens': int32 [n, context], 'scored': float32 [n, context]}; those of training
    may be shorter, which costs attention less. A prediction counts
    where `scored` is 1: never that of an example's first token, nor of what fills an example up.

    Attributes:
      name: The data set's name.
      tokens: [T] integers in [0, vocabulary), the training stream.
      eval_tokens: [U] integers, the evaluation stream.
      spans: [K, 2] int64, the parts [begin, end) of `tokens` that are trained on, in order. An
        example is a span each where `form` is 'documents'; where it is 'windows', the spans are one
        stream, from which windows are cut.
      eval_spans: [L, 2] int64, the parts of `eval_tokens` that are evaluated.
      vocabulary: How many tokens there are.
      context: Tokens of an evaluation example.
      train_context: Tokens of a training example, at most `context`.
      marker: The token that begins a document; None where there is none.
      form: 'documents' or 'windows'.
      eval_split: Name of the evaluation split: 'test' or 'validation'.
      pieces: The text of each token, bytes as the characters of Latin-1; () where it is unknown.
      origin: What identifies the tokens; '' where nothing does.
    """

    name: str
    tokens: np.ndarray
    eval_tokens: np.ndarray
    spans: np.ndarray
    eval_spans: np.ndarray
    vocabulary: int
    context: int
    train_context: int
    marker: int | None
    form: str
    eval_split: str
    pieces: tuple[str, ...] = ()
    origin: str = ""

    @property
    def task(self) -> str:
        """'next_token'."""
        return "next_token"

    @property
    def num_train(self) -> int:
        """Number of training examples, the same in every epoch."""
        if self.form == "documents":
            return len(self.spans)
        return count_windows(total(self.spans), self.train_context)

    @property
    def num_eval(self) -> int:
        """Number of evaluation examples; the last window may be filled up."""
        if self.form == "documents":
            return len(self.eval_spans)
        # A single token that is left over has no prediction.
        return max(total(self.eval_spans) + self.context - 2, 0) // self.context

    @property
    def threads(self) -> int:
        """0: arrays give a batch at once."""
        return 0

    @property
    def fixed(self) -> bool:
        """Whether a training example is the same in every epoch: windows are shifted."""
        return self.form == "documents"

    @property
    def about(self) -> dict[str, Any]:
        """How the tokens are cut, and how many of them are in no example of an epoch."""
        lengths = total(self.spans), total(self.eval_spans)
        if self.form == "documents":
            train = _within(self.spans, self.train_context)
            evaluation = _within(self.eval_spans, self.context)
        else:
            train = self.num_train * self.train_context
            evaluation = lengths[1] - (lengths[1] % self.context == 1)
        return {
            "form": self.form,
            "context": self.context,
            "train_context": self.train_context,
            "vocabulary": self.vocabulary,
            "marker": self.marker,
            "train_tokens": train,
            "train_left_out": lengths[0] - train,
            "eval_tokens": evaluation,
            "eval_left_out": lengths[1] - evaluation,
        }

    def specs(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a batch of `count` evaluation examples."""
        shape = (count, self.context)
        return {
            "tokens": jax.ShapeDtypeStruct(shape, np.int32),
            "scored": jax.ShapeDtypeStruct(shape, np.float32),
        }

    def train_examples(
        self, indices: np.ndarray, *, seed: int, positions: np.ndarray, augment: bool
    ) -> Batch:
        """Documents by index, or the windows of the positions' epochs."""
        del augment
        size = self.train_context
        if self.form == "documents":
            return _documents(self, self.tokens, self.spans, indices, size)
        count, length = self.num_train, total(self.spans)
        epochs, inverse = np.unique(positions // count, return_inverse=True)
        slack = length - count * size
        shifts = np.array([window_shift(seed, int(epoch), slack) for epoch in epochs], np.int64)
        starts = indices * size + shifts[inverse]
        return _windows(self, self.tokens, self.spans, starts, size)

    def eval_examples(self, indices: np.ndarray) -> Batch:
        """Evaluation documents by index, or windows one after the other."""
        cut = _documents if self.form == "documents" else _windows
        where = indices if self.form == "documents" else indices * self.context
        return cut(self, self.eval_tokens, self.eval_spans, where, self.context)

    def eval_sample(self, count: int) -> Batch:
        """The first `count` evaluation examples."""
        return self.eval_examples(np.arange(min(count, self.num_eval)))

    def first(self, train: int | None, evaluation: int | None) -> "TokenDataset":
        """The data with at most so many training and evaluation examples, the first ones."""
        if self.form == "documents":
            return self._replace(spans=self.spans[:train], eval_spans=self.eval_spans[:evaluation])
        # Nearly a window more than there are to be: they can still be shifted.
        more = self.train_context - 1 if train else 0
        return self._replace(
            spans=_head(self.spans, train, self.train_context, more),
            eval_spans=_head(self.eval_spans, evaluation, self.context, 0),
        )

    def identity(self) -> dict[str, Any]:
        """How the tokens are cut, and the tokens, or what identifies them."""
        return {
            "form": self.form,
            "context": self.context,
            "train_context": self.train_context,
            "vocabulary": self.vocabulary,
            "marker": self.marker,
            "spans": sample(self.spans, self.eval_spans),
            "content": self.origin or sample(self.tokens, self.eval_tokens),
        }


def total(spans: np.ndarray) -> int:
    """The tokens of all spans."""
    return int((spans[:, 1] - spans[:, 0]).sum())


def count_windows(length: int, context: int) -> int:
    """How many windows an epoch has, so that they can be shifted and every token is reached."""
    if length < context:
        return 0
    return max((length - context + 1) // context, 1)


def window_shift(seed: int, epoch: int, slack: int) -> int:
    """Where the first window of an epoch begins, in [0, slack]."""
    key, counter = np.array([seed, epoch], np.uint64), np.array([0, 0, 0, _SHIFT_SEED], np.uint64)
    return int(np.random.Philox(key=key, counter=counter).random_raw()) % (slack + 1)


def _within(spans: np.ndarray, context: int) -> int:
    """The tokens of documents that are cut at `context`."""
    return int(np.minimum(spans[:, 1] - spans[:, 0], context).sum())


def _documents(
    dataset: TokenDataset, tokens: np.ndarray, spans: np.ndarray, indices: np.ndarray, size: int
) -> Batch:
    begin, end = spans[indices].T
    return _cut(dataset, tokens, begin[:, None] + np.arange(size), end - begin)


def _windows(
    dataset: TokenDataset, tokens: np.ndarray, spans: np.ndarray, starts: np.ndarray, size: int
) -> Batch:
    """Windows that begin at some places of the stream that the spans are."""
    ends = np.cumsum(spans[:, 1] - spans[:, 0])
    length = int(ends[-1]) if len(ends) else 0
    places = starts[:, None] + np.arange(size)
    span = np.searchsorted(ends, np.minimum(places, length - 1), side="right")
    return _cut(dataset, tokens, places + (spans[:, 1] - ends)[span], length - starts)


def _cut(
    dataset: TokenDataset, tokens: np.ndarray, places: np.ndarray, lengths: np.ndarray
) -> Batch:
    """The tokens at some places [n, size], filled up where a row is longer than its example."""
    column = np.arange(places.shape[1])
    there = column < lengths[:, None]
    found = tokens[np.where(there, places, 0)].astype(np.int32)
    filling = 0 if dataset.marker is None else dataset.marker
    return {
        "tokens": np.where(there, found, np.int32(filling)),
        "scored": (there & (column > 0)).astype(np.float32),
    }


def _head(spans: np.ndarray, count: int | None, context: int, more: int) -> np.ndarray:
    """The first tokens of some spans, for `count` windows and some more."""
    if count is None:
        return spans
    begins = np.cumsum(spans[:, 1] - spans[:, 0]) - (spans[:, 1] - spans[:, 0])
    end = np.minimum(spans[:, 1], spans[:, 0] + count * context + more - begins)
    head = np.stack([spans[:, 0], end], axis=1)
    return head[head[:, 1] > head[:, 0]]
