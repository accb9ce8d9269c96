"""Measures the sites of a model and their costs on one traced forward pass."""

import math
from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from bitjax.costs.site import SiteCost
from bitjax.linen.quantized import Quantized
from bitjax.linen.visit import Layer, Tensors, Visitor, axes_of, macs_of
from bitjax.rules import ROLES
from bitjax.variables import read_site


class _Measure(Visitor):
    """Tags every layer's call in the traced program and keeps its cost."""

    def __init__(self):
        self.calls: list[tuple[Layer, dict[str, int], int, dict[str, int]]] = []
        self.kept: list[Tensors] = []  # so that no id is used twice

    def tensors(self, layer: Layer, tensors: Tensors) -> Tensors:
        self.kept.append(tensors)
        index = len(self.calls)
        self.calls.append((layer, {r: x.size for r, x in tensors.items()}, 0, {}))
        # A tag's place in the program tells how often a scanned body runs, and its shape whether a
        # vmap stacked it.
        return {r: checkpoint_name(x, f"bitjax/{index}/{r}") for r, x in tensors.items()}

    def output(self, layer: Layer, tensors: Tensors, out: Any) -> None:
        # A nested layer finishes first; this one is the last unfinished call of its name.
        for i in range(len(self.calls) - 1, -1, -1):
            called, sizes, macs, ids = self.calls[i]
            if called.name == layer.name and not ids:
                ids = {role: id(x) for role, x in self.kept[i].items()}
                macs = macs_of(called, tensors, out)
                filters = _filters(called, tensors["kernel"])
                self.calls[i] = (called, {**sizes, "filters": filters}, macs, ids)
                return


def _filters(layer, kernel):
    channels = axes_of(layer.module, "kernel", kernel.ndim).channel
    return math.prod(kernel.shape[axis] for axis in channels)


