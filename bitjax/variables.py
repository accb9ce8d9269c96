"""Nodes of nested dicts by a path such as `stage1/block1/conv1`."""

from collections.abc import Mapping
from typing import Any

QUANT, STATS = "quant", "quant_stats"


def read_site(tree: Mapping[str, Any], site: str) -> Any:
    """The node at a path; the tree itself at the empty one.

    Example:
      >>> read_site({"conv": {"kernel": 3}}, "conv/kernel")
      3
    """
    for name in site.split("/") if site else ():
        tree = tree[name]
    return tree


def write_site(tree: Mapping[str, Any], site: str, value: Any) -> Any:
    """A copy with the node at a path replaced.

    Example:
      >>> write_site({"conv": {"kernel": 3}}, "conv/kernel", 4)
      {'conv': {'kernel': 4}}
    """
    if not site:
        return value
    head, _, rest = site.partition("/")
    return {**tree, head: write_site(tree[head], rest, value)}
