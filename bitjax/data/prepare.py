"""Writes a TFDS data set to disk once, in the format that is read without TensorFlow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitjax.data.archives import ARCHIVES, Archive
from bitjax.data.tfds import check_known, find_prepared, parse_name, tfds_root
from bitjax.data.verify import Checksum, verify_file
from bitjax.extras import missing
from bitjax.files.reading import find_file, one_line


def prepare(
    name: str,
    root: str | Path | None = None,
    source: str | Path | None = None,
    *,
    verify: bool = True,
) -> Path:
    """Prepares a data set under `root`, unless it is, from files in `source` or downloads."""
    base, config, version = parse_name(name)
    root = tfds_root(root)
    found = find_prepared(name, root)
    if found is not None:
        return found
    check_known(base)
    import tensorflow_datasets as tfds

    full = base + (f"/{config}" if config else "") + (f":{version}" if version else "")
    builder: Any = tfds.builder(full, data_dir=root, file_format="array_record")
    archive = ARCHIVES.get(base)  # any other is left to TFDS, whose code mostly needs TensorFlow
    download = tfds.download.DownloadConfig(manual_dir=None if source is None else str(source))
    if archive is not None:
        if source is None and not archive.url:
            raise FileNotFoundError(
                f"tfds:{base} cannot be downloaded: ask its authors for {', '.join(archive.files)} "
                "and say in which folder they are."
            )
        if source is not None:
            paths = local_files(base, archive, Path(source), builder.url_infos if verify else None)
        # The one method that a builder's author writes: where the examples come from.
        builder._split_generators = lambda dl_manager: archive.splits(
            builder, paths if source is not None else _downloaded(archive, dl_manager)
        )
    try:
        builder.download_and_prepare(download_config=download)
    except (ValueError, OSError):
        raise
    except Exception as error:  # Of any kind: builders are others' programs.
        needed = _missing_tensorflow(error)
        if needed is None:
            raise ValueError(f"TFDS cannot prepare tfds:{base}: {one_line(error)}") from error
        raise missing("tf", f"Preparing tfds:{base} (not reading it)", needed) from error
    return Path(builder.data_path)


def local_files(
    base: str, archive: Archive, source: Path, published: Mapping[str, Any] | None
) -> dict[str, Path]:
    """The paths of an archive's files in a folder, checked against what TFDS says is published."""
    paths = {file: source / file for file in archive.files}
    remedy = f"tfds:{base} is made from {', '.join(archive.files)}"
    remedy += f" of {archive.url}" if archive.url else ", which its authors give on request"
    for file, path in paths.items():
        find_file(path, remedy)
        info = (published or {}).get(archive.url + file)
        if info is not None:
            verify_file(path, Checksum(int(info.size), "sha256", info.checksum), remedy)
    return paths


def _downloaded(archive: Archive, dl_manager: Any) -> dict[str, Path]:
    found = dl_manager.download({file: archive.url + file for file in archive.files})
    return {file: Path(path) for file, path in found.items()}


def _missing_tensorflow(error: BaseException | None) -> ImportError | None:
    """The failed import of TensorFlow that an error comes from."""
    while error is not None:
        if isinstance(error, ImportError) and "tensorflow" in str(error):
            return error
        error = error.__cause__ or error.__context__
    return None
