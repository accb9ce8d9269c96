"""CIFAR-10, Fashion-MNIST and ImageNet's sample: fakes, real files where they are, damaged ones."""

import gzip
import hashlib
import io
import os

import numpy as np
import pytest
from PIL import Image

from bitjax.data import cifar10, fashion_mnist, imagenet_sample, load
from bitjax.data.cache import cached
from bitjax.data.files import CIFAR10_FILES, FASHION_MNIST_FILES
from bitjax.data.imagenet_sample import IMAGENET_SAMPLE_FILES
from bitjax.data.verify import Checksum


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITJAX_CACHE_DIR", str(tmp_path / "cache"))


def checksums(folder, algorithm):
    contents = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return {
        name: Checksum(len(content), algorithm, hashlib.new(algorithm, content).hexdigest())
        for name, content in contents.items()
    }


@pytest.fixture
def fake_cifar10(tmp_path):
    """Three files of six random images, two blobs each; their checksums and images."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar10"
    folder.mkdir()
    images = {}
    for name in ("cifar10_train_1", "cifar10_train_2", "cifar10_test"):
        images[name] = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
        blobs = []
        for column in images[name].reshape(2, 3 * 32, 32, 3):
            buffer = io.BytesIO()
            Image.fromarray(column).save(buffer, "WEBP", lossless=True)
            blobs.append(buffer.getvalue())
        np.savez(
            folder / f"{name}.npz",
            webp=np.frombuffer(b"".join(blobs), np.uint8),
            offsets=np.cumsum([0, *map(len, blobs)]).astype(np.int32),
            labels=np.arange(6, dtype=np.uint8),
        )
    return folder, checksums(folder, "sha256"), images


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def fake_fashion(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "fashion_mnist"
    folder.mkdir()
    arrays = {}
    for prefix, count in (("train", 5), ("t10k", 3)):
        arrays[prefix] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", arrays[prefix])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8))
    return folder, checksums(folder, "md5"), arrays


@pytest.fixture
def fake_sample(tmp_path):
    """Two files of three JPEGs each; their checksums, and the pixels that they decode to."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "imagenet_sample"
    folder.mkdir()
    found = []
    for number in (1, 2):
        blobs = []
        for _ in range(3):
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            coarse.resize((256, 256)).save(buffer := io.BytesIO(), "JPEG")
            blobs.append(buffer.getvalue())
            found.append(np.asarray(Image.open(buffer)))
        np.savez(
            folder / f"images_{number}.npz",
            jpeg=np.frombuffer(b"".join(blobs), np.uint8),
            offsets=np.cumsum([0, *map(len, blobs)]),
            labels=np.arange(3, dtype=np.int32) + 3 * (number - 1),
        )
    return folder, checksums(folder, "sha256"), np.stack(found)


def test_even_labels_of_the_sample_calibrate_and_odd_ones_judge_on_the_middle_pixels(fake_sample):
    folder, files, images = fake_sample
    data = imagenet_sample(folder.parent, files=files)
    assert data.labels.tolist() == [0, 2, 4] and data.eval_labels.tolist() == [1, 3, 5]
    np.testing.assert_array_equal(data.images, images[::2, 14:241, 14:241])
    np.testing.assert_array_equal(data.eval_images, images[1::2, 14:241, 14:241])


def test_cifar10_files_decode_to_the_images_that_were_written(fake_cifar10):
    folder, files, images = fake_cifar10
    for _ in range(2):  # The second time from the cache.
        data = cifar10(folder.parent, files=files)
        train = np.concatenate([images["cifar10_train_1"], images["cifar10_train_2"]])
        np.testing.assert_array_equal(data.images, train)
        np.testing.assert_array_equal(data.eval_images, images["cifar10_test"])
        assert data.labels.tolist() == [*range(6), *range(6)]
        assert data.labels.dtype == data.eval_labels.dtype == np.int32


def test_fashion_mnist_files_decode_to_the_images_that_were_written(fake_fashion):
    folder, files, arrays = fake_fashion
    data = fashion_mnist(folder.parent, files=files)
    np.testing.assert_array_equal(data.images[..., 0], arrays["train"])
    np.testing.assert_array_equal(data.eval_images[..., 0], arrays["t10k"])
    assert data.eval_labels.tolist() == [0, 1, 2]


