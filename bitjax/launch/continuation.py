"""What a finished run's language model says, beside what its float model says."""

import inspect
from typing import NamedTuple

import numpy as np

from bitjax.data import TokenDataset, decode
from bitjax.frameworks.generate import generate
from bitjax.launch.finished import Finished
from bitjax.launch.programs import program
from bitjax.launch.start import find_start, load_start
from bitjax.training.work import Variables, Work
from bitjax.variables import as_batch, floats_of

_PROMPT, _STEPS = 40, 40  # tokens, at most


class Continuation(NamedTuple):
    """The beginning of a text, and how each model goes on, by the model's name."""

    prompt: str
    texts: dict[str, str]


def continue_text(finished: Finished, init_from: str) -> Continuation | None:
    """How a run goes on with the first evaluation text; None of what is no language model's.

    `init_from` is where the run's config says that its float weights were.
    """
    work, model, variables = finished
    data = work.dataset
    if not isinstance(data, TokenDataset) or not _keeps_cache(work):
        return None
    example = data.eval_sample(1)
    length = 1 + int(example["scored"].sum())
    count = min(_PROMPT, length, data.context // 2)
    prompt = example["tokens"][:, :count]
    steps = min(_STEPS, data.context - count)

    def told(model, variables):
        with program("the model called with decode=True"):
            tokens = np.asarray(generate(model, variables, prompt, steps))
        return _text(data, tokens[0, count:])

    start = _start(work, init_from)
    texts = {} if start is None else {"float, at its start": told(work.model, start)}
    if model.rules:
        texts = texts or {"float": told(work.model, floats_of(variables))}
    texts["quantized" if model.rules else "trained"] = told(model, variables)
    return Continuation(_text(data, prompt[0]), texts)


def _keeps_cache(work: Work) -> bool:
    return "decode" in inspect.signature(work.model.__call__).parameters


def _start(work: Work, init_from: str) -> Variables | None:
    """The float weights that a run started from, where they are still there."""
    try:
        return load_start(find_start(init_from), work.model, as_batch(*work.input_shapes(1)))
    except (ValueError, OSError):  # moved since, or on another machine
        return None


def _text(data: TokenDataset, tokens: np.ndarray) -> str:
    """The text of tokens, or their numbers where the data do not know it."""
    return decode(data, tokens) if data.pieces else " ".join(map(str, tokens.tolist()))
