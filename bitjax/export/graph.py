"""Reads a deployed model's evaluation into a graph whose products multiply integers."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bitjax.checks import checked
from bitjax.export.arrays import Arrays
from bitjax.export.deploy import DEPLOYED, Deployed
from bitjax.export.flat import Flat, Growth, growth_of, longer
from bitjax.export.fold import Constants
from bitjax.export.nodes import Graph, Kernel, Node, Place, named
from bitjax.export.products import Products
from bitjax.export.sites import Sites
from bitjax.frameworks.probe import ask_outside
from bitjax.program.values import Site
from bitjax.quantizers.deployed import is_deployed
from bitjax.rules import quantizer_of
from bitjax.variables import QUANT, pick

_FLOAT, _INT = 2.0**24, 2.0**31  # whole numbers below have a float32, or an int32


@checked(deployed=DEPLOYED)
def graph_of(deployed: Deployed, *args: Any, **kwargs: Any) -> Graph:
    """The evaluation of a deployed model as a graph.

    Args:
      deployed: what `bitjax.deploy` gave.
      *args: positional arguments of the model; of a batch only the shapes count.
      **kwargs: keyword arguments of the model.

    Raises:
      ValueError: the call trains; or a quantized layer is called in control flow.

    Example:
      >>> import bitjax as bj, flax.linen as nn
      >>> model = bj.Quantized(nn.Dense(2), [bj.rule(".*", bj.lsq(bits=4))])
      >>> x = jax.numpy.ones((1, 3))
      >>> graph = graph_of(bj.deploy(model, model.init(jax.random.key(0), x), x), x)
      >>> [node.op for node in graph.nodes]
      ['quantize', 'dot_general', 'mul', 'add']
    """
    model, variables = deployed
    net, asked = ask_outside(model, variables, args, kwargs)
    if asked.train:
        raise ValueError("the graph is that of an evaluation: pass train=False.")
    program, arguments = asked.call.program, asked.call.arguments
    _check_deployed(net.rules, program.sites)
    flat = Flat(program.body, net.rules)
    growth = _growth(flat, model, variables, args, kwargs)
    variables_in = len(jax.tree.leaves(arguments[:2]))
    names = named(args, kwargs)
    inputs, given = {}, dict(zip(flat.ins, asked.call.leaves, strict=True))
    for number in flat.ins[variables_in:]:
        name = next((n for n, x in names.items() if x is given[number]), None)
        if name is not None:  # else a cache, which is a variable here
            inputs[number] = name
            del given[number]
    quant = pick(variables.get(QUANT, {}), program.sites)
    held: dict[Any, Any] = {**given, **{(QUANT, site): x for site, x in quant.items()}}
    arrays = Arrays(flat, growth, Constants(held, flat.fixed))
    made = Products(arrays, Sites(arrays, net.rules, quant))
    for entry in flat.entries:
        if made.is_quantized(entry):
            made.product(entry)
        elif all(arrays.is_constant(i) for i in entry.ins):
            arrays.constants.add_entry(entry)
        else:
            arrays.emit(entry)
    out, _ = asked.call.result(flat.outs)
    outputs, tree = jax.tree.flatten(out)
    return _finish(made, inputs, outputs, tree, program.sites)


def _check_deployed(rules, sites) -> None:
    for name in sites:
        quantizer = quantizer_of(rules, name)
        if quantizer is not None and not is_deployed(quantizer):
            raise ValueError(
                f"{name!r} is quantized by {quantizer.name!r}, whose numbers are not fixed: give "
                "what bitjax.deploy(model, variables, ...) returns."
            )


def _growth(flat, model, variables, args, kwargs) -> Growth:
    """How sizes grow with the batch, from a second trace."""
    arrays = [x for x in jax.tree.leaves((args, kwargs)) if getattr(x, "shape", ())]
    batch = arrays[0].shape[0] if arrays else None
    second = None
    if batch is not None:
        more, others = longer((args, kwargs), batch)
        try:
            net, asked = ask_outside(model, variables, more, others)
            second = Flat(asked.call.program.body, net.rules)
        except (TypeError, ValueError):
            second = None  # a model that is written for one batch
    return growth_of(flat, second, batch)


def _finish(made: Products, inputs, outputs, tree, sites: Mapping[str, Site]) -> Graph:
    """The graph of what the outputs need, with its constants computed."""
    arrays, found = made.arrays, made.sites
    outputs = tuple(arrays.read(i) for i in outputs)
    nodes = _needed(arrays.nodes, outputs)
    reads = {*outputs, *(i for node in nodes for i in node.ins)}
    wanted = [i for i in arrays.reads if i in reads]
    own = [i for names in found.kernels.values() for i in names.values()]
    computed = arrays.constants.values([*wanted, *own])
    constants = {i: computed[i] for i in wanted}
    for number in wanted:
        if number in made.whole:
            constants[number] = least(constants[number])
    nodes = [one for node in nodes for one in _summing(made, node, constants)]
    values = {i: arrays.value(i) for i in (*inputs, *constants)}
    values |= {i: arrays.value(i) for node in nodes for i in node.outs}
    values |= {i: values[i]._replace(dtype=constants[i].dtype) for i in constants}
    quantizers = {name: found.quantizer(site) for name, site in sites.items()}
    kernels = {
        name: _kernel(made, name, number, quantizers[name], computed, constants)
        for (name, number) in found.kernels
    }
    places = {}
    for name, site in sites.items():
        if name in kernels:
            number = kernels[name].number
            places[name] = Place(site.layer, site.role, (number,), (number,))
        elif name in found.places:
            tensors, results = zip(*found.places[name], strict=True)
            places[name] = Place(site.layer, site.role, tensors, results)
    literals = frozenset(i for i in constants if i in arrays.constants.literals)
    return Graph(
        tuple(nodes), inputs, outputs, constants, literals, values, places, kernels,
        arrays.growth.batch, tree,
    )  # fmt: skip


def _needed(nodes: list[Node], outputs) -> list[Node]:
    """The nodes that an output depends on."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.outs):
            needed.update(node.ins)
            kept.append(node)
    return kept[::-1]


