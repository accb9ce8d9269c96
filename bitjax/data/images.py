"""Turns an encoded image into pixels of one shape: decoding, centre crop, random-resized crop.

Pillow does the work, with its antialiased bilinear filter; it lets other threads run meanwhile.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bitjax.extras import extra

if TYPE_CHECKING:
    from PIL import Image

AREA = (0.08, 1.0)  # of a random crop, as a fraction of the image
ASPECT = (3 / 4, 4 / 3)  # of a random crop: width / height
_TRIES = 10
WORDS = 4 * _TRIES + 1  # random words that one random crop and flip take
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# What a file's name says is not asked. Pillow reads 43 formats, one of them (EPS) by running what
# is in the file.
MOST_PIXELS = 89_478_485  # Pillow's own bound
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


class _Box(NamedTuple):
    """A part of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int


def check_decoder(name: str) -> None:
    """Raises an ImportError that names the extra if a data set needs Pillow and it is missing."""
    with extra("data", name):
        import PIL.Image
    # Pillow warns at `MOST_PIXELS` and refuses twice as many. A small file can hold so many of one
    # colour that decoding it fills the memory, so its warning is an error, as its manual says.
    warnings.filterwarnings("error", category=PIL.Image.DecompressionBombWarning)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # It logs what it raises, too.


def open_image(content: bytes) -> Image.Image:
    """An image of which only the header has been read; a ValueError if pixels are not bytes."""
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise ValueError("it is empty")
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"it is none of {', '.join(_FORMATS)}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(f"it has more than {MOST_PIXELS} pixels") from None
    if image.mode.startswith(("I", "F")):  # Pillow would cut them off at 255.
        raise ValueError(f"pixels of mode {image.mode!r}, expected 8 bits")
    return image


def pixels(image: Image.Image, channels: int) -> np.ndarray:
    """The uint8 pixels [H, W, channels], converted where the file has another colour space."""
    array = np.asarray(_converted(image, channels))
    return array[..., None] if channels == 1 else array


def _converted(image: Image.Image, channels: int) -> Image.Image:
    mode = _MODES[channels]
    return image if image.mode == mode else image.convert(mode)


def centre_crop(
    image: Image.Image, shorter: int, height: int, width: int, channels: int
) -> np.ndarray:
    """Pixels [height, width, channels] at the centre, after resizing the shorter side."""
    # Krizhevsky et al., ImageNet Classification with Deep CNNs, 2012, section 2, with the single
    # centre crop of 224 out of 256 by which float networks are compared since.
    from PIL import Image

    image = _converted(image, channels)
    if image.width <= image.height:
        size = (shorter, max(shorter, int(shorter * image.height / image.width)))
    else:
        size = (max(shorter, int(shorter * image.width / image.height)), shorter)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return pixels(image.crop((left, top, left + width, top + height)), channels)


def random_box(width: int, height: int, words: np.ndarray) -> _Box:
    """A random part of an image, of 8 to 100 % of its area and an aspect ratio of 3/4 to 4/3."""
    # Szegedy et al., Going Deeper with Convolutions, 2015, section 6: ten draws of the area
    # (uniform) and the aspect (uniform in its logarithm). The first that fits is put anywhere in
    # the image. If none fits, it is the largest centre part of an allowed aspect.
    draws = (words >> np.uint64(11)) * 2.0**-53  # float64 in [0, 1)
    for area, aspect, across, down in draws[: 4 * _TRIES].reshape(_TRIES, 4).tolist():
        target = width * height * (AREA[0] + area * (AREA[1] - AREA[0]))
        low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
        ratio = math.exp(low + aspect * (high - low))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return _Box(int(across * (width - w + 1)), int(down * (height - h + 1)), w, h)
    w = min(width, max(1, round(height * ASPECT[1])))
    h = min(height, max(1, round(width / ASPECT[0])))
    return _Box((width - w) // 2, (height - h) // 2, w, h)


def random_resized_crop(
    image: Image.Image, words: np.ndarray, height: int, width: int, channels: int
) -> np.ndarray:
    """Pixels [height, width, channels] of a random part of an image, mirrored half the time."""
    from PIL import Image

    full = image.size
    box = random_box(*full, words)
    needed = (full[0] * width / box.width, full[1] * height / box.height)
    # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that has all the pixels needed: the
    # decoder leaves out the frequencies that resizing would remove.
    image.draft(None, (math.ceil(needed[0]), math.ceil(needed[1])))
    across, down = image.width / full[0], image.height / full[1]
    corners = (
        box.left * across,
        box.top * down,
        min(image.width, (box.left + box.width) * across),
        min(image.height, (box.top + box.height) * down),
    )
    image = _converted(image, channels)
    image = image.resize((width, height), Image.Resampling.BILINEAR, box=corners)
    if int(words[WORDS - 1]) >> 63:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return pixels(image, channels)
