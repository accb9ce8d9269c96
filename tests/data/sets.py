"""Small data sets on disk for the tests: images whose pixels tell which example they are."""

import io
import warnings

import numpy as np
from PIL import Image


def encoded(array, form="PNG", **options):
    """uint8 [H, W, C] as the bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(buffer, form, **options)
    return buffer.getvalue()


def picture(number, height=6, width=5, channels=3):
    """uint8 [height, width, channels], another one for every number."""
    rng = np.random.default_rng(number)
    return rng.integers(256, size=(height, width, channels), dtype=np.uint8)


def write_tfds(root, called, splits, features=None, shape=(6, 5, 3), num_classes=4, **options):
    """Prepares a TFDS data set `called`, version 1.2.0, under `root`; returns its folder.

    `splits`: the records {'image': bytes, 'label': int} of every split.
    """
    import tensorflow_datasets as tfds

    features = features or {
        "image": tfds.features.Image(shape=shape),
        "label": tfds.features.ClassLabel(num_classes=num_classes),
        "id": tfds.features.Text(),
    }

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = called
        VERSION = tfds.core.Version(options.get("version", "1.2.0"))
        BUILDER_CONFIGS = [
            tfds.core.BuilderConfig(name=each) for each in options.get("configs", ())
        ]
        pkg_dir_path = root

        def _info(self):
            keys = ("image", "label") if {"image", "label"} <= set(features) else None
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=keys
            )

        def _split_generators(self, dl_manager):
            return {split: enumerate(records) for split, records in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TFDS's, about what it does not find out offline
        builder = Builder(data_dir=root, file_format="array_record", config=options.get("config"))
        builder.download_and_prepare()
    return root / builder.data_path


def write_folder(root, split, counts, sizes=((6, 5),), form="png", start=0):
    """PATH/split/CLASS/N.form with `counts` images of each class, of the sizes in turn."""
    number = start
    for label, count in enumerate(counts):
        folder = root / split / f"class{label}"
        folder.mkdir(parents=True)
        for _ in range(count):
            height, width = sizes[number % len(sizes)]
            image = encoded(picture(number, height, width), {"jpg": "JPEG"}.get(form, form))
            (folder / f"{number:04d}.{form}").write_bytes(image)
            number += 1
    return root
