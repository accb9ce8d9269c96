"""A user's own folder of images, and own arrays."""

import shutil

import numpy as np
import pytest
from PIL import Image

from bitjax.data import Dataset, StreamedDataset, eval_batches, load, train_batch
from bitjax.data.folder import open_folder
from tests.data.sets import encoded, picture, write_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITJAX_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """Three classes of 4, 3 and 5 training images and 2 evaluation images each."""
    write_folder(tmp_path / "set", "train", (4, 3, 5))
    return write_folder(tmp_path / "set", "val", (2, 2, 2), start=50)


def test_folders_are_classes_in_alphabetical_order(folder):
    data = load(f"folder:{folder}")
    assert isinstance(data, Dataset) and data.name == f"folder:{folder}"
    assert (data.num_classes, data.image_shape, data.eval_split) == (3, (6, 5, 3), "validation")
    assert data.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 5
    np.testing.assert_array_equal(data.images, [picture(i) for i in range(12)])
    np.testing.assert_array_equal(data.eval_images, [picture(50 + i) for i in range(6)])
    assert data.mean == pytest.approx((data.images / 255).mean((0, 1, 2)), abs=1e-12)


def test_a_path_is_relative_to_the_root(folder):
    data = load("folder:set", root=folder.parent)
    np.testing.assert_array_equal(data.labels, load(f"folder:{folder}").labels)


def test_another_file_in_the_folder_is_seen(folder):
    before = load(f"folder:{folder}")
    (folder / "train/class1/0000.png").write_bytes(encoded(picture(99)))
    (folder / "train/class1/notes.txt").write_text("not an image")
    (folder / "train/class1/.hidden.png").write_text("nor this")
    after = load(f"folder:{folder}")
    assert after.num_train == before.num_train + 1
    np.testing.assert_array_equal(after.images[4], picture(99))


def test_grey_images_have_one_channel(tmp_path):
    for split in ("train", "test"):
        for label in range(2):
            file = tmp_path / split / str(label) / "a.png"
            file.parent.mkdir(parents=True)
            file.write_bytes(encoded(picture(label, channels=1)))
    data = load(f"folder:{tmp_path}")
    assert data.image_shape == (6, 5, 1) and data.eval_split == "test"
    np.testing.assert_array_equal(data.images[1], picture(1, channels=1))


FORMS = {"1": "PNG", "L": "PNG", "LA": "PNG", "P": "GIF", "RGB": "PNG", "RGBA": "PNG"} | {
    "CMYK": "JPEG"
}


@pytest.mark.parametrize("mode", FORMS)
@pytest.mark.parametrize("varied", [False, True])
def test_no_file_alone_decides_the_channels_of_all(tmp_path, mode, varied):
    # The odd one out is the first file of training or the last one of the evaluation.
    files = [(split, f"{i}.png") for split in ("train", "val") for i in range(3)]
    found = set()
    for place in (0, 5):
        for common in ("L", "RGB"):
            root = tmp_path / f"{place}{common}"
            for i, (split, name) in enumerate(files):
                kind = mode if i == place else common
                file = root / split / "class" / name
                file.parent.mkdir(parents=True, exist_ok=True)
                shape = (6 + varied * i, 5)
                image = Image.fromarray(picture(i, *shape)).convert(kind)
                image.save(file, FORMS[kind])
            found.add((common, open_folder("own", root).channels))
    grey = {"1", "L"}
    assert found == {("L", 1 if mode in grey else 3), ("RGB", 3)}


def test_images_of_different_sizes_are_streamed_with_the_same_settings(tmp_path):
    sizes = ((20, 30), (31, 22), (16, 16))
    write_folder(tmp_path, "train", (4, 4), sizes, form="jpg")
    write_folder(tmp_path, "val", (3, 3), sizes, form="jpg", start=20)
    data = load(f"folder:{tmp_path}", image_size=14, augmentation="random_resized_crop", limit=5)
    assert isinstance(data, StreamedDataset) and data.image_shape == (14, 14, 3)
    assert data.shorter == 16 and (data.num_train, data.num_eval) == (5, 5)
    assert sorted(train_batch(data, 5, 0, 0)["label"].tolist()) == [0, 0, 0, 0, 1]
    (batch,) = eval_batches(data, 8)
    assert batch["label"].tolist()[:5] == [0, 0, 0, 1, 1] and batch["mask"].sum() == 5
    held = load(f"folder:{tmp_path}", image_size=14, validation=2, eval_split="validation")
    assert sorted(held.evaluation.labels.tolist()) == [0, 1]  # one of each class


