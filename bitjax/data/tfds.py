"""Reads image-classification sets of TensorFlow Datasets without TensorFlow.

They are prepared once, in the array_record format (`bitjax.data.prepare`), and read by
`as_data_source`. Images stay encoded here; Pillow decodes them where a batch needs them.
"""

import contextlib
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitjax.data.images import MOST_PIXELS, check_decoder
from bitjax.data.prepared import check_count, check_prepared
from bitjax.data.records import Records, Shape, Source, digest_of, read_record
from bitjax.extras import extra
from bitjax.files.reading import FileError, printable, reading, reason_of

_VERSION = re.compile(r"\d+\.\d+\.\d+$")


def tfds_root(root: str | Path | None) -> Path:
    """Where data sets are prepared: `root`, `$TFDS_DATA_DIR` or `~/tensorflow_datasets`."""
    folder = root or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(os.path.expanduser(folder))


def parse_name(name: str) -> tuple[str, str, str]:
    """'NAME/CONFIG:VERSION' in its three parts; '' for those that are left out."""
    found = re.fullmatch(r"(\w+)(?:/(\w[\w.\-]*))?(?::(\d+\.\d+\.\d+))?", name)
    if found is None:
        raise ValueError(
            f"`name` must be tfds:NAME, tfds:NAME/CONFIG or tfds:NAME/CONFIG:1.2.3, "
            f"got {f'tfds:{name}'!r}."
        )
    return found[1], found[2] or "", found[3] or ""


def open_tfds(name: str, root: str | Path | None = None, *, splits: Sequence[str] = ()) -> Source:
    """The examples of a prepared data set, its newest version if none is named."""
    folder = _find(name, tfds_root(root))
    with extra("data", f"tfds:{name}"):
        import tensorflow_datasets as tfds  # 1 s to import: only who reads such a set pays.

    full = f"tfds:{name}"
    check_decoder(full)
    facts = check_prepared(folder, _remedy(full))
    with reading(folder, _remedy(full)):
        builder = tfds.builder_from_directory(folder)
    keys = _keys(full, builder.info)
    image, label = (builder.info.features[key] for key in keys)
    shape, channels = _shape(full, keys[0], image)
    if not label.num_classes:
        raise ValueError(f"{full} does not say how many classes {keys[1]} has; {_remedy(full)}.")
    if splits and len(splits) != 2:
        raise ValueError(f"`splits` must be empty or name two, for train and test, got {splits}.")
    wanted = dict(zip(("train", "test"), splits, strict=False)) or {
        split: split for split in ("train", "validation", "test") if split in builder.info.splits
    }
    opened = {
        kind: _records(full, builder, split, keys, folder, facts) for kind, split in wanted.items()
    }
    if "train" not in opened:
        raise ValueError(
            f"{full} has no split 'train'; name two of {sorted(builder.info.splits)} in `splits`."
        )
    if not splits and "test" in opened and not _has_labels(opened["test"]):
        del opened["test"]  # The test set of a challenge.
    return Source(full, opened, label.num_classes, shape, channels)


def _remedy(full: str) -> str:
    return f"remove that folder and run `bitjax prepare {full}`"


def _shape(full: str, key: str, image: Any) -> tuple[Shape | None, int]:
    """The shape of all images, None where they differ in theirs; and the channels."""
    if np.dtype(image.np_dtype) != np.uint8:
        raise ValueError(f"{full} has {key} of {image.np_dtype}, expected uint8.")
    height, width, channels = image.shape
    channels = channels or 3
    if channels not in (1, 3, 4):
        raise ValueError(f"{full} has images of {channels} channels, expected 1, 3 or 4.")
    if height is None or width is None:
        return None, channels
    if not 1 <= height * width <= MOST_PIXELS:
        raise ValueError(
            f"{full} has images of {height}x{width}, expected 1 to {MOST_PIXELS} pixels."
        )
    return (height, width, channels), channels


def find_prepared(name: str, root: Path) -> Path | None:
    """The folder of a prepared data set, of its newest version if none is named, or None."""
    base, config, version = parse_name(name)
    folder = root / base / config
    versions = _versions(folder)
    if not versions and not config and os.path.isdir(folder):
        with reading(folder, "give the folder in which data sets are prepared"):
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
    found, names = [], []
    with reading(folder, "give the folder in which data sets are prepared"):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # none is prepared
            names = os.listdir(folder)
        for name in filter(_VERSION.match, names):
            # A link to nowhere counts: the set is there, and damaged.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.lstat(folder / name / "dataset_info.json")
                found.append(name)
    return sorted(found, key=lambda version: [int(n) for n in version.split(".")])


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
    named = isinstance(info.features, tfds.features.FeaturesDict)
    features = info.features if named else {"": info.features}
    for place, (kind, wanted) in enumerate(kinds.items()):
        keys = [key for key, feature in features.items() if isinstance(feature, wanted)]
        if len(supervised) == 2 and supervised[place] in keys:
            keys = [supervised[place]]
        if len(keys) != 1:
            raise ValueError(
                f"{full} is no image classification: it has {len(keys)} features that are {kind} "
                f"among {sorted(features)}, expected one."
            )
        chosen += keys
    return chosen[0], chosen[1]


def _records(
    full: str,
    builder: Any,
    split: str,
    keys: tuple[str, str],
    folder: Path,
    facts: Mapping[str, os.stat_result],
) -> Records:
    import tensorflow_datasets as tfds

    image, label = keys
    skip = {image: tfds.decode.SkipDecoding()}
    try:
        source = builder.as_data_source(split, decoders=skip)
    except NotImplementedError as error:
        raise ValueError(
            f"{full} is prepared as {builder.info.file_format.value} in {printable(folder)}, which "
            f"only TensorFlow reads; {_remedy(full)}."
        ) from error
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{full} has no split {split!r}; it has {sorted(builder.info.splits)}, and parts of "
            "them as in 'train[:90%]'."
        ) from error
    except Exception as error:  # of any kind: it believes what the folder says
        what = f"cannot be read ({reason_of(error)})"
        raise FileError(folder, what, _remedy(full)) from error
    with reading(folder, _remedy(full)):
        count = len(source)
    check_count(folder, count, facts, _remedy(full))

    def read(number: int) -> tuple[bytes, int]:
        record = source[number]
        return record[image], int(record[label])

    sizes = [(name, each.st_size) for name, each in facts.items() if "array_record" in name]
    times = [(name, each.st_size, each.st_mtime_ns) for name, each in facts.items()]
    return Records(
        split,
        read,
        lambda number: f"record {number} of split {split!r} in {printable(folder)}",
        np.arange(count),
        None,
        digest_of(full, split, str(folder.absolute()), times),
        digest_of(builder.info.full_name, split, count, sizes),
    )


def _has_labels(records: Records) -> bool:
    """Whether any of 32 records, evenly spread, has a class; the first alone could be an error."""
    count = len(records)
    numbers = {int(records.indices[i * (count - 1) // 31]) for i in range(32)} if count else set()
    return any(read_record(records, number)[1] >= 0 for number in sorted(numbers))