def _occurrences(jaxpr, times, counts):
    """Adds, for every tag in a program, (how often it runs, its size) to `counts[call][role]`."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "name" and str(eqn.params["name"]).startswith("bitjax/"):
            _, index, role = eqn.params["name"].split("/")
            tags = counts.setdefault(int(index), {}).setdefault(role, [])
            tags.append((times, eqn.outvars[0].aval.size))
        for often, sub in _inside(eqn):
            _occurrences(sub, times * often, counts)


def _inside(eqn):
    """The programs inside an operation, and how often each of them runs."""
    often = eqn.params["length"] if eqn.primitive.name == "scan" else 1
    for value in eqn.params.values():
        for sub in value if isinstance(value, tuple | list) else (value,):
            sub = getattr(sub, "jaxpr", sub)
            if hasattr(sub, "eqns"):
                yield often, sub


def site_costs(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, SiteCost]:
    """Measures every quantizable site of a model by tracing one forward pass; computes nothing.

    A layer that is called several times counts its MACs each time, and a scanned body as often as
    it runs. Zeros of padding count.

    Args:
      model: a Linen module, wrapped in `Quantized` or not; the costs are the same.
      *args: positional arguments of the model; the first array's leading axis is the batch.
      **kwargs: keyword arguments of the model.

    Returns:
      `{site: SiteCost}` in the order of the forward pass, kernels and inputs alike, whatever the
      rules.

    Raises:
      ValueError: the first argument is not an array with a batch axis.

    Example:
      >>> import jax.numpy as jnp
      >>> costs = site_costs(nn.Dense(4), jnp.ones((2, 3)))
      >>> costs["kernel"].macs, costs["kernel"].elements, costs["input"].elements
      (12, 12, 3)
    """
    model = Quantized(model.model if isinstance(model, Quantized) else model, ())
    batch = getattr(args[0], "shape", ())[:1] if args else ()
    if not batch or batch[0] == 0:
        raise ValueError("site_costs needs a first argument with a batch axis of 1 or more.")
    visitor = _Measure()
    key = jax.random.key(0)

    def init(args):
        return model.init({"params": key, "dropout": key}, *args, **kwargs)

    variables = jax.eval_shape(init, args)

    def forward(variables, args):
        out, _ = model.apply(
            variables, visitor, args, kwargs, method="observe", mutable=True,
            rngs={"dropout": key},
        )  # fmt: skip
        return out

    program = jax.make_jaxpr(forward)(variables, args)
    counts: dict[int, dict[str, list[tuple[int, int]]]] = {}
    _occurrences(program.jaxpr, 1, counts)
    return _merge(visitor, counts, batch[0], variables["params"])


def _merge(visitor, counts, batch, params):
    found: dict[str, SiteCost] = {}
    readers: dict[int, str] = {}
    for index, (layer, sizes, macs, ids) in enumerate(visitor.calls):
        times = _times(counts.get(index, {}), {role: sizes[role] for role in ids})
        held = _kernel_size(params, layer.name) or sizes["kernel"]
        for role in ROLES:
            if role not in ids or (role == "input" and layer.method == "attend"):
                continue
            site = layer.site(role)
            before = found.get(site)
            source = readers.setdefault(ids[role], site) if role == "input" else site
            elements = held if role == "kernel" else sizes[role] * times // batch
            found[site] = SiteCost(
                macs=macs * times // batch + (before.macs if before else 0),
                elements=max(elements, before.elements if before else 0),
                filters=sizes["filters"],
                source=before.source if before else source,
                layer=layer.name,
                role=role,
                count=max(1, held // sizes["kernel"]),
            )
    return found


def _times(tags, sizes):
    """How often a call runs for one forward pass."""
    # A scan traces its body more than once, and only one trace becomes the program. The others
    # leave only tags of tensors that the scan does not change, such as a shared kernel.
    runs = min((sum(t for t, _ in tags.get(role, ())) for role in sizes), default=0)
    # A tag larger than the tensor that the layer saw was stacked by vmap.
    stacked = max((size // sizes[role] for role in tags for _, size in tags[role]), default=1)
    return runs * stacked


def _kernel_size(params, name):
    own = read_site(params, name, {})
    leaf = own.get("kernel", own.get("embedding"))
    return None if leaf is None else leaf.size


def total_macs(model: nn.Module, *args: Any, **kwargs: Any) -> int:
    """Multiply-adds per example of every product and convolution in the traced program.

    What exceeds `macs(site_costs(...))` is computed outside the sites: attention's own products,
    raw `x @ kernel`. `summary` says so.

    Args:
      model: a Linen module, wrapped in `Quantized` or not.
      *args: positional arguments of the model; the first array's leading axis is the batch.
      **kwargs: keyword arguments of the model.

    Returns:
      The multiply-adds of one example, a plain integer.

    Example:
      >>> import jax.numpy as jnp
      >>> total_macs(nn.Dense(4), jnp.ones((2, 3)))
      12
    """
    key = jax.random.key(0)
    variables = jax.eval_shape(lambda a: model.init(key, *a, **kwargs), args)

    def forward(variables, args):
        return model.apply(variables, *args, **kwargs, mutable=True, rngs={"dropout": key})

    program = jax.make_jaxpr(forward)(variables, args)
    return _program_macs(program.jaxpr) // args[0].shape[0]


def _program_macs(jaxpr):
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            lhs = eqn.invars[0].aval.shape
            total += eqn.outvars[0].aval.size * math.prod(lhs[axis] for axis in contract)
        elif eqn.primitive.name == "conv_general_dilated":
            lhs, kernel = (v.aval for v in eqn.invars)
            spec = eqn.params["dimension_numbers"]
            if max(eqn.params["lhs_dilation"]) > 1:  # a transposed convolution spreads its input
                total += lhs.size // lhs.shape[spec.lhs_spec[1]] * kernel.size
            else:
                total += eqn.outvars[0].aval.size * kernel.size // kernel.shape[spec.rhs_spec[0]]
        total += sum(often * _program_macs(sub) for often, sub in _inside(eqn))
    return total
