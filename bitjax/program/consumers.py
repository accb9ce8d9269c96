"""Finds what reads a layer's output: a normalisation, one quantizer alone, or a sum.

A layer whose output goes through a normalisation, a ReLU and perhaps a pooling into exactly one
quantizer need only be right behind that quantizer. A layer whose output is added to something must
be right itself. Two-step quantization (Wang et al., CVPR 2018) solves the two differently.
"""

from typing import Any, NamedTuple

import numpy as np

from bitjax.program.affine import AFFINE, Chain, chain_of
from bitjax.program.body import Body, Op, called
from bitjax.program.layers import Place
from bitjax.program.masks import is_zero
from bitjax.program.operands import kernels_of
from bitjax.program.program import Program

# Quantizing commutes with these operations. Max-pooling does because a quantizer never decreases;
# the others only move, repeat or cast elements.
_PASSING = {"reduce_window_max", "reshape", "convert_element_type", "transpose", "squeeze", "copy"}
_PASSING |= {"broadcast_in_dim", "name", "expand_dims", "sharding_constraint", "stop_gradient"}
_LAYOUT = {"reshape", "convert_element_type", "squeeze", "copy", "expand_dims"}


class Consumer(NamedTuple):
    """What reads a layer's output."""

    norm: str | None  # path of the normalisation that reads the output itself
    # the only input site that the output reaches; None if it reaches anything else
    site: str | None
    # whether all up to `site` or the sum, but for a ReLU, is an affine map of each channel
    affine: bool = True
    added: bool = False  # whether one sum with an array of its shape is all that reads it
    rectified: bool = False  # whether there is a ReLU on the way to `site`


NOTHING = Consumer(None, None)  # of a layer of which nothing is known


def consumers(program: Program) -> dict[str, Consumer]:
    """What reads every layer's output, `{layer: Consumer}`.

    Of a layer inside control flow only the normalisation is told, and of one that is called
    several times what holds of all calls.
    """
    found: dict[str, list[Consumer]] = {}
    for body in program.body.all():
        walk = _Walk(body)
        for op in body.ops:
            if op.product is not None and kernels_of(op):
                own = walk.consumer(op)
                if body is not program.body:
                    own = Consumer(own.norm, None, own.norm is None)
                found.setdefault(op.product.layer, []).append(own)
    return {layer: _of_all(calls) for layer, calls in found.items()}


def addend_of(program: Program, layer: str) -> int:
    """The number of the array that a layer's normalised output is added to."""
    walk = _Walk(program.body)
    found = [
        walk.addend(chain_of(Place(walk.body, op), walk.users).end)
        for op in walk.body.ops
        if op.product is not None and kernels_of(op) and op.product.layer == layer
    ]
    if len(found) != 1 or found[0] is None:
        raise ValueError(f"layer {layer!r} is not read by one sum alone.")
    return found[0]


def layers_behind(program: Program, number: int) -> set[str]:
    """The layers with kernels whose products an array of the outermost body depends on."""
    body = program.body
    found: set[str] = set()
    seen, waiting = set(), [number]
    while waiting:
        maker = body.makers.get(waiting.pop())
        if maker is None or id(maker) in seen:
            continue
        seen.add(id(maker))
        waiting += maker.ins
        if maker.product is not None and kernels_of(maker):
            found.add(maker.product.layer)
    return found


def _of_all(calls):
    if len(calls) == 1:
        return calls[0]
    one = calls[0]._replace(added=False)
    same = all(call._replace(added=False) == one for call in calls)
    return one if same else NOTHING


