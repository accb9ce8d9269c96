"""Reads image-classification sets of TensorFlow Datasets without TensorFlow.

They are prepared once, in the array_record format (`bitjax.data.prepare`), and read by
`as_data_source`. Images stay encoded here; Pillow decodes them where a batch needs them.
"""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitjax.data.images import check_decoder
from bitjax.data.records import Records, Shape, Source, digest_of
from bitjax.extras import extra

_VERSION = re.compile(r"\d+\.\d+\.\d+$")


def tfds_root(root: str | Path | None) -> Path:
    """Where data sets are prepared: `root`, `$TFDS_DATA_DIR` or `~/tensorflow_datasets`."""
    folder = root or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(folder).expanduser()


def parse_name(name: str) -> tuple[str, str, str]:
    """'NAME/CONFIG:VERSION' in its three parts; '' for those that are left out."""
    found = re.fullmatch(r"(\w+)(?:/([\w.\-]+))?(?::(\d+\.\d+\.\d+))?", name)
    if found is None:
        raise ValueError(
            f"`name` must be tfds:NAME, tfds:NAME/CONFIG or tfds:NAME/CONFIG:1.2.3, "
            f"got 'tfds:{name}'."
        )
    return found[1], found[2] or "", found[3] or ""


def open_tfds(name: str, root: str | Path | None = None, *, splits: Sequence[str] = ()) -> Source:
    """The examples of a prepared data set, its newest version if none is named."""
    folder = _find(name, tfds_root(root))
    with extra("data", f"tfds:{name}"):
        import tensorflow_datasets as tfds  # 1 s to import: only who reads such a set pays.

    full = f"tfds:{name}"
    check_decoder(full)
    builder = tfds.builder_from_directory(folder)
    image, label = _keys(full, builder.info)
    features = builder.info.features
    if np.dtype(features[image].np_dtype) != np.uint8:
        raise ValueError(f"{full} has {image} of {features[image].np_dtype}, expected uint8.")
    *sides, channels = features[image].shape
    channels = channels or 3
    if channels not in (1, 3, 4):
        raise ValueError(f"{full} has images of {channels} channels, expected 1, 3 or 4.")
    shape: Shape | None = None if None in sides else (sides[0], sides[1], channels)
    if splits and len(splits) != 2:
        raise ValueError(f"`splits` must be empty or name two, for train and test, got {splits}.")
    wanted = dict(zip(("train", "test"), splits, strict=False)) or {
        split: split for split in ("train", "validation", "test") if split in builder.info.splits
    }
    opened = {
        kind: _records(full, builder, split, image, label, folder) for kind, split in wanted.items()
    }
    if "train" not in opened:
        raise ValueError(
            f"{full} has no split 'train'; name two of {sorted(builder.info.splits)} in `splits`."
        )
    if not splits and "test" in opened and not _has_labels(opened["test"]):
        del opened["test"]  # The test set of a challenge.
    return Source(full, opened, features[label].num_classes, shape, channels)


def find_prepared(name: str, root: Path) -> Path | None:
    """The folder of a prepared data set, of its newest version if none is named, or None."""
    base, config, version = parse_name(name)
    folder = root / base / config
    versions = _versions(folder)
    if not versions and not config and folder.is_dir():
        configs = sorted(f.name for f in folder.iterdir() if f.is_dir() and _versions(f))
        if len(configs) > 1:
            choices = ", ".join(f"tfds:{base}/{each}" for each in configs)
            raise ValueError(f"`name` must say which of tfds:{base} is meant: {choices}.")
        if configs:
            folder = folder / configs[0]
            versions = _versions(folder)
    if not versions or (version and version not in versions):
        return None
    return folder / (version or versions[-1])


def _find(name: str, root: Path) -> Path:
    found = find_prepared(name, root)
    if found is not None:
        return found
    base, config, version = parse_name(name)
    folder = root / base / config
    there = _versions(folder)
    if not there:
        check_known(base)  # a user's own set may be unknown to TFDS
    others = f" (version {', '.join(there)} is)" if there else ""
    raise FileNotFoundError(
        f"tfds:{name} is not prepared in {folder}{others}; prepare it by `bitjax prepare "
        f"tfds:{name}` with the root {root}, or say where it is: config.data.root or TFDS_DATA_DIR."
    )


def _versions(folder: Path) -> list[str]:
    """The prepared versions in a folder, oldest first."""
    found = (f.parent.name for f in folder.glob("*/dataset_info.json"))
    return sorted(filter(_VERSION.match, found), key=lambda v: [int(n) for n in v.split(".")])


def check_known(base: str) -> None:
    """Raise a ValueError, with similar names, where TFDS has no data set of a name."""
    with extra("data", f"tfds:{base}"):
        import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if base not in known:
        close = difflib.get_close_matches(base, known)
        hint = f"did you mean {' or '.join(f'tfds:{each}' for each in close)}?" if close else ""
        raise ValueError(
            f"`name`: TFDS has no data set {base!r}; "
            f"{hint or 'see https://www.tensorflow.org/datasets/catalog'}"
        )


def _keys(full: str, info: Any) -> tuple[str, str]:
    """The names of the image and of its class."""
    import tensorflow_datasets as tfds

    kinds = {"an image": tfds.features.Image, "a class": tfds.features.ClassLabel}
    supervised = info.supervised_keys or ()
    chosen: list[str] = []
    for place, (kind, wanted) in enumerate(kinds.items()):
        keys = [key for key, feature in info.features.items() if isinstance(feature, wanted)]
        if len(supervised) == 2 and supervised[place] in keys:
            keys = [supervised[place]]
        if len(keys) != 1:
            raise ValueError(
                f"{full} is no image classification: it has {len(keys)} features that are {kind} "
                f"among {sorted(info.features)}, expected one."
            )
        chosen += keys
    return chosen[0], chosen[1]


def _records(full: str, builder: Any, split: str, image: str, label: str, folder: Path) -> Records:
    import tensorflow_datasets as tfds

    skip = {image: tfds.decode.SkipDecoding()}
    try:
        source = builder.as_data_source(split, decoders=skip)
    except NotImplementedError as error:
        raise ValueError(
            f"{full} is prepared as {builder.info.file_format.value} in {folder}, which only "
            f"TensorFlow reads; remove that folder and run `bitjax prepare {full}`."
        ) from error
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{full} has no split {split!r}; it has {sorted(builder.info.splits)}, and parts of "
            "them as in 'train[:90%]'."
        ) from error

    def read(number: int) -> tuple[bytes, int]:
        record = source[number]
        return record[image], int(record[label])

    facts = sorted((f.name, f.stat()) for f in folder.iterdir())
    sizes = [(name, stat.st_size) for name, stat in facts if "array_record" in name]
    times = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in facts]
    return Records(
        split,
        read,
        lambda number: f"record {number} of split {split!r} in {folder}",
        np.arange(len(source)),
        None,
        digest_of(full, split, str(folder.absolute()), times),
        digest_of(builder.info.full_name, split, len(source), sizes),
    )


def _has_labels(records: Records) -> bool:
    return len(records) > 0 and records.read(int(records.indices[0]))[1] >= 0
