"""A deployed model as a JAX program that holds integer kernels: the bits of its evaluation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bitjax.checks import checked
from bitjax.export.deploy import DEPLOYED, Deployed
from bitjax.export.graph import graph_of
from bitjax.export.nodes import (
    DEQUANTIZE,
    LOOKUP,
    QUANTIZE,
    Graph,
    Node,
    Ran,
    arrays_of,
    extra_examples,
    grown,
    sums_of,
    tensors_of,
)
from bitjax.program.body import Op
from bitjax.program.integers import sum_in_int32, sum_of_integers
from bitjax.quantizers import blocks, deployed

# Arrays of nodes that quantize; `bits` and names are for files.
_NUMBERS = ("rate", "first", "last", "scale", "edges", "levels")


class IntegerModel(NamedTuple):
    """A compiled program of the data; its kernels are integers.

    Attributes:
      graph: what it computes.
      held: its constants, which it takes as arguments, so that XLA computes as in evaluation.
      run: `(held, arrays) -> Ran`, compiled.
    """

    graph: Graph
    held: Any
    run: Callable[..., Ran]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output, of arguments as `integer_model` was given, of any batch."""
        return self.run(self.held, arrays_of(self.graph, args, kwargs), sites=False).out

    def sites(self, *args: Any, **kwargs: Any) -> Ran:
        """The output, and the integers and sums of all sites."""
        ran = self.run(self.held, arrays_of(self.graph, args, kwargs), sites=True)
        # A compiled program sorts the names; here they are in forward order.
        integers = {name: ran.integers[name] for name in tensors_of(self.graph)}
        return ran._replace(integers=integers, sums={n: ran.sums[n] for n in sums_of(self.graph)})


@checked(deployed=DEPLOYED)
def integer_model(deployed: Deployed, *args: Any, **kwargs: Any) -> IntegerModel:
    """A deployed model as a function of its data, which multiplies integers.

    Kernels are held as int8, int16 or int32. The output is that of the compiled evaluation,
    `jax.jit(model.apply)(variables, x)`, bit for bit; so are the integers of every site.

    Args:
      deployed: what `bitjax.deploy` gave.
      *args: positional arguments of the model; of a batch only the shapes count.
      **kwargs: keyword arguments of the model.

    Returns:
      A function of the same arguments, for any size of the batch; arguments that are no arrays may
      be left out. Its `sites` gives the integers too.

    Raises:
      ValueError: the model is not deployed; the call trains; or a quantized layer is called in
        control flow.

    Example:
      >>> import bitjax as bj, flax.linen as nn
      >>> model = bj.Quantized(nn.Dense(2), [bj.rule(".*", bj.lsq(bits=4))])
      >>> x = jnp.array([[1.0, -2.0, 4.0]])
      >>> fixed = bj.deploy(model, model.init(jax.random.key(0), x), x)
      >>> net = integer_model(fixed, x)
      >>> bool((net(x) == jax.jit(fixed.model.apply)(fixed.variables, x)).all())
      True
      >>> net.sites(x).integers
      {'input': Array([[ 2, -4,  7]], dtype=int32)}
    """
    graph = graph_of(deployed, *args, **kwargs)
    return IntegerModel(graph, held_by(graph), compiled(graph))


def held_by(graph: Graph) -> Any:
    """The constants of a graph that its program takes as arguments."""
    codes = {k.number: k for k in graph.kernels.values() if not k.whole and k.integers is not None}
    arrays = {
        i: jnp.asarray(x)
        for i, x in graph.constants.items()
        if i not in graph.literals and i not in codes
    }
    kernels = {  # of which a product reads levels
        i: (jnp.asarray(kernel.integers), jnp.asarray(kernel.scale))
        for i, kernel in codes.items()
        if i in graph.constants
    }
    numbers = {
        node.outs[0]: {k: jnp.asarray(node.params[k]) for k in _NUMBERS if _has(node, k)}
        for node in graph.nodes
        if node.op in (QUANTIZE, DEQUANTIZE, LOOKUP)
    }
    return arrays, kernels, numbers


