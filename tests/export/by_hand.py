"""Deployed models that are written down, so that no test has to train, observe and deploy one."""

import functools
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import bitjax as bj
from bitjax.quantizers import deployed
from bitjax.quantizers.blocks import spread
from bitjax.variables import nest

RNG = np.random.default_rng


class Form(NamedTuple):
    """A deployed quantizer and what its leaves are made of."""

    bits: Any
    ends: str = "symmetric"
    coding: str = "offset"
    block: str = "tensor"  # or `channel`, `group`
    edges: bool = False
    table: bool = False


# (kernel, input) of each layer.
KINDS = {
    "plain": (Form(4), Form(4)),
    "channel": (Form(8, block="channel"), Form(4, "unsigned")),
    "mixed": (Form((2, 3, 4, 5), block="channel"), Form(3, "stored")),
    "group": (Form(4, block="group"), Form(8)),
    "narrow": (Form(3, "narrow"), Form(4, block="channel")),
    "signs": (Form(1, coding="signs"), Form(1, coding="signs")),
    "magnitude": (Form(4, coding="sign_magnitude"), Form(3, coding="sign_magnitude")),
    "edges": (Form(2, "stored"), Form(3, "unsigned", edges=True)),
    "table": (Form(2, table=True), Form(4)),
    "table_input": (Form(4), Form(3, table=True)),
    "wide": (Form(16), Form(12)),
}


def site_of(form: Form, shape: tuple[int, ...], seed: int, kernel: bool):
    """A quantizer and its leaves, and for a kernel a tensor that lies on its levels."""
    rng = RNG(seed)
    block = {
        "tensor": (),
        "channel": (1,) * (len(shape) - 1) + shape[-1:],
        "group": (*(1,) * (len(shape) - 2), shape[-2] // 2, shape[-1]),
    }[form.block]
    bits = np.asarray(form.bits, np.float32)
    bits = bits.reshape(block) if bits.ndim else bits
    count = 1 << int(bits.max())
    if form.table:
        levels = np.sort(rng.normal(size=(*block, count))).astype(np.float32)
        leaves = {"bits": bits, "levels": levels}
        if not kernel:
            leaves["edges"] = (levels[..., 1:] + levels[..., :-1]) / 2
        x = rng.choice(levels.ravel(), shape)
        return deployed.table(), leaves, x
    quantizer = deployed.affine(form.coding, form.ends)
    # So that the output of a layer is about as large as its input.
    reach = 3.0 / count / (np.sqrt(np.prod(shape[:-1])) if kernel else 1.0)
    leaves = {"bits": bits, "scale": rng.uniform(reach, 2 * reach, block).astype(np.float32)}
    if form.ends == "stored":
        leaves["first"] = np.full(block, -1, np.float32)
    if form.edges:
        steps = (np.arange(1, count) - 0.7) * leaves["scale"][..., None]
        leaves["edges"] = steps.astype(np.float32)
    scale, _, first, last = quantizer.numbers(leaves, {})
    first, last = (np.asarray(spread(a, shape)) for a in (first, last))
    whole = np.rint(rng.uniform(first, last, shape))
    whole = np.where(whole < 0, -1, 1) if form.coding == "signs" else whole
    return quantizer, leaves, (spread(scale, shape) * whole).astype(np.float32)


def by_hand(model: Any, forms: Any, x: Any, **kwargs: Any) -> bj.Deployed:
    """A deployed Linen model; `forms` are those of a layer's kernel and input, by its name."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x))
    floats = jax.tree.map(
        lambda a: RNG(a.size).uniform(0.1, 0.9, a.shape).astype(np.float32), shapes
    )
    rules, quant = [], {}
    for seed, (layer, (kernel, inputs)) in enumerate(forms.items()):
        own = shapes["params"]
        for part in layer.split("/"):
            own = own[part]
        found = site_of(kernel, own["kernel"].shape, seed, True)
        tensor = (1, *own["kernel"].shape[-2:-1])
        given = site_of(inputs, tensor if inputs.block == "channel" else (1, 2), seed + 50, False)
        for role, (quantizer, leaves, _) in (("kernel", found), ("input", given)):
            quant[f"{layer}/{role}"] = leaves
            rules.append(bj.rule(re.escape(f"{layer}/{role}"), quantizer))
        place = floats["params"]
        for part in layer.split("/"):
            place = place[part]
        place["kernel"] = found[2]
    net = bj.Quantized(model, rules, **kwargs)
    return bj.Deployed(net, {**floats, "quant": nest(quant)})


def all_layers(model: Any, x: Any, kernel: Form, inputs: Form) -> dict[str, tuple[Form, Form]]:
    """The same forms for every layer with a kernel."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x))["params"]
    paths = ("/".join(k.key for k in path) for path, _ in jax.tree.leaves_with_path(shapes))
    return {p.removesuffix("/kernel"): (kernel, inputs) for p in paths if p.endswith("/kernel")}


class Zoo(nn.Module):
    """A layer for every form: convolutions, a residual sum, pooling, and dense layers."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), strides=2, name="plain")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        x = x + nn.Conv(4, (3, 3), feature_group_count=2, name="channel")(x)
        x = nn.tanh(nn.max_pool(x, (2, 2), (1, 1)).mean(2).reshape(x.shape[0], -1))
        # Side by side: behind one another, layers of one or two bits would leave nothing to see.
        return jnp.concatenate([nn.Dense(4, name=name)(x) for name in list(KINDS)[2:]], axis=-1)


class Case(NamedTuple):
    deployed: bj.Deployed
    x: Any
    evaluate: Any  # compiled


@functools.cache
def zoo() -> Case:
    x = RNG(0).normal(size=(3, 6, 6, 2)).astype(np.float32)
    fixed = by_hand(Zoo(), KINDS, x)
    evaluate = jax.jit(fixed.model.apply)
    return Case(fixed, x, lambda x: np.asarray(evaluate(fixed.variables, x)))
