"""The nodes of a graph while it is made, and the arrays that they read."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bitjax.export.flat import Entry, Flat, Growth
from bitjax.export.fold import Constants
from bitjax.export.nodes import Node, Value


class Arrays:
    """Nodes and arrays; those of the program keep the numbers that they have in it."""

    def __init__(self, flat: Flat, growth: Growth, constants: Constants):
        self.flat, self.growth, self.constants = flat, growth, constants
        self.nodes: list[Node] = []
        self.values: dict[int, Value] = {}
        self.emitted: set[int] = set()  # constants that nodes make, as they grow
        self.reads: dict[int, None] = {}  # constants that nodes read
        self.shared: dict[Any, int] = {}  # results of nodes that are made once

    def value(self, number: int) -> Value:
        """An array's shape and dtype."""
        if number not in self.values:
            aval = self.flat.avals[number]
            growth = self.growth.axes.get(number, (0,) * len(aval.shape))
            self.values[number] = Value(tuple(aval.shape), aval.dtype, growth)
        return self.values[number]

    def new(self, like: Value, dtype: Any = None) -> int:
        """The number of a new array."""
        number = len(self.flat.avals)
        self.flat.avals.append(None)
        self.values[number] = like if dtype is None else like._replace(dtype=np.dtype(dtype))
        return number

    def is_constant(self, number: int) -> bool:
        """Whether no data and no node reaches an array."""
        return number in self.constants and number not in self.emitted

    def read(self, number: int) -> int:
        """An array for a node to read; a constant that is repeated is repeated by a node."""
        if not self.is_constant(number):
            return number
        entry = self.constants.entry(number)
        if entry is not None and (number in self.growth.axes or self._repeats(entry)):
            self.emitted.update(entry.outs)
            self.emit(entry)
            return number
        self.reads[number] = None
        self.value(number)
        return number

    def _repeats(self, entry: Entry) -> bool:
        if entry.eqn.primitive.name != "broadcast_in_dim":
            return False
        before, after = (math.prod(self.value(i).shape) for i in (entry.ins[0], entry.outs[0]))
        return after > before

    def emit(self, entry: Entry, ins: Sequence[int] | None = None) -> None:
        """A node that is an operation of the program."""
        ins = [self.read(i) for i in (entry.ins if ins is None else ins)]
        for number in entry.outs:
            self.value(number)
        name, params = entry.eqn.primitive.name, dict(entry.eqn.params)
        if name == "div" and (inverse := self._inverse(entry.ins[1])) is not None:
            # XLA multiplies by the reciprocal of a literal, and so do all readers.
            self.node("mul", [ins[0], inverse], entry.outs, {}, entry.name)
            return
        growth = self.growth.params.get(entry.outs[0], {})
        self.nodes.append(
            Node(name, tuple(ins), tuple(entry.outs), params, entry.name, growth, entry.eqn)
        )

    def node(self, op, ins, outs, params, name, growth=None) -> int:
        """A node of our own; gives its first result."""
        ins = tuple(self.read(i) for i in ins)
        self.nodes.append(Node(op, ins, tuple(outs), params, name, growth or {}))
        return outs[0]

    def _inverse(self, number: int) -> int | None:
        """The reciprocal of a literal that XLA multiplies by instead; None of other arrays."""
        if number not in self.constants.literals or self.value(number).dtype != np.float32:
            return None
        start = number
        while (entry := self.constants.entry(start)) is not None and self._repeats(entry):
            start = entry.ins[0]
        if self.value(start).shape:
            return None
        with np.errstate(divide="ignore", over="ignore"):
            one = np.float32(1) / np.asarray(self.constants.values([start])[start], np.float32)
        if not np.isfinite(one) or abs(one) < np.finfo(np.float32).tiny:
            return None
        made = self.new(Value((), np.dtype(np.float32), ()))
        self.constants.fixed[made] = one
        self.constants.literals.add(made)
        return made

    def cast(self, number: int, dtype: Any) -> int:
        """An array in another type, by one node for all who read it."""
        if self.value(number).dtype == dtype:
            return number
        key = "cast", number, np.dtype(dtype)
        if key not in self.shared:
            out = self.new(self.value(number), dtype)
            params = {"new_dtype": np.dtype(dtype), "weak_type": False, "sharding": None}
            self.shared[key] = self.node("convert_element_type", [number], [out], params, "")
        return self.shared[key]
