"""Products of integers in a graph, and the scales behind them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.export.arrays import Arrays
from bitjax.export.flat import Entry
from bitjax.export.nodes import Node, Value
from bitjax.export.sites import Sites
from bitjax.program.integers import at_output, outside_the_sum, summed
from bitjax.program.run import CASTS, EXACT
from bitjax.program.values import Operand, Site
from bitjax.quantizers import blocks
from bitjax.variables import QUANT


class Products:
    """Makes the nodes of products."""

    def __init__(self, arrays: Arrays, sites: Sites):
        self.arrays, self.sites = arrays, sites
        self.whole: dict[int, str] = {}  # constants that are whole numbers, and their kernels
        # by product's result, the greatest integer of its first operand and the bound of its sums
        self.sums: dict[int, tuple[float, Callable]] = {}

    def is_quantized(self, entry: Entry) -> bool:
        """Whether an operation is a product with quantized sites."""
        operands = entry.product.operands.values() if entry.product is not None else ()
        return any(self.sites.quantizer(site) for o in operands for site in o.origins.values())

    def product(self, entry: Entry) -> None:
        """Makes the nodes of a product."""
        both = _operands(entry)
        if entry.eqn.primitive.name in EXACT and all(
            i in both and self._has_integers(both[i]) for i in (0, 1)
        ):
            self._product_of_integers(entry)
            return
        ins = list(entry.ins)
        for position, operand in entry.product.operands.items():
            local = {n: self.sites.levels(entry.numbers[n], s) for n, s in operand.origins.items()}
            ins[position] = self._moved(entry, position, local, casts=True)
        self.arrays.emit(entry._replace(name=entry.product.layer), ins)

    def _has_integers(self, operand: Operand) -> bool:
        quantizer = self.sites.quantizer(operand.site)
        if quantizer is None or quantizer.numbers is None or quantizer.integers is None:
            return False
        scale = quantizer.numbers(self.sites.quant[operand.site.name], {}).scale
        return len(operand.origins) == 1 and outside_the_sum(operand, scale.shape)

    def _product_of_integers(self, entry: Entry) -> None:
        ins = []
        operands = _operands(entry)
        for position in (0, 1):
            ((number, site),) = operands[position].origins.items()
            local = {number: self.sites.integers(entry.numbers[number], site)}
            moved = self._moved(entry, position, local, casts=False)
            if site.role == "kernel":
                self.whole[moved] = site.name
            ins.append(self.arrays.read(moved))
        layer, like = entry.product.layer, self.arrays.value(entry.outs[0])
        sums = self.arrays.new(like, np.float32)
        largest = [self._largest(operands[i].site) for i in (0, 1)]
        self.sums[sums] = largest[0], self._bound(entry, ins, largest)
        self.arrays.nodes.append(
            Node(entry.eqn.primitive.name, tuple(ins), (sums,), dict(entry.eqn.params), layer,
                 self.arrays.growth.params.get(entry.outs[0], {}), entry.eqn)
        )  # fmt: skip
        scale = self._scale(entry)
        if like.dtype == np.float32:
            self.arrays.node("mul", [sums, scale], entry.outs, {}, layer)
            return
        out = self.arrays.node("mul", [sums, scale], [self.arrays.new(like, np.float32)], {}, layer)
        params = {"new_dtype": like.dtype, "weak_type": False, "sharding": None}
        self.arrays.node("convert_element_type", [out], entry.outs, params, layer)

    def _bound(self, entry, ins, largest) -> Callable:
        """A function of constants: no partial sum of a product is larger."""
        shapes = [self.arrays.value(i).shape for i in ins]
        axes = [summed(entry.op, i) for i in (0, 1)]

        def bound(constants: Mapping[int, np.ndarray]) -> float:
            for i in (1, 0):
                if ins[i] in constants:
                    sizes = np.abs(constants[ins[i]].astype(np.float64)).sum(axis=axes[i])
                    return float(largest[1 - i] * sizes.max(initial=0.0))
            terms = math.prod(shapes[1][axis] for axis in axes[1])
            return float(largest[0] * largest[1] * terms)

        return bound

    def _largest(self, site: Site) -> float:
        quantizer = self.sites.quantizer(site)
        assert quantizer is not None and quantizer.numbers is not None
        _, _, first, last = quantizer.numbers(self.sites.quant[site.name], {})
        return max(float(jnp.max(-first)), float(jnp.max(last)))

    def _scale(self, entry: Entry) -> int:
        """The constant that makes a sum of integers one of levels, where it broadcasts."""
        parts, ins = [], []
        for position in (0, 1):
            operand = _operands(entry)[position]
            quantizer, others = self.sites.quantizer(operand.site), _others(operand)
            parts.append((position, operand, quantizer, len(others)))
            ins += [(QUANT, operand.site.name), *(entry.numbers[i] for i in others)]

        def scale(*given):
            given, found = list(given), []
            for position, operand, quantizer, count in parts:
                params, rest, given = given[0], given[1 : 1 + count], given[1 + count :]
                own = quantizer.numbers(params, {}).scale
                if own.size == 1:
                    found.append(own.reshape(()))
                    continue
                shape = operand.site.shape
                own = jnp.broadcast_to(blocks.spread(own, shape), shape)
                own = _replay(operand, entry.op.ins[position], own, rest)
                found.append(at_output(entry.op, position, own))
            return [found[0] * found[1]]

        shape = jax.eval_shape(lambda given: scale(*given), [self._given(i) for i in ins])[0].shape
        out = self.arrays.new(Value(tuple(shape), np.dtype(np.float32), (0,) * len(shape)))
        self.arrays.constants.add(scale, ins, [out])
        return out

    def _given(self, name):
        """A constant as a shape."""
        if name in self.arrays.constants.given and name not in self.arrays.values:
            return self.arrays.constants.given[name]
        value = self.arrays.value(name)
        return jax.ShapeDtypeStruct(value.shape, value.dtype)

    def _moved(self, entry: Entry, position: int, local: dict[int, int], *, casts: bool) -> int:
        """What a product reads at a position, of replaced origins."""
        operand, numbers = _operands(entry)[position], entry.numbers
        local = dict(local)
        if all(i in self.arrays.constants for i in local.values()) and operand.role == "kernel":
            return self._moved_kernel(entry, position, local, casts)
        for move in operand.moves:
            ins = [local.get(i, numbers[i]) for i in move.ins]
            if move.name in CASTS and not casts:
                local[move.outs[0]] = ins[0]
                continue
            outs = [
                self.arrays.new(self.arrays.value(numbers[i]), None if casts else np.float32)
                for i in move.outs
            ]
            growth = self.arrays.growth.params.get(numbers[move.outs[0]], {})
            read = tuple(self.arrays.read(i) for i in ins)
            self.arrays.nodes.append(
                Node(move.name, read, tuple(outs), dict(move.eqn.params), move.module, growth,
                     move.eqn)
            )  # fmt: skip
            local.update(zip(move.outs, outs, strict=True))
        return local.get(entry.op.ins[position], entry.ins[position])

    def _moved_kernel(self, entry, position, local, casts) -> int:
        operand, target = entry.product.operands[position], entry.op.ins[position]
        if target in local:
            return local[target]
        others = _others(operand)
        starts = list(local)

        def run(*given):
            origins = dict(zip(starts, given, strict=False))
            return [_replay(operand, target, origins, given[len(starts) :], casts=casts)]

        like = self.arrays.value(entry.numbers[target])
        out = self.arrays.new(like, None if casts else np.float32)
        self.arrays.constants.add(
            run, [*local.values(), *(entry.numbers[i] for i in others)], [out]
        )
        return out


def _operands(entry: Entry) -> dict[int, Operand]:
    """A product's operands, with those whose integers are where they enter a cache."""
    held = {i: operand for i, operand in entry.product.held.items() if operand.moves}
    return {**entry.product.operands, **held}


def _others(operand: Operand) -> list[int]:
    """What moves read beside the origins and what they make, by the numbers of the body."""
    made = {*operand.origins, *(i for move in operand.moves for i in move.outs)}
    return list(dict.fromkeys(i for m in operand.moves for i in m.ins if i not in made))


def _replay(
    operand: Operand, target: int, origins: Any, others: Sequence[Any], *, casts: bool = False
) -> Any:
    """What moves make of values; `origins` is one value, or one for each origin by number."""
    local = dict(zip(_others(operand), others, strict=True))
    local |= origins if isinstance(origins, dict) else dict.fromkeys(operand.origins, origins)
    for move in operand.moves:
        given = [jnp.asarray(local[i]) for i in move.ins]
        if not casts:
            floats = [jnp.issubdtype(x.dtype, jnp.floating) for x in given]
            given = [x.astype(jnp.float32) if f else x for x, f in zip(given, floats, strict=True)]
        moved = given[:1] if move.name in CASTS and not casts else move(given)
        local.update(zip(move.outs, moved, strict=True))
    return local[target]
