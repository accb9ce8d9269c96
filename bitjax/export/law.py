"""When two runtimes agree on an image: the same codes, or one that lay on a boundary.

Products of integers are exact everywhere. What is between them is float (scales, normalisation,
sums of branches), which runtimes add up in other orders. So a value that lies on the boundary of
two codes may get the other one, and from there on the image's codes differ.
"""

from typing import NamedTuple

import numpy as np

OUTPUTS = 1e-5  # of the spread of the outputs: what sums in another order may change
BOUNDARY = 1e-6  # of the boundary: how near a value lies whose code may be the other one
SAME = 0.95  # of the images have the same codes
TOP1 = 0.995  # of the images have the same top-1


class ImageDifferences(NamedTuple):
    """How a runtime parts from evaluation, by image.

    Attributes:
      codes: how many codes differ, [N].
      sums: how many sums of products of an image whose codes are equal differ, [N].
      margin: how far the values at the first site that differs lie from the boundary that parts
        the two codes, the largest of them, relative to the boundary, [N]; 0 where none differs.
      outputs: the largest difference of the outputs, relative to their spread, [N].
      own: where the outputs of evaluation are largest, [N, places]; a classifier has one place.
      other: those in the runtime.
    """

    codes: np.ndarray
    sums: np.ndarray
    margin: np.ndarray
    outputs: np.ndarray
    own: np.ndarray
    other: np.ndarray


class Verdict(NamedTuple):
    """What the law says of images.

    Attributes:
      same: how many have all codes equal, and outputs within 1e-5 of their spread.
      border: how many part at values that lie within 1e-6 of a boundary.
      broken: how many do neither.
      top1: the share that has the same top-1.
      holds: whether none is broken, 95 % are the same, and 99.5 % have the same top-1.
    """

    same: int
    border: int
    broken: int
    top1: float
    holds: bool


def judge(images: ImageDifferences) -> Verdict:
    """Judges each image, and all of them together.

    Example:
      >>> none, best = np.zeros(40), np.zeros((40, 1), int)
      >>> images = ImageDifferences(none.copy(), none, none.copy(), none, best, best)
      >>> judge(images)
      Verdict(same=40, border=0, broken=0, top1=1.0, holds=True)
      >>> images.codes[0], images.margin[0] = 12, 3e-7
      >>> judge(images).border, judge(images).holds
      (1, True)
      >>> images.margin[0] = 1e-3  # no rounding parts codes so far from a boundary
      >>> judge(images).holds
      False
    """
    equal = images.codes == 0
    same = equal & (images.sums == 0) & (images.outputs <= OUTPUTS)
    border = ~equal & (images.margin <= BOUNDARY)
    broken = int((~same & ~border).sum())
    count, top1 = len(equal), float(np.mean((images.own == images.other).all(1)))
    holds = broken == 0 and same.sum() >= SAME * count and top1 >= TOP1
    return Verdict(int(same.sum()), int(border.sum()), broken, top1, bool(holds))


def joined(parts: list[ImageDifferences]) -> ImageDifferences:
    """The images of several batches."""
    return ImageDifferences(*map(np.concatenate, zip(*parts, strict=True)))