def least(integers: np.ndarray) -> np.ndarray:
    """Whole numbers in the least type that holds them."""
    low, high = integers.min(initial=0), integers.max(initial=0)
    for dtype in (np.int8, np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return integers.astype(dtype)
    return integers


def _summing(made: Products, node: Node, constants) -> list[Node]:
    """A product of integers with the type that holds its sums; other nodes as they are."""
    if node.outs[0] not in made.sums:
        return [node]
    largest, bound = made.sums[node.outs[0]]
    most, dtype, arrays = bound(constants), np.dtype(np.float32), made.arrays
    kind = "float32" if most < _FLOAT else "int32" if most < _INT else "rounded"
    params = {**node.params, "accumulator": kind, "largest": largest}
    if kind != "int32":
        params["precision"] = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
        return [node._replace(params={**params, "preferred_element_type": dtype})]
    out = arrays.new(arrays.value(node.outs[0]), np.int32)
    product = node._replace(
        outs=(out,), params={**params, "preferred_element_type": np.dtype(np.int32)}
    )
    params = {"new_dtype": dtype, "weak_type": False, "sharding": None}
    return [product, Node("convert_element_type", (out,), node.outs, params, node.name)]


def _kernel(made: Products, name, number, quantizer: Any, computed, constants) -> Kernel:
    """What a file holds of a kernel."""
    own, params = made.sites.kernels[name, number], made.sites.quant[name]
    read = [i for i, site in made.whole.items() if site == name and i in constants]
    levels, codes = computed[own["levels"]], computed[own["codes"]]
    bits = np.asarray(params["bits"])
    place = read[0] if read else own["levels"]
    if "integers" not in own:
        table = np.asarray(params["levels"]) if "levels" in params else None
        return Kernel(place, False, codes, None, levels, bits, coding="table", table=table)
    told = quantizer.numbers(params, {})
    scale, first, last = (np.asarray(x) for x in (told.scale, told.first, told.last))
    integers = least(computed[own["integers"]])
    coding = quantizer.traits.coding
    return Kernel(place, bool(read), codes, integers, levels, bits, scale, first, last, coding)
