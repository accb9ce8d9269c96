"""A layer as the solver sees it: its matrix gives its output, its leaves take what was solved."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bitjax as bj
from bitjax.frameworks.leaves import read_leaf, write_leaf
from bitjax.frameworks.plain import Function
from bitjax.frameworks.probe import ask_outside, probe
from bitjax.program.layers import places_of, view_of
from bitjax.two_step.layer import layer_of

KEY = jax.random.key(0)


class Wrapped(nn.Module):
    layer: nn.Module

    def __call__(self, x):
        return self.layer(x)


LINEN = {
    "conv": (nn.Conv(6, (3, 3)), (2, 7, 6, 4)),
    "stride": (nn.Conv(6, (3, 2), strides=(2, 3), padding="VALID"), (2, 7, 9, 4)),
    "same, stride 2": (nn.Conv(6, (3, 3), strides=2), (2, 8, 7, 4)),
    "padding": (nn.Conv(6, (5, 3), padding=((2, 1), (0, 3))), (2, 7, 6, 4)),
    "circular": (nn.Conv(6, (3, 3), padding="CIRCULAR"), (2, 7, 6, 4)),
    "dilation": (nn.Conv(6, (3, 3), kernel_dilation=(2, 1)), (2, 9, 6, 4)),
    "groups": (nn.Conv(6, (3, 3), feature_group_count=2), (2, 7, 6, 4)),
    "depthwise": (nn.Conv(4, (3, 3), feature_group_count=4), (2, 7, 6, 4)),
    "one axis": (nn.Conv(6, (3,)), (2, 7, 4)),
    "more batch axes": (nn.Conv(6, (3, 3)), (2, 3, 5, 5, 4)),
    "computed again": (nn.remat(nn.Conv)(6, (3, 3)), (2, 5, 5, 4)),
    "dense": (nn.Dense(5), (4, 3)),
    "dense in bfloat16": (nn.Dense(5, dtype=jnp.bfloat16), (4, 3)),
    "dense of a sequence": (nn.Dense(5), (2, 7, 3)),
    "projection to heads": (nn.DenseGeneral((2, 5)), (2, 7, 3)),
    "projection from heads": (nn.DenseGeneral(6, axis=(-2, -1)), (2, 7, 2, 5)),
    "groups of a product": (nn.DenseGeneral(5, axis=-1, batch_dims=(0,)), (2, 4, 3)),
}


def conv(spec, strides):
    def function(params, x):
        p = params["layer"]
        out = lax.conv_general_dilated(x, p["w"], strides, "SAME", dimension_numbers=spec)
        bias = [1] * out.ndim
        bias[spec[2].index("C")] = -1
        return out + p["b"].reshape(bias)

    return function


def einsum(spec, bias=lambda b: b):
    return lambda p, x: jnp.einsum(spec, p["layer"]["w"], x) + bias(p["layer"]["b"])


# The function, the shapes of its kernel and of its bias, and that of its input.
PLAIN = {
    "NCHW": (conv(("NCHW", "OIHW", "NCHW"), (2, 1)), (6, 4, 3, 3), (6,), (2, 4, 6, 5)),
    "CWN": (conv(("CWN", "WIO", "NWC"), (2,)), (3, 4, 6), (6,), (4, 9, 2)),
    "kernel first": (einsum("oi,bi->bo"), (5, 3), (5,), (4, 3)),
    "filters inside": (einsum("oi,bit->bot", lambda b: b[:, None]), (5, 3), (5,), (4, 3, 7)),
    "two axes of filters": (einsum("ipq,bi->bqp"), (3, 2, 5), (5, 2), (4, 3)),
    "several inputs": (einsum("iop,bpi->bo"), (3, 5, 2), (5,), (4, 2, 3)),
    "groups": (einsum("gio,bgi->bgo"), (2, 3, 5), (2, 5), (4, 2, 3)),
    "groups turned": (einsum("gio,bgi->bog", lambda b: b.T), (2, 3, 5), (2, 5), (4, 2, 3)),
    "transposed": (lambda p, x: x @ p["layer"]["w"].T + p["layer"]["b"], (5, 3), (5,), (4, 3)),
    "mapped": (
        lambda p, x: jax.vmap(lambda x: p["layer"]["w"] @ x + p["layer"]["b"])(x),
        (5, 3), (5,), (4, 3),
    ),
}  # fmt: skip


def made(name):
    """A model with its variables and an input."""
    if name in LINEN:
        layer, shape = LINEN[name]
        model, x = Wrapped(layer), jax.random.normal(KEY, shape)
        variables = model.init(jax.random.key(1), x)
        bias = "params/layer/bias"
    else:
        function, kernel, bias, shape = PLAIN[name]
        params = {"w": jax.random.normal(jax.random.key(1), kernel), "b": jnp.zeros(bias)}
        model, x = Function(function), jax.random.normal(KEY, shape)
        variables, bias = {"params": {"layer": params}}, "params/layer/b"
    own = jax.random.normal(jax.random.key(2), read_leaf(variables, bias).shape)
    return model, write_leaf(variables, bias, own), x, bias


FAST = ("conv", "groups", "dense", "projection to heads", "computed again")


@pytest.mark.parametrize(
    "name", [*(n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in LINEN), *PLAIN]
)
def test_patches_times_the_matrix_plus_the_bias_are_the_outputs(name):
    model, variables, x, bias = made(name)
    layer = layer_of(model, variables, (x,), {}, "layer")
    _, asked = ask_outside(model, variables, (x,), {})
    (place,) = places_of(asked.call.program, "layer")

    def at_all_places(seen):
        view = view_of(place)
        places = jnp.arange(view.places(seen.out))
        return view.patches(seen.tensors["input"], places), view.outputs(seen.out, places)

    ((_, (patches, outputs)),) = probe(model, variables, (x,), {}, at_all_places).records
    kernel = read_leaf(variables, layer.path)
    product = jnp.einsum("gtn,gmn->gtm", patches, layer.view.matrix(kernel))
    assert layer.slot is not None and layer.slot.path == bias
    offset = np.asarray(read_leaf(variables, bias)).reshape(-1)[layer.slot.order_M]
    product += offset.reshape(product.shape[0], 1, product.shape[2])
    atol = 0.05 if "bfloat16" in name else 1e-5
    assert product.size == outputs.size and outputs.shape[1] > 1
    np.testing.assert_allclose(product, outputs.astype(jnp.float32), atol=atol)
    np.testing.assert_array_equal(layer.view.kernel(layer.view.matrix(kernel)), kernel)
    np.testing.assert_array_equal(layer.affine.gain_M, 1.0)


def normalised(params, state, x):
    """A convolution behind which its own channels are normalised, as frameworks write it."""
    out = lax.conv_general_dilated(
        x, params["conv"]["w"], (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")
    )
    scale = params["bn"]["gamma"] * lax.rsqrt(state["var"] + 1e-3)
    mean = params["bn"].get("mean", state.get("mean"))
    out = (out - mean[:, None, None]) * scale[:, None, None]
    return jax.nn.relu(out + params["bn"]["beta"][:, None, None])


def normalisation(mean_in):
    keys = jax.random.split(KEY, 6)
    params = {
        "conv": {"w": jax.random.normal(keys[0], (5, 3, 3, 3))},
        "bn": {"gamma": jax.random.normal(keys[1], (5,)), "beta": jax.random.normal(keys[2], (5,))},
    }
    state = {"var": jax.random.uniform(keys[3], (5,), minval=0.5)}
    (params["bn"] if mean_in == "params" else state)["mean"] = jax.random.normal(keys[4], (5,))
    return {"params": params}, state, jax.random.normal(keys[5], (4, 3, 6, 6))


@pytest.mark.parametrize("mean_in, leaf", [("params", "mean"), ("state", "beta")])
def test_an_intercept_goes_to_the_first_sum_behind_a_layer_that_is_a_variable(mean_in, leaf):
    variables, state, x = normalisation(mean_in)
    model = Function(normalised, neutral=(0,))
    layer = layer_of(model, variables, (state, x), {}, "conv")
    assert layer.slot is not None and layer.slot.path == f"params/bn/{leaf}"
    added = jnp.arange(5.0) - 2.0
    slot = layer.slot.written(read_leaf(variables, layer.slot.path), added)
    found = normalised(write_leaf(variables, layer.slot.path, slot)["params"], state, x)
    moved = {**variables["params"], "bn": {**variables["params"]["bn"]}}
    own = {**state, "mean": -added + (state if mean_in == "state" else moved["bn"])["mean"]}
    moved["bn"].pop("mean", None)
    np.testing.assert_allclose(found, normalised(moved, own, x), atol=1e-5)


def test_gains_and_offsets_are_those_of_the_normalisation_in_evaluation():
    variables, state, x = normalisation("params")
    found = layer_of(Function(normalised, neutral=(0,)), variables, (state, x), {}, "conv").affine
    bn = variables["params"]["bn"]
    gain = bn["gamma"] / np.sqrt(state["var"] + 1e-3)
    np.testing.assert_allclose(found.gain_M, gain, rtol=1e-6)
    np.testing.assert_allclose(found.offset_M, bn["beta"] - gain * bn["mean"], rtol=1e-5)


def test_behind_a_normalisation_by_the_data_there_is_no_map():
    model, x = nn.Sequential([nn.Dense(4), nn.LayerNorm()]), jnp.ones((2, 3))
    layer = layer_of(model, model.init(KEY, x), (x,), {}, "layers_0")
    assert layer.affine is None
    assert layer.slot is not None and layer.slot.path == "params/layers_0/bias"


def masked(p, x):
    return x @ (p["layer"]["w"] * jnp.tri(3)) + p["layer"]["b"]


def stepped(p, x):
    return lax.scan(lambda x, _: (jnp.tanh(x @ p["layer"]["w"]), None), x, length=2)[0]


def stacked(p, x):
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["layer"]["w"][None])[0]


REFUSED = {
    "a mask": (masked, "computes its kernel from its parameters"),
    "steps": (stepped, "is computed inside a scan"),
    "a stack": (stacked, "stands for the layers of a scan"),
    "both sides": (lambda p, x: x @ p["layer"]["w"] @ p["layer"]["w"].T, "in several ways"),
    "a position's bias": (
        lambda p, x: x @ p["layer"]["w"] + p["layer"]["b"][:, None],
        "no bias with one number per filter",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_whose_kernel_is_no_matrix_of_its_own_is_refused_by_name(name):
    function, why = REFUSED[name]
    params = {"layer": {"w": jnp.ones((3, 3)), "b": jnp.ones(3)}}
    with pytest.raises(ValueError, match=f"layer 'layer' .*{why}.* leave it out of `layers`"):
        layer_of(function, {"params": params}, (jnp.ones((3, 3)),), {}, "layer")


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.ConvTranspose(3, (3, 3), strides=(2, 2)), (1, 4, 4, 2)),
        (nn.Conv(3, (3, 3), padding=1, input_dilation=2), (1, 4, 4, 2)),
    ],
)
def test_a_layer_without_patches_is_refused_by_name(model, shape):
    model, x = Wrapped(model), jnp.ones(shape)
    with pytest.raises(ValueError, match=r"layer 'layer' .*leave it out of `layers`"):
        layer_of(model, model.init(KEY, x), (x,), {}, "layer")


def test_no_layer_of_that_name_is_refused():
    model, x = nn.Dense(2), jnp.ones((1, 3))
    with pytest.raises(ValueError, match="`layer` 'other' is no layer of the model"):
        layer_of(bj.Quantized(model), model.init(KEY, x), (x,), {}, "other")
