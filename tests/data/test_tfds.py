"""TFDS sets, prepared here and read without TensorFlow; and what is said where that fails."""

import shutil
import sys

import numpy as np
import pytest

from bitjax.data import Dataset, StreamedDataset, eval_batches, fingerprint, load, train_batch
from bitjax.data.tfds import parse_name
from tests.data.sets import encoded, picture, write_tfds


def records(count, start=0, shapes=((6, 5),), form="PNG", label=None):
    return [
        {
            "image": encoded(picture(start + i, *shapes[i % len(shapes)]), form),
            "label": i % 4 if label is None else label,
            "id": f"{start + i}",
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Prepared sets: `small` of one shape, `varied` of many, `challenge` without test labels."""
    root = tmp_path_factory.mktemp("tfds")
    write_tfds(root, "small", {"train": records(21), "test": records(7, 100)})
    sizes = ((40, 30), (20, 50), (33, 33))
    varied = {"train": records(12, 0, sizes, "JPEG"), "validation": records(5, 50, sizes, "JPEG")}
    write_tfds(root, "varied", varied, shape=(None, None, 3))
    challenge = {each: records(4, i) for i, each in enumerate(("train", "validation"))}
    write_tfds(root, "challenge", challenge | {"test": records(3, 9, label=-1)})
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITJAX_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def by_bytes(images, labels):
    return sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


def test_a_small_set_of_one_shape_is_read_into_memory_bit_by_bit(root):
    data = load("tfds:small", root=root)
    assert isinstance(data, Dataset) and (data.name, data.eval_split) == ("tfds:small", "test")
    assert (data.num_classes, data.image_shape, data.max_value) == (4, (6, 5, 3), 255.0)
    for images, labels, start, count in (
        (data.images, data.labels, 0, 21),
        (data.eval_images, data.eval_labels, 100, 7),
    ):
        wanted = [picture(start + i) for i in range(count)], [i % 4 for i in range(count)]
        assert by_bytes(images, labels) == by_bytes(*wanted)
    values = data.images / 255
    assert data.mean == pytest.approx(values.mean((0, 1, 2)), abs=1e-12)
    assert data.std == pytest.approx(values.std((0, 1, 2)), abs=1e-12)
    assert "tensorflow" not in sys.modules


def test_decoded_pixels_come_from_the_cache_until_the_files_change(root, cache, tmp_path):
    folder = write_tfds(tmp_path, "changing", {"train": records(5), "test": records(2, 9)})
    first = load("tfds:changing", root=tmp_path)
    entries = list(cache.glob("*.npy"))
    assert len(entries) == 4
    for record in folder.glob("*train*"):  # what is not read again may be gone
        content = record.read_bytes()
        stat = record.stat()
    again = load("tfds:changing", root=tmp_path)
    np.testing.assert_array_equal(first.images, again.images)
    assert len(list(cache.glob("*.npy"))) == 4
    record.write_bytes(content)
    assert record.stat().st_mtime_ns != stat.st_mtime_ns
    np.testing.assert_array_equal(load("tfds:changing", root=tmp_path).images, first.images)
    assert len(list(cache.glob("*.npy"))) == 8
    for entry in entries:  # another array under the same key
        np.save(entry, np.zeros(3))
    np.testing.assert_array_equal(load("tfds:changing", root=tmp_path).images, first.images)


@pytest.mark.parametrize("options", [{"memory_limit": 28 * 90 - 1}, {"image_size": 4}])
def test_what_is_larger_or_wanted_in_another_size_is_streamed(root, options):
    assert isinstance(load("tfds:small", root=root, memory_limit=28 * 90), Dataset)
    data = load("tfds:small", root=root, **options)
    assert isinstance(data, StreamedDataset) and (data.num_train, data.num_eval) == (21, 7)
    size = options.get("image_size")
    assert data.image_shape == ((size, size, 3) if size else (6, 5, 3))
    assert data.mean == (0.485, 0.456, 0.406)
    batch = train_batch(data, 8, 0, 0)
    assert batch["image"].shape == (8, *data.image_shape)


def test_images_of_different_sizes_are_streamed_at_224_or_as_asked(root):
    data = load("tfds:varied", root=root)
    assert data.image_shape == (224, 224, 3) and data.shorter == 256 and not data.random_crop
    assert data.eval_split == "validation"  # it has no test split
    data = load("tfds:varied", root=root, image_size=28, augmentation="random_resized_crop")
    assert data.shorter == 32 and data.random_crop
    assert train_batch(data, 4, 0, 0)["image"].shape == (4, 28, 28, 3)
    plain = load("tfds:varied", root=root, image_size=28)
    cropped, whole = train_batch(data, 12, 0, 0), train_batch(plain, 12, 0, 0)
    np.testing.assert_array_equal(cropped["label"], whole["label"])
    assert (cropped["image"] != whole["image"]).any(axis=(1, 2, 3)).all()
    (batch,) = eval_batches(data, 5)
    assert sorted(batch["label"].tolist()) == [0, 0, 1, 2, 3]


def test_a_test_split_without_labels_is_passed_over(root):
    data = load("tfds:challenge", root=root)
    assert data.eval_split == "validation" and data.num_eval == 4
    with pytest.raises(ValueError, match=r"record \d+ of split 'test' .* has the class -1"):
        load("tfds:challenge", root=root, splits=("train", "test"))


def test_the_validation_split_is_the_sets_own_or_held_out_of_training(root):
    own = load("tfds:challenge", root=root, eval_split="validation")
    assert own.eval_split == "validation" and (own.num_train, own.num_eval) == (4, 4)
    for limit in (2**30, 0):
        held = load(
            "tfds:small", root=root, validation=6, eval_split="validation", memory_limit=limit
        )
        test = load("tfds:small", root=root, validation=6, memory_limit=limit)
        assert (held.num_train, held.num_eval, held.eval_split) == (15, 6, "validation")
        assert (test.num_train, test.num_eval, test.eval_split) == (15, 7, "test")
        both = [train_batch(each, 15, 0, 0) for each in (held, test)]
        np.testing.assert_array_equal(both[0]["image"], both[1]["image"])
        (rest,) = eval_batches(held, 6)
        everything = [picture(i).tobytes() for i in range(21)]
        seen = [image.tobytes() for image in (*both[0]["image"], *rest["image"])]
        assert sorted(seen) == sorted(everything)


def test_splits_may_be_named_in_tfds_language(root):
    whole = load("tfds:small", root=root)
    data = load("tfds:small", root=root, splits=("train[:15]", "train[15:]"))
    np.testing.assert_array_equal(data.images, whole.images[:15])
    np.testing.assert_array_equal(data.eval_images, whole.images[15:])
    assert data.eval_split == "train[15:]"


def test_a_fingerprint_is_that_of_the_files_wherever_they_lie_and_are_decoded(root, tmp_path):
    shutil.copytree(root / "small", tmp_path / "small")
    contents = {
        fingerprint(load("tfds:small", root=place, memory_limit=limit))["content"]
        for place in (root, tmp_path)
        for limit in (2**30, 0)
    }
    write_tfds(tmp_path, "small", {"train": records(20), "test": records(7)}, version="1.3.0")
    other = fingerprint(load("tfds:small", root=tmp_path))["content"]
    parts = load("tfds:small", root=root, splits=("train[:15]", "train[15:]"))
    assert len(contents) == 1
    assert len(contents | {other, fingerprint(parts)["content"], ""}) == 4


@pytest.mark.parametrize("limit", [2**30, 0])
def test_limit_keeps_the_first_examples(root, limit):
    data = load("tfds:small", root=root, limit=3, memory_limit=limit)
    assert (data.num_train, data.num_eval) == (3, 3)
    whole = load("tfds:small", root=root)
    np.testing.assert_array_equal(data.eval_sample(3)["image"], whole.eval_images[:3])
    assert load("tfds:small", root=root, train=False, memory_limit=limit).num_train == 0


def test_the_newest_version_and_the_only_configuration_are_found(tmp_path):
    for version in ("1.9.0", "1.10.0"):
        write_tfds(tmp_path, "two", {"train": records(2), "test": records(1)}, version=version)
    assert "1.10.0" in load("tfds:two", root=tmp_path, memory_limit=0).train.where(0)
    assert "1.9.0" in load("tfds:two:1.9.0", root=tmp_path, memory_limit=0).train.where(0)
    with pytest.raises(FileNotFoundError, match=r"two:3.0.0 .* \(version 1.9.0, 1.10.0 is\); pre"):
        load("tfds:two:3.0.0", root=tmp_path)
    kinds = ("plain", "fancy")
    for kind in kinds:
        splits = {"train": records(3), "test": records(1)}
        write_tfds(tmp_path, "kinds", splits, configs=kinds, config=kind)
        if kind == "plain":
            assert load("tfds:kinds", root=tmp_path).num_train == 3
    assert load("tfds:kinds/fancy", root=tmp_path).name == "tfds:kinds/fancy"
    with pytest.raises(ValueError, match="which of tfds:kinds is meant: tfds:kinds/fancy, tfds:k"):
        load("tfds:kinds", root=tmp_path)


def test_a_set_that_is_not_prepared_is_refused_with_the_command_and_the_folder(
    tmp_path, monkeypatch
):
    wanted = (
        rf"tfds:cifar10 is not prepared in {tmp_path}/cifar10; prepare it by `"
        rf"bitjax prepare tfds:cifar10` with the root {tmp_path},"
    )
    with pytest.raises(FileNotFoundError, match=wanted):
        load("tfds:cifar10", root=tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=wanted):
        load("tfds:cifar10")
    (tmp_path / "cifar10/3.0.2").mkdir(parents=True)  # half prepared: nothing says it is done
    with pytest.raises(FileNotFoundError, match=wanted):
        load("tfds:cifar10")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tfds:cifar_10", "no data set 'cifar_10'; did you mean tfds:cifar10"),
        ("tfds:xqzw", "no data set 'xqzw'; see https://www.tensorflow.org/datasets/catalog"),
        ("tfds:../etc", "must be tfds:NAME, .* got 'tfds:../etc'"),
        ("tfds:a/b/c", "must be tfds:NAME, .* got 'tfds:a/b/c'"),
    ],
)
def test_a_set_that_does_not_exist_is_refused_with_names_that_do(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        load(name, root=tmp_path)


def test_names_have_a_configuration_and_a_version():
    assert parse_name("emnist/letters") == ("emnist", "letters", "")
    assert parse_name("emnist/letters:3.1.0") == ("emnist", "letters", "3.1.0")
    assert parse_name("mnist:3.0.1") == ("mnist", "", "3.0.1")


def test_a_set_that_is_no_image_classification_is_refused(tmp_path):
    import tensorflow_datasets as tfds

    image, label = tfds.features.Image(shape=(2, 2, 3)), tfds.features.ClassLabel(num_classes=2)
    picture_ = encoded(picture(0, 2, 2))
    for name, features, record, message in (
        ("no_image", {"x": tfds.features.Text(), "y": label}, {"x": "a", "y": 0}, "0 .* an image"),
        ("no_class", {"x": image}, {"x": picture_}, r"0 .* a class among \['x'\]"),
        ("two", {"x": image, "y": label, "z": label}, {"x": picture_, "y": 0, "z": 0}, "2 .* a cl"),
    ):
        write_tfds(tmp_path, name, {"train": [record]}, features)
        with pytest.raises(ValueError, match=f"{name} is no image classification: .*{message}"):
            load(f"tfds:{name}", root=tmp_path)


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_file_is_named(tmp_path, damage):
    folder = write_tfds(tmp_path, "broken", {"train": records(50), "test": records(1)})
    (file,) = folder.glob("*train*")
    content = bytearray(file.read_bytes())
    content[3000] ^= 1
    file.write_bytes({"flipped": content, "cut": content[:70_000], "gone": b""}[damage])
    if damage == "gone":
        file.unlink()
    message = rf"^record \d+ of split 'train' in {folder} is damaged .*prepare"
    with pytest.raises(ValueError, match=message):
        load("tfds:broken", root=tmp_path)
    with pytest.raises(ValueError, match=message):
        train_batch(load("tfds:broken", root=tmp_path, memory_limit=0), 50, 0, 0)


def test_a_set_with_training_examples_only_needs_a_validation_split(tmp_path):
    write_tfds(tmp_path, "alone", {"train": records(8)})
    with pytest.raises(ValueError, match="has training examples only; set `eval_split` to 'valid"):
        load("tfds:alone", root=tmp_path)
    for limit in (2**30, 0):
        options = {"validation": 4, "eval_split": "validation", "memory_limit": limit}
        assert load("tfds:alone", root=tmp_path, **options).num_eval == 4
    with pytest.raises(ValueError, match="less than the 8 training examples of tfds:alone, got 8"):
        load("tfds:alone", root=tmp_path, validation=8, eval_split="validation")
    with pytest.raises(ValueError, match="no split 'test'; it has"):
        load("tfds:alone", root=tmp_path, splits=("train", "test"))
    with pytest.raises(ValueError, match="name two, for train and test"):
        load("tfds:alone", root=tmp_path, splits=("train",))
