"""Draws training text from a config's float language model: teaching a student needs no other.

Documents begin with the marker, each token is drawn as the model gives it (temperature 1), and a
document ends before the next marker or at its length. The file goes to `config.data.train_from`.

python -m experiments.draw stories/float --documents=8000 --length=384 --out=runs/drawn.npz
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from bitjax.cli.arguments import Parser
from bitjax.cli.front import front_door
from bitjax.files.writing import replacing
from bitjax.launch.config_files import load_config

_TOGETHER = 250  # documents


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what is wrong with it ends in one line."""
    parser = Parser(__doc__, "python -m experiments.draw")
    parser.add_config()
    parser.add_argument("--out", required=True, help="npz file to write")
    parser.add_count("documents", "documents to draw", default=8000, most=10_000_000)
    parser.add_count("length", "most tokens of a document", default=384, least=2)
    parser.add_count("seed", "seed of the draws", least=0)
    return parser.read(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Draws the documents and writes them as one stream, `train`."""
    args = parse(argv)
    work = _work_of(args)
    drawn = draw(work, args.documents, args.length, args.seed)
    batches = track(drawn, "drawing", total=-(-args.documents // _TOGETHER))
    documents = [document for batch in batches for document in batch]
    stream = np.concatenate(documents)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    with replacing(args.out) as file:
        np.savez(file, train=stream)
    print(f"{args.out}: {len(documents):,} documents, {len(stream):,} tokens")


def draw(work: Any, documents: int, length: int, seed: int) -> Iterator[list[np.ndarray]]:
    """Documents, some hundred together: a marker and what the float model says behind it."""
    import jax

    import bitjax as bj

    marker, vocabulary = work.dataset.marker, work.dataset.vocabulary
    for begin in range(0, documents, _TOGETHER):
        prompts = np.full((min(_TOGETHER, documents - begin), 1), marker, np.int32)
        key = jax.random.fold_in(jax.random.key(seed), begin)
        tokens = bj.generate(work.model, work.start, prompts, length - 1, temperature=1.0, key=key)
        kept = np.asarray(tokens, np.min_scalar_type(vocabulary - 1))
        yield [_first_document(row, marker) for row in kept]


def _work_of(args: argparse.Namespace) -> Any:
    """The config's float model and data, which must be a pretrained one of documents."""
    from bitjax.data import TokenDataset
    from bitjax.launch.build import build_work

    config = load_config(args.config, args.overrides)
    work = build_work(config)
    data = work.dataset
    if not isinstance(data, TokenDataset) or data.marker is None:
        raise ValueError(
            f"config.data.name must be tokens with a marker of documents, got {data.name!r}."
        )
    if not config.init_from:
        raise ValueError("config.init_from must name a float model's weights, got ''.")
    return work


def _first_document(tokens: np.ndarray, marker: int) -> np.ndarray:
    """The tokens before the second marker."""
    ends = np.flatnonzero(tokens[1:] == marker)
    return tokens[: ends[0] + 1] if len(ends) else tokens


if __name__ == "__main__":
    with front_door(compiles=True):
        main()
