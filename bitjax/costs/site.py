"""The cost of one site: multiply-adds, elements, filters."""

from collections.abc import Mapping
from typing import NamedTuple


class SiteCost(NamedTuple):
    """What one site weighs.

    Attributes:
      macs: multiply-adds of the site's layer per example.
      elements: of the kernel; of the input per example.
      filters: output channels of the layer.
      source: the first site that reads the same tensor; tensors are stored once.
      layer: the site's layer.
      role: `kernel` or `input`.
      count: layers that the name stands for: the length of a scan over parameters, else 1.
    """

    macs: int
    elements: int
    filters: int
    source: str
    layer: str
    role: str
    count: int = 1


Costs = Mapping[str, SiteCost]
