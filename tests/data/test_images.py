"""Crops: inside the image, of the areas and aspects asked for, and what Pillow makes of them."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bitjax.data.images import (
    AREA,
    ASPECT,
    WORDS,
    centre_crop,
    open_image,
    pixels,
    random_box,
    random_resized_crop,
)
from tests.data.sets import encoded, picture

sides = st.integers(1, 700)


def words(seed):
    return np.random.Philox(key=seed).random_raw(WORDS)


@given(sides, sides, st.integers(0, 2**64 - 1))
def test_a_random_part_lies_inside_the_image(width, height, seed):
    box = random_box(width, height, words(seed))
    assert box.width >= 1 and box.height >= 1
    assert 0 <= box.left <= width - box.width and 0 <= box.top <= height - box.height


@given(st.integers(200, 700), st.integers(200, 700), st.integers(0, 2**64 - 1))
def test_a_random_part_has_8_to_100_percent_of_the_area_and_an_aspect_of_3_4_to_4_3(
    width, height, seed
):
    box = random_box(width, height, words(seed))
    rounding = 1 / min(box.width, box.height)
    fraction = box.width * box.height / (width * height)
    aspect = box.width / box.height
    assert ASPECT[0] * (1 - rounding) <= aspect <= ASPECT[1] * (1 + rounding)
    if width / height <= 2.5 and height / width <= 2.5:  # else the centre part may be smaller
        assert AREA[0] * (1 - 2 * rounding) <= fraction <= 1


def test_areas_are_uniform_and_places_are_everywhere():
    boxes = [random_box(400, 400, words(seed)) for seed in range(4000)]
    fractions = np.array([box.width * box.height / 400**2 for box in boxes])
    # Small parts always fit, so below half of the image areas stay uniform.
    counts = np.histogram(fractions, bins=6, range=(0.08, 0.5))[0]
    assert counts.std() / counts.mean() < 0.1
    across = np.array([b.left / (400 - b.width) for b in boxes if b.width < 395])
    assert abs(across.mean() - 0.5) < 0.02 and across.min() < 0.01 and across.max() > 0.99
    aspects = np.log([b.width / b.height for b, f in zip(boxes, fractions, strict=True) if f < 0.5])
    assert abs(np.mean(aspects)) < 0.02


def test_an_image_too_thin_for_any_part_gives_its_centre():
    assert random_box(1000, 10, words(0)) == (493, 0, 13, 10)
    assert random_box(10, 1000, words(0)) == (0, 493, 10, 13)


def test_half_of_the_images_are_mirrored_and_a_whole_image_is_resized():
    array = picture(0, 64, 64)
    outputs = []
    for seed in range(40):
        flipped = words(seed)
        flipped[:4] = [2**64 - 1, 2**63, 0, 0]  # the whole area, aspect 1
        outputs.append(random_resized_crop(Image.fromarray(array), flipped, 64, 64, 3))
        mirrored = bool(int(words(seed)[-1]) >> 63)
        np.testing.assert_array_equal(outputs[-1], array[:, ::-1] if mirrored else array)
    assert 10 < sum(np.array_equal(output, array) for output in outputs) < 30


def test_a_random_part_without_resizing_is_a_slice_of_the_image():
    array = picture(1, 90, 80)
    for seed in range(20):
        box = random_box(80, 90, words(seed))
        output = random_resized_crop(Image.fromarray(array), words(seed), box.height, box.width, 3)
        part = array[box.top : box.top + box.height, box.left : box.left + box.width]
        flip = bool(int(words(seed)[-1]) >> 63)
        np.testing.assert_array_equal(output, part[:, ::-1] if flip else part)


def test_a_jpeg_decoded_small_looks_like_one_decoded_in_full():
    y, x = np.mgrid[:600, :800] / 100
    smooth = np.stack([np.sin(x) * 100 + 120, np.cos(y) * 100 + 120, x * 30], -1)
    content = encoded(smooth.astype(np.uint8), "JPEG", quality=95)
    used = []
    for seed in range(20):
        image = open_image(content)
        fast = random_resized_crop(image, words(seed), 64, 64, 3)
        used.append(image.size)
        full = open_image(content)
        full.load()
        slow = random_resized_crop(full, words(seed), 64, 64, 3)
        assert np.abs(fast.astype(int) - slow).mean() < 2
    assert (800, 600) not in used and len(set(used)) > 1


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (256, 256), (30, 1000)])
def test_the_centre_crop_is_that_of_the_resized_image(height, width):
    array = picture(2, height, width)
    output = centre_crop(Image.fromarray(array), 256, 224, 224, 3)
    scale = 256 / min(height, width)
    size = (max(256, int(width * scale)), max(256, int(height * scale)))
    resized = np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BILINEAR))
    top, left = round((size[1] - 224) / 2), round((size[0] - 224) / 2)
    np.testing.assert_array_equal(output, resized[top : top + 224, left : left + 224])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_every_colour_space_are_converted(mode, channels):
    image = Image.fromarray(picture(3)).convert(mode)
    assert pixels(image, channels).shape == (6, 5, channels)
    assert pixels(image, channels).dtype == np.uint8


def test_images_of_16_bits_are_refused():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(buffer, "PNG")
    with pytest.raises(ValueError, match="expected 8 bits"):
        pixels(open_image(buffer.getvalue()), 1)