def test_a_folder_of_one_level_needs_a_validation_split(tmp_path):
    write_folder(tmp_path, "all", (6, 6))
    name = f"folder:{tmp_path / 'all'}"
    with pytest.raises(ValueError, match="training examples only; set `eval_split` to 'validation"):
        load(name)
    data = load(name, validation=4, eval_split="validation")
    assert (data.num_train, data.num_eval) == (8, 4)
    assert sorted(data.eval_labels.tolist()) == [0, 0, 1, 1]


def test_both_val_and_test_are_used_by_their_names(folder):
    write_folder(folder, "test", (1, 1, 1), start=80)
    assert load(f"folder:{folder}").num_eval == 3
    own = load(f"folder:{folder}", eval_split="validation")
    assert own.num_eval == 6 and own.num_train == 12


def remove_train(folder):
    shutil.rmtree(folder / "train")


def remove_all(folder):
    shutil.rmtree(folder)


def rename_class(folder):
    (folder / "val/class1").rename(folder / "val/klass1")


def empty_class(folder):
    for file in (folder / "train/class1").iterdir():
        file.unlink()


def no_image(folder):
    (folder / "train/class1/0005.png").write_bytes(b"not an image")


def cut(folder):
    file = folder / "train/class1/0005.png"
    file.write_bytes(file.read_bytes()[:-40])


def two_names(folder):
    shutil.copytree(folder / "val", folder / "validation")


def no_classes(folder):
    for each in (folder / "train").iterdir():
        shutil.rmtree(each)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (remove_train, FileNotFoundError, r"/set/train is missing; expected PATH/train/CLASS"),
        (remove_all, FileNotFoundError, r"/set is not a folder; expected PATH/train/CLASS"),
        (rename_class, ValueError, r"val lacks \['class1'\] and has \['klass1'\] besides"),
        (empty_class, ValueError, r"/train/class1 holds no image \(.jpg,"),
        (no_image, ValueError, r"/train/class1/0005.png is no image \(it is none of .*copy it"),
        (cut, ValueError, r"/train/class1/0005.png is damaged \(.*copy it again"),
        (two_names, ValueError, r"validation and .*val are both there; keep one"),
        (no_classes, ValueError, r"/train holds no folder; expected PATH/train/CLASS"),
    ],
)
def test_a_folder_that_is_wrong_is_refused_with_the_file_and_the_remedy(
    folder, spoil, error, message
):
    spoil(folder)
    with pytest.raises(error, match=message):
        load(f"folder:{folder}")


CLASSES = np.arange(20) % 4


def arrays(**changes):
    rng = np.random.default_rng(0)
    whole = {
        "x_train": rng.integers(256, size=(20, 5, 4), dtype=np.uint8),
        "y_train": CLASSES,
        "x_test": rng.integers(256, size=(6, 5, 4), dtype=np.uint8),
        "y_test": np.arange(6)[:, None] % 4,
    }
    return {key: value for key, value in (whole | changes).items() if value is not None}