class _Walk:
    """Follows an array forwards through a body."""

    def __init__(self, body: Body):
        self.body, self.users = body, body.users()
        self.sites_at: dict[int, list[str]] = {}  # the input sites at each array
        for op in body.ops:
            # The addends of a sum are sites of no layer: what is added is a sum, see `addend`.
            for operand in _tensors(op):
                for number, site in operand.origins.items():
                    names = self.sites_at.setdefault(number, [])
                    if site.name not in names:
                        names.append(site.name)

    def consumer(self, op: Op) -> Consumer:
        """What reads the output of a product's layer."""
        assert op.product is not None
        chain = chain_of(Place(self.body, op), self.users)
        if not chain.links:
            norm = self._normalisation(op)
            if norm is not None:
                return Consumer(norm, None, affine=False)
        reached = self.sites(chain.end)
        only = next(iter(reached)) if len(reached) == 1 else None
        added = self.addend(chain.end) is not None
        rectified = only is not None and self.rectifies(chain.end)
        return Consumer(self._name(op, chain), only, True, added, rectified)

    def sites(self, number: int) -> set[str | None]:
        """The input sites that an array reaches; None among them where it reaches anything else."""
        found: set[str | None] = set(self.sites_at.get(number, ()))
        if number in self.body.outs:  # the caller reads it as it is
            found.add(None)
        for op in self.users.get(number, ()):
            if _passes(self.body, op):
                found |= self.sites(op.outs[0])
            elif not _reads_at_a_site(op, number):
                found.add(None)
        return found

    def rectifies(self, number: int) -> bool:
        """Whether a ReLU is on the way that `sites` follows."""
        passing = [op for op in self.users.get(number, ()) if _passes(self.body, op)]
        # What passes without being in the list is a ReLU, see `_passes`.
        moving = [op for op in passing if op.name in _PASSING]
        return len(moving) < len(passing) or any(self.rectifies(op.outs[0]) for op in moving)

    def addend(self, number: int) -> int | None:
        """The other array of the one sum that reads an array; None where other things do too."""
        users = self.users.get(number, ())
        if number in self.body.outs or self.sites_at.get(number) or len(users) != 1:
            return None
        (op,) = users
        others = [i for i in op.ins if i != number]  # x + x has no other array
        if op.name not in ("add", "add_any") or len(others) != 1:
            return None
        same = self.body.avals[others[0]].shape == self.body.avals[number].shape
        return others[0] if same else None

    # ---- normalisations -------------------------------------------------------------------------

    def _name(self, op: Op, chain: Chain) -> str | None:
        """The path of the module that an affine chain is, or of its parameters."""
        if not chain.links:
            return None
        return self._module(op, chain.links[0].op) or self._parent([k.number for k in chain.links])

    def _module(self, op: Op, reader: Op) -> str | None:
        """The module of an operation, if the layer is not in it."""
        assert op.product is not None
        scope = reader.module
        around = f"{op.product.scope}/".startswith(f"{scope}/") if scope else True
        return None if around else scope

    def _parent(self, numbers) -> str | None:
        """Where the first parameter lies that these arrays depend on."""
        for number in numbers:
            for leaf in self.body.kinds[number].leaves:
                return leaf.path.rpartition("/")[0] or None
        return None

    def _normalisation(self, op: Op) -> str | None:
        """The path of what divides the output by its own statistics, as a LayerNorm does."""
        assert op.product is not None
        own = {op.product.output}  # the output, cast or moved by what depends on no data
        summed: set[int] = set()  # what depends on a sum over its elements
        derived: set[int] = set(own)
        centred: Op | None = None
        for reader in self.body.ops:
            if reader.product is not None or not derived.intersection(reader.ins):
                continue
            data = [i for i in reader.ins if self.body.kinds[i].what == "data"]
            alone = len(data) == 1 and data[0] in own
            if alone and (reader.name in _LAYOUT or reader.name in AFFINE):
                own.update(reader.outs)
            if reader.name == "reduce_sum" or summed.intersection(reader.ins):
                summed.update(reader.outs)
            read_itself = own.intersection(reader.ins) and summed.intersection(reader.ins)
            if centred is None and read_itself and reader.name in ("sub", "mul", "div"):
                centred = reader
            elif centred is not None and reader.name in ("mul", "add"):
                found = self._module(op, centred)
                found = found or self._parent(i for i in reader.ins if i not in derived)
                if found:
                    return found
            derived.update(reader.outs)
        return None if centred is None else self._module(op, centred)


def _tensors(op: Op) -> list[Any]:
    """The operands of a product that hold data, where its sites may be targets."""
    if op.product is None or op.product.kind == "sum":
        return []
    return [o for o in op.product.operands.values() if o.role != "kernel"]


def _reads_at_a_site(op: Op, number: int) -> bool:
    """Whether an operation reads an array as a product whose site has been met on the way."""
    if op.product is None or op.product.kind == "sum":
        return False
    operands = op.product.operands
    return all(
        i in operands and operands[i].role != "kernel" for i, n in enumerate(op.ins) if n == number
    )


def _passes(body: Body, op: Op) -> bool:
    """Whether an operation is a ReLU, or one that quantizing commutes with."""
    if op.product is not None:  # a mark of a cache, where a quantizer is
        return False
    if op.name in _PASSING:
        return True
    if op.name == "max":
        return any(is_zero(body, i) for i in op.ins)
    return _all_pass(op.eqn)


def _all_pass(eqn):
    """Whether all that a call does passes: `jax.nn.relu` has a derivative of its own."""
    inner = called(eqn)
    inner = getattr(inner, "jaxpr", inner)
    if not hasattr(inner, "eqns") or len(inner.invars) != 1:
        return False
    return all(_eqn_passes(one) for one in inner.eqns)


def _eqn_passes(eqn):
    if eqn.primitive.name in _PASSING:
        return True
    if eqn.primitive.name == "max":
        return any(np.ndim(v := getattr(var, "val", 1)) == 0 and v == 0 for var in eqn.invars)
    return _all_pass(eqn)
