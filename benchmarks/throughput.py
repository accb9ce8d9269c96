"""Whether the accelerator is kept waiting: by its batches, by the loop, by one run where K fit.

Run: python -m benchmarks.throughput [--sections input,loop,vectorized] [--rounds 7] [--batch 128]
"""

import argparse
import contextlib
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from PIL import Image

from benchmarks import loop_overhead, vectorize
from benchmarks.step_time import prepare as prepare_step
from benchmarks.step_time import stages, synthetic_batch
from benchmarks.timing import Ratio, interleave, machine, median, paired_ratio, show
from bitjax.data import load, train_batches
from bitjax.data.images import WORDS, centre_crop, open_image, random_resized_crop
from bitjax.data.prepare import prepare
from bitjax.models import resnet20

INPUT_TARGET = 3.0  # times as fast as the step


# --- input: batches per second of every source, as multiples of ResNet-20's steps per second


def input_section(rounds: int, batch: int) -> dict[str, Ratio]:
    """Prints how much faster each source makes batches than ResNet-20's float step takes them.

    Returns:
      Batches in the time of a step, by source; of the step itself, 1.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        # Nothing decoded earlier, nothing left behind.
        stack.enter_context(mock.patch.dict(os.environ, BITJAX_CACHE_DIR=folder))
        functions: dict[str, Callable[[], object]] = {"step": _step(batch)}
        counts = {"step": 1}
        for name, (dataset, count) in _sources(Path(folder)).items():
            batches = stack.enter_context(contextlib.closing(train_batches(dataset, batch, 0, 0)))
            functions[name], counts[name] = _take(batches, count), count
        seconds = interleave(functions, rounds)
        decoded = _decoding(rounds)
    each = {name: [s / counts[name] for s in times] for name, times in seconds.items()}
    found = {name: paired_ratio(each["step"], times) for name, times in each.items()}
    show(
        f"Input: batches of {batch} in the time of a step of ResNet-20 (float32, 32x32) on "
        f"{jax.devices()[0].platform}; target {INPUT_TARGET}",
        ("source", "batches a step", "batches/s", "images/s"),
        [
            (name, found[name], 1 / median(times), batch / median(times))
            for name, times in each.items()
        ],
    )
    show(
        "A 500x375 JPEG to 224x224 (or 96x96), one thread",
        ("what", "ms"),
        [(name, 1000 * median(times)) for name, times in decoded.items()],
    )
    return found


def _step(batch: int) -> Callable[[], object]:
    examples = synthetic_batch(batch)
    step, state = prepare_step(resnet20(), stages()["float"], examples)
    compiled = jax.jit(step, donate_argnums=0).lower(state, examples).compile()

    def run() -> None:
        nonlocal state
        state, metrics = compiled(state, examples)
        jax.block_until_ready((state, metrics))

    return run


def _take(batches: Iterator[Any], count: int) -> Callable[[], object]:
    return lambda: [next(batches) for _ in range(count)]


def _sources(folder: Path) -> Mapping[str, tuple[Any, int]]:
    """Data sets, and how many batches to take of each in a round: many more than are prefetched."""
    rng = np.random.default_rng(0)
    _cifar10(folder / "cifar-10-binary.tar.gz", rng)
    prepare("cifar10", folder, folder, verify=False)
    for split, count in (("train", 24), ("val", 1)):
        for label in range(4):
            (folder / "photos" / split / str(label)).mkdir(parents=True)
            for i in range(count):
                path = folder / "photos" / split / str(label) / f"{i}.jpg"
                path.write_bytes(_photo(rng))
    crop = {"augmentation": "random_resized_crop"}
    cifar10, photos = "tfds:cifar10", f"folder:{folder / 'photos'}"
    return {
        "in memory, 32x32": (load(cifar10, root=folder), 200),
        "TFDS streamed, PNG 32x32": (load(cifar10, root=folder, memory_limit=0), 20),
        "TFDS streamed, PNG 32x32, random crop": (load(cifar10, root=folder, **crop), 20),
        "folder streamed, JPEG 500x375 to 32x32, random crop": (
            load(photos, image_size=32, **crop),
            8,
        ),
        "folder streamed, JPEG 500x375 to 224x224, random crop": (load(photos, **crop), 8),
    }


def _cifar10(path: Path, rng: np.random.Generator) -> None:
    """An archive of CIFAR-10's form: 2,000 smooth images, which compress as real ones do."""
    images = np.stack([_smooth(rng, 32, 32, 8) for _ in range(2000)]).transpose(0, 3, 1, 2)
    rows = np.concatenate(
        [rng.integers(10, size=(2000, 1), dtype=np.uint8), images.reshape(2000, -1)], axis=1
    )
    names = "\n".join(f"class{i}" for i in range(10)).encode()
    members = {"batches.meta.txt": names, "test_batch.bin": rows[:200].tobytes()}
    members |= {f"data_batch_{i + 1}.bin": rows[i::5].tobytes() for i in range(5)}
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _smooth(rng: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    """uint8 [height, width, 3]: noise of two scales, about as rich as a photograph."""
    coarse = rng.integers(256, size=(-(-height // cell), -(-width // cell), 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    fine = rng.normal(0.0, 8.0, (height, width, 3))
    return np.clip(np.asarray(image) + fine, 0, 255).astype(np.uint8)


def _photo(rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_smooth(rng, 375, 500, 24)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _decoding(rounds: int) -> dict[str, list[float]]:
    """Seconds an image, of each way to decode and crop it."""
    rng = np.random.default_rng(1)
    photos = [_photo(rng) for _ in range(20)]
    words = [np.random.Philox(key=i).random_raw(WORDS) for i in range(20)]

    def fast() -> None:
        for photo, draw in zip(photos, words, strict=True):
            random_resized_crop(open_image(photo), draw, 224, 224, 3)

    def full() -> None:
        for photo, draw in zip(photos, words, strict=True):
            image = open_image(photo)
            image.load()  # afterwards it is too late for the decoder to leave anything out
            random_resized_crop(image, draw, 224, 224, 3)

    def small(decode_all: bool) -> None:
        for photo, draw in zip(photos, words, strict=True):
            image = open_image(photo)
            if decode_all:
                image.load()
            random_resized_crop(image, draw, 96, 96, 3)

    def evaluation() -> None:
        for photo in photos:
            centre_crop(open_image(photo), 256, 224, 224, 3)

    functions = {
        "random crop": fast,
        "random crop, decoded in full": full,
        "random crop to 96x96": lambda: small(False),
        "random crop to 96x96, decoded in full": lambda: small(True),
        "evaluation's centre crop": evaluation,
    }
    seconds = interleave(functions, rounds)
    return {name: [s / len(photos) for s in times] for name, times in seconds.items()}


SECTIONS: Mapping[str, Callable[[int, int], object]] = {
    "input": input_section,
    "loop": lambda rounds, batch: loop_overhead.main([f"--rounds={rounds}", f"--batch={batch}"]),
    "vectorized": lambda rounds, batch: vectorize.main([f"--rounds={rounds}"]),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the sections that the flags name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="with commas between")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=128)
    flags = parser.parse_args(arguments)
    names = flags.sections.split(",")
    if unknown := set(names) - set(SECTIONS):
        parser.error(f"--sections must be of {list(SECTIONS)}, got {sorted(unknown)}")
    began = time.perf_counter()
    for name in names:
        SECTIONS[name](flags.rounds, flags.batch)
    print(f"\n{machine()}; {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