def test_arrays_of_an_npz_file_are_a_data_set(tmp_path):
    np.savez_compressed(tmp_path / "own.npz", **arrays())
    data = load(f"npz:{tmp_path / 'own.npz'}")
    assert (data.num_classes, data.image_shape, data.eval_split) == (4, (5, 4, 1), "test")
    np.testing.assert_array_equal(data.images[..., 0], arrays()["x_train"])
    np.testing.assert_array_equal(data.eval_labels, np.arange(6) % 4)
    few = load("npz:own.npz", root=tmp_path, limit=3, validation=4, eval_split="validation")
    assert (few.num_train, few.num_eval) == (3, 3)
    np.savez(tmp_path / "one.npz", images=arrays()["x_train"], labels=arrays()["y_train"])
    with pytest.raises(ValueError, match="training examples only; set `eval_split`"):
        load("npz:one.npz", root=tmp_path)
    held = load("npz:one.npz", root=tmp_path, validation=8, eval_split="validation")
    assert (held.num_train, held.num_eval) == (12, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, r"holds \['x_test', 'x_train', 'y_train'\]; .* of x_train, y_train"),
        ({"x_train": np.zeros((20, 5, 4))}, "x_train must be uint8 .*, got float64"),
        ({"x_train": np.zeros((20, 5), np.uint8)}, r"x_train must be uint8 .*, got uint8 \(20, 5"),
        ({"y_train": np.zeros(19, int)}, r"y_train must be integers \[20\], got int64 \(19,\)"),
        ({"y_train": np.zeros(20)}, r"y_train must be integers \[20\], got float64"),
        ({"y_train": np.arange(20) - 1}, "y_train must be classes from 0, got -1 to 18; number"),
        ({"y_train": np.full(20, 2**40)}, "y_train must be classes from 0, got 1099511627776 to"),
        (
            {"y_train": np.eye(4)[CLASSES]},
            r"\[20\], got float64 \(20, 4\); .*argmax\(-1\) of one-h",
        ),
        ({"y_train": np.eye(4, dtype=int)[CLASSES]}, r"got int64 \(20, 4\); .*argmax\(-1\) of one"),
        ({"y_train": CLASSES > 1}, r"got bool \(20,\); .*y.astype\('int32'\) of whole numbers"),
        ({"y_train": CLASSES.astype("U1")}, r"y_train must be integers \[20\], got <U1"),
        (
            {"y_test": np.arange(6)},
            "y_test has the class 4, of which y_train has no example; leave",
        ),
        (
            {"x_train": np.zeros((20, 0, 4), np.uint8)},
            r"x_train must be uint8 .* got uint8 \(20, 0",
        ),
        ({"x_train": np.zeros((20, 5, 4), int)}, r"got int64 .*x.astype\('uint8'\) of whole numb"),
        ({"x_train": np.zeros((20, 5, 4), bool)}, r"x_train must be uint8 .*, got bool"),
        ({"x_test": np.zeros((6, 4, 4), np.uint8)}, "x_test must have the shape of x_train"),
        (
            {"x_train": np.array([None] * 20)},
            r"cannot be read \(it holds Python objects, which are never",
        ),
    ],
)
def test_arrays_that_are_wrong_are_refused_with_their_name(tmp_path, changes, message):
    np.savez(tmp_path / "own.npz", **arrays(**changes))
    with pytest.raises(ValueError, match=rf"own.npz.* {message}"):
        load("npz:own.npz", root=tmp_path)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("side", [8, 28, 32])
def test_arrays_with_their_channels_first_are_refused_with_the_transposition(
    channels, side, tmp_path
):
    images = np.zeros((4, channels, side, side), np.uint8)
    options = {"root": tmp_path, "validation": 2, "eval_split": "validation"}
    if channels < side:  # 13x8x8 could be what it says
        np.savez(tmp_path / "own.npz", images=images, labels=np.arange(4) % 2)
        with pytest.raises(ValueError, match=r"images must be \[N, H, W, C\].* give x.transpose\("):
            load("npz:own.npz", **options)
    last = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    np.savez(tmp_path / "own.npz", images=last, labels=np.arange(4) % 2)
    assert load("npz:own.npz", **options).image_shape == (side, side, channels)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04cut short"])
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "own.npz").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"own.npz cannot be read .*; copy it again, or give an .npz file of x"
    ):
        load("npz:own.npz", root=tmp_path)
    np.save(tmp_path / "array.npz", np.zeros(3))
    (tmp_path / "array.npz.npy").rename(tmp_path / "array.npz")
    with pytest.raises(ValueError, match="File is not a zip file"):
        load("npz:array.npz", root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"gone.npz is missing; copy it"):
        load("npz:gone.npz", root=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 32}, "`image_size` is for tfds: and folder: sets, got 32 for digits"),
        ({"augmentation": "random_resized_crop"}, "for tfds: and folder: sets, .*use 'crop_flip'"),
        ({"splits": ("train", "test")}, "`splits` is for tfds: sets"),
    ],
)
def test_settings_that_a_set_of_arrays_cannot_follow_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load("digits", **options)


def test_splits_of_a_folder_are_refused(folder):
    with pytest.raises(ValueError, match="`splits` is for tfds: sets"):
        load(f"folder:{folder}", splits=("train", "val"))
