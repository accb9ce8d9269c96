"""Prepares a data set of TensorFlow Datasets, once, for `config.data.name = "tfds:NAME"`.

bitjax prepare tfds:cifar10 [--from FOLDER_OF_DOWNLOADED_FILES] [--root DIR]

cifar10, cifar100, mnist, fashion_mnist, kmnist and imagenet2012 need no TensorFlow. With --from
nothing is downloaded; the files keep the names under which they are published:
cifar-10-binary.tar.gz, cifar-100-binary.tar.gz, train-images-idx3-ubyte.gz (and three more),
ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar.
"""

import signal
from collections.abc import Sequence

from absl import logging

from bitjax.cli.arguments import Parser


def main(argv: Sequence[str] | None = None) -> None:
    """Prepares the data set and says how to use it."""
    parser = Parser(__doc__, "bitjax prepare")
    parser.add_argument("name", help="tfds:NAME", metavar="tfds:NAME")
    parser.add_argument("--from", dest="source", help="folder of files that are downloaded already")
    parser.add_argument(
        "--root", help="where to prepare; else TFDS_DATA_DIR, ~/tensorflow_datasets"
    )
    parser.add_switch("verify", "take only the published files", default=True)
    args = parser.read(argv)
    if not args.name.startswith("tfds:"):
        parser.error(f"expected one data set, tfds:NAME, got {args.name!r}")
    logging.set_verbosity(logging.ERROR)
    from bitjax.data.prepare import prepare

    # From here on Ctrl-C is a KeyboardInterrupt: what is half unpacked is removed.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    name = args.name.removeprefix("tfds:")
    folder = prepare(name, args.root, args.source, verify=args.verify)
    print(f"prepared in {folder}; use it with --config.data.name={args.name}", end="")
    print(f" --config.data.root={args.root}" if args.root else "")
