"""The cost of one site: multiply-adds, elements, filters."""

from collections.abc import Mapping
from typing import NamedTuple

from bitjax.checks import instance, mapping


class SiteCost(NamedTuple):
    """The cost of one site.

    Attributes:
      macs: multiply-adds of the site's layer per example.
      elements: elements of the kernel, or of one example's input.
      filters: output channels of the layer; of a cache the elements of one token.
      source: the first site that reads the same tensor; a tensor is stored once.
      layer: path of the site's layer.
      role: `kernel` or `input`; of a product of two activations `left` and `right`; `cache` of what
        enters one.
      count: number of layers with this name: the length of a scan over parameters, else 1.
      partner: the site of the cache that the layer multiplies this tensor by; else empty.
    """

    macs: int
    elements: int
    filters: int
    source: str
    layer: str
    role: str
    count: int = 1
    partner: str = ""


Costs = Mapping[str, SiteCost]
SITE_COSTS = mapping(instance(SiteCost))
