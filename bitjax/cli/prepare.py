"""Prepares a data set of TensorFlow Datasets, once, for `config.data.name = "tfds:NAME"`.

python -m experiments.prepare_data tfds:cifar10 [--from FOLDER_OF_DOWNLOADED_FILES] [--root DIR]

cifar10, cifar100, mnist, fashion_mnist, kmnist and imagenet2012 need no TensorFlow. With --from
nothing is downloaded; the files keep the names under which they are published:
cifar-10-binary.tar.gz, cifar-100-binary.tar.gz, train-images-idx3-ubyte.gz (and three more),
ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar.
"""

import sys

from absl import app, flags, logging

_FROM = flags.DEFINE_string("from", None, "Folder of files that are downloaded already.")
_ROOT = flags.DEFINE_string(
    "root", None, "Where to prepare; TFDS_DATA_DIR or ~/tensorflow_datasets if not given."
)
_VERIFY = flags.DEFINE_bool("verify", True, "Take only the published files.")


def main(argv: list[str]) -> None:
    """Prepares the data set and says how to use it."""
    if len(argv) != 2 or not argv[1].startswith("tfds:"):
        sys.exit(f"error: expected one data set, tfds:NAME, got {argv[1:]}. See --help.")
    from bitjax.data.prepare import prepare

    name = argv[1].removeprefix("tfds:")
    try:
        folder = prepare(name, _ROOT.value, _FROM.value, verify=_VERIFY.value)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    print(f"prepared in {folder}; use it with --config.data.name={argv[1]}", end="")
    print(f" --config.data.root={_ROOT.value}" if _ROOT.value else "")


def run() -> None:
    """Runs the command."""
    logging.set_verbosity(logging.ERROR)
    app.run(main)