def test_only_the_files_of_the_wanted_splits_are_read(fake_cifar10, fake_fashion):
    folder, files, _ = fake_cifar10
    (folder / "cifar10_train_1.npz").unlink()
    data = cifar10(folder.parent, splits=["test"], files=files)
    assert data.images.shape == (0, 32, 32, 3) and len(data.eval_labels) == 6
    folder, files, _ = fake_fashion
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    data = fashion_mnist(folder.parent, splits=["train"], files=files)
    assert data.eval_images.shape == (0, 28, 28, 1) and len(data.labels) == 5


@pytest.mark.parametrize("source", [cifar10, fashion_mnist])
def test_missing_and_damaged_files_are_named_with_what_was_expected(
    fake_cifar10, fake_fashion, source
):
    folder, files, _ = fake_cifar10 if source is cifar10 else fake_fashion
    victim = "cifar10_test.npz" if source is cifar10 else "t10k-labels-idx1-ubyte.gz"
    path, expected = folder / victim, files[victim]
    content = path.read_bytes()

    path.write_bytes(content[:-1])
    with pytest.raises(
        ValueError,
        match=f"{victim} is damaged: expected {expected.size} bytes, "
        f"found {expected.size - 1}; .* again from",
    ):
        source(folder.parent, files=files)

    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    message = (
        f"{victim} is damaged: expected {expected.algorithm} {expected.digest}, found [0-9a-f]+;"
    )
    with pytest.raises(ValueError, match=message):
        source(folder.parent, files=files)

    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{victim} is missing; .* again from"):
        source(folder.parent, files=files)


def test_the_folder_comes_from_the_argument_else_from_the_environment(fake_fashion, monkeypatch):
    folder, files, _ = fake_fashion
    monkeypatch.delenv("BITJAX_DATA", raising=False)
    with pytest.raises(ValueError, match="BITJAX_DATA is not set.*contains fashion_mnist/"):
        fashion_mnist(files=files)
    monkeypatch.setenv("BITJAX_DATA", str(folder.parent))
    assert len(fashion_mnist(files=files).labels) == 5
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        fashion_mnist("elsewhere", files=files)


def test_a_cached_array_is_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return np.arange(3)

    for _ in range(2):
        np.testing.assert_array_equal(cached("key", make, tmp_path), [0, 1, 2])
    assert len(made) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["key.npy"]


@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY\x01\x00"])
def test_a_cache_entry_that_cannot_be_read_is_made_again(tmp_path, content):
    (tmp_path / "key.npy").write_bytes(content)
    for _ in range(2):
        np.testing.assert_array_equal(cached("key", lambda: np.arange(3), tmp_path), [0, 1, 2])
    np.testing.assert_array_equal(np.load(tmp_path / "key.npy"), [0, 1, 2])


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    occupied = tmp_path / "file"
    occupied.write_bytes(b"")
    np.testing.assert_array_equal(cached("key", lambda: np.arange(3), occupied), [0, 1, 2])


def test_a_cache_entry_of_another_shape_is_not_believed(fake_cifar10):
    folder, files, images = fake_cifar10
    digest = files["cifar10_test.npz"].digest
    cached(f"cifar10-{digest}", lambda: np.zeros((2, 2)))
    data = cifar10(folder.parent, splits=["test"], files=files)
    np.testing.assert_array_equal(data.eval_images, images["cifar10_test"])


def test_the_real_test_files_have_the_published_counts(data_root):
    for name, size in (("cifar10", 32), ("fashion_mnist", 28)):
        data = load(name, root=data_root, train=False)
        assert data.eval_images.shape[:3] == (10_000, size, size)
        assert np.bincount(data.eval_labels).tolist() == [1000] * 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_the_real_training_statistics_are_the_constants(data_root, name):
    data = load(name, root=data_root)
    values = data.images.reshape(-1, data.images.shape[-1])
    assert data.mean == pytest.approx(values.mean(0) / 255, abs=1e-5)
    assert data.std == pytest.approx(values.std(0) / 255, abs=1e-5)
    assert len(set(np.bincount(data.labels))) == 1


@pytest.mark.slow
def test_the_real_sample_has_one_image_of_each_class(data_root):
    data = load("imagenet_sample", root=data_root)
    assert sorted([*data.labels, *data.eval_labels]) == list(range(1000))
    assert data.image_shape == (227, 227, 3)


def test_the_checksum_tables_name_every_file():
    tables = (CIFAR10_FILES, FASHION_MNIST_FILES, IMAGENET_SAMPLE_FILES)
    assert [len(table) for table in tables] == [6, 4, 2]
    assert all(os.path.basename(name) == name for table in tables for name in table)