def _has(node, name):
    return node.params.get(name) is not None


def compiled(graph: Graph) -> Callable[..., Ran]:
    """The program of a graph, `(held, arrays, sites=) -> Ran`."""

    def run(held: Any, arrays: Mapping[int, Any], sites: bool) -> Ran:
        return run_graph(graph, held, arrays, sites)

    return jax.jit(run, static_argnames="sites")


def run_graph(graph: Graph, held: Any, arrays: Mapping[int, Any], sites: bool = False) -> Ran:
    """The nodes of a graph, one after the other."""
    constants, kernels, numbers = held
    # Literals stay literals: XLA rounds a division by one in another way.
    literals = {i: graph.constants[i] for i in graph.literals}
    levels = {
        i: (blocks.spread(scale, x.shape) * x).astype(graph.values[i].dtype)
        for i, (x, scale) in kernels.items()
    }
    values: dict[int, Any] = {**literals, **constants, **levels, **arrays}
    extra = extra_examples(graph, arrays)
    for node in graph.nodes:
        given = [values[i] for i in node.ins]
        results = _compute(node, given, numbers.get(node.outs[0], {}), extra)
        values.update(zip(node.outs, results, strict=True))
    out = graph.out_tree.unflatten([jnp.asarray(values[i]) for i in graph.outputs])
    if not sites:
        return Ran(out, {}, {})
    tables = {node.outs[0] for node in graph.nodes if node.op == LOOKUP}
    integers = {
        name: values[i] if i in tables else values[i].astype(jnp.int32)
        for name, i in tensors_of(graph).items()
    }
    return Ran(out, integers, {name: values[i] for name, i in sums_of(graph).items()})


def _compute(node: Node, given: list[Any], numbers: Mapping[str, Any], extra: Any) -> Sequence[Any]:
    """The results of a node."""
    if node.op == QUANTIZE:
        return [_integers(given[0], node.params["coding"], **numbers)]
    if node.op == DEQUANTIZE:
        return [given[0] * blocks.spread(numbers["scale"], given[0].shape)]
    if node.op == LOOKUP:
        params = {name: numbers[name] for name in ("edges", "levels")}
        return [deployed.table().apply(params, {}, given[0])]
    if "accumulator" in node.params:
        return [_sum(node, given)]
    if node.eqn is None:
        assert node.op in ("mul", "convert_element_type")
        return [
            given[0] * given[1] if node.op == "mul" else given[0].astype(node.params["new_dtype"])
        ]
    eqn = node.eqn.replace(params=grown(node, extra)) if node.growth else node.eqn
    return Op(eqn, [], "", node.name)([jnp.asarray(x) for x in given])


def _integers(x, coding, rate, first, last, scale, edges=None):
    first, last, rate = (blocks.spread(a, x.shape) for a in (first, last, rate))
    if edges is not None:
        return first + deployed.edges_below(edges, x).astype(scale.dtype)
    if coding == "signs":
        return jnp.where(x >= 0, 1.0, -1.0).astype(scale.dtype)
    return jnp.clip(jnp.rint(x * rate), first, last).astype(scale.dtype)


def _sum(node: Node, given: list[Any]) -> Any:
    """A product of integers, exact where its accumulator says so."""
    left, right = (jnp.asarray(x).astype(jnp.float32) for x in given)
    params = {k: v for k, v in node.params.items() if k not in ("accumulator", "largest")}
    op = Op(node.eqn.replace(params=params), [], "", node.name)
    if node.params["accumulator"] == "rounded":
        return sum_of_integers(op, left, right, node.params["largest"])
    if node.params["accumulator"] == "int32":
        return sum_in_int32(op, left, right)
    return op([left, right])[0]
