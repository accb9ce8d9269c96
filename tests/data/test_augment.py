"""Augmentation moves pixels as a slow loop does, on the device and without a second compile."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.data import AUGMENTATIONS, crop_flip, normalize, shift

jitted_crop_flip = functools.partial(jax.jit, static_argnames=("pad", "flip"))(crop_flip)


def images(count=16, size=8, channels=3, dtype=np.uint8):
    shape = (count, size, size, channels)
    # No zeros: a black pixel can only have come in from outside.
    return np.random.default_rng(0).integers(1, 256, shape).astype(dtype)


def moved(image, down, right, mirrored):
    """The pixel at (r, c) of the result is the one at (r + down, c + right), or black."""
    height, width, _ = image.shape
    result = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            source = row + down, (width - 1 - column if mirrored else column) + right
            if 0 <= source[0] < height and 0 <= source[1] < width:
                result[row, column] = image[source]
    return result


def movement(before, after, pad, flips):
    """Which of all possible movements turns one image into the other; fails if none does."""
    for down in range(-pad, pad + 1):
        for right in range(-pad, pad + 1):
            for mirrored in flips:
                if np.array_equal(moved(before, down, right, mirrored), after):
                    return down, right, mirrored
    raise AssertionError("the image was not moved, it was changed")


@pytest.mark.parametrize(("pad", "flip"), [(2, True), (2, False), (0, True)])
def test_every_image_is_moved_by_at_most_pad_pixels_and_mirrored(pad, flip):
    before = images()
    after = np.asarray(jitted_crop_flip(jax.random.key(0), before, pad, flip))
    flips = (False, True) if flip else (False,)
    found = {movement(x, y, pad, flips) for x, y in zip(before, after, strict=True)}
    # Sixteen images drawn apart: not all of them move alike.
    assert len(found) > 1


def test_all_movements_are_equally_likely():
    before = images(count=1, size=4, channels=1)
    many = np.repeat(before, 9_000, axis=0)
    after = np.asarray(jitted_crop_flip(jax.random.key(0), many, pad=1))
    counts = collections.Counter(image.tobytes() for image in after)
    # 18 outcomes, 500 each; six standard deviations are 130.
    assert len(counts) == 18
    assert all(abs(count - 500) < 130 for count in counts.values())


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_augmentations_keep_shape_and_dtype_and_repeat_for_one_key(name, dtype):
    compilations = []

    @jax.jit
    def augment(key, x):
        compilations.append(name)
        return AUGMENTATIONS[name](key, x)

    x = jnp.asarray(images(dtype=dtype))
    once, again = augment(jax.random.key(3), x), augment(jax.random.key(3), x)
    other = augment(jax.random.key(4), x)
    assert (once.shape, once.dtype) == (x.shape, x.dtype)
    np.testing.assert_array_equal(once, again)
    assert np.array_equal(once, other) == (name in ("none", "random_resized_crop"))
    assert compilations == [name]


def test_no_augmentation_returns_the_images():
    x = jnp.asarray(images())
    np.testing.assert_array_equal(AUGMENTATIONS["none"](jax.random.key(0), x), x)


def test_shift_is_a_crop_without_flip():
    x, key = jnp.asarray(images()), jax.random.key(0)
    expected = jitted_crop_flip(key, x, pad=1, flip=False)
    np.testing.assert_array_equal(jax.jit(shift)(key, x), expected)


def test_images_need_four_axes_and_pad_a_sign():
    with pytest.raises(ValueError, match=r"`images` must be \[N, H, W, C\], got shape \(8, 8\)"):
        crop_flip(jax.random.key(0), jnp.zeros((8, 8)))
    with pytest.raises(ValueError, match="`pad` must be at least 0, got -1"):
        shift(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), pad=-1)


def test_normalized_values_are_float32_and_those_of_numpy():
    x, mean, std = images(), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    found = normalize(jnp.asarray(x), mean, std, 255.0)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, (x / 255 - mean) / std, rtol=1e-6, atol=1e-6)


def test_statistics_of_another_number_of_channels_are_refused():
    with pytest.raises(ValueError, match="`std` must have 3 numbers, one a channel"):
        normalize(jnp.zeros((1, 2, 2, 3)), (0.5,) * 3, (0.5,), 255.0)
