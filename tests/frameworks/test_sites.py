"""What every layer weighs, against counts by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from bitjax import Quantized, rule, uniform
from bitjax.costs.measures import activation_bytes, bops, macs
from bitjax.costs.sizes import cache_bytes
from bitjax.frameworks.codes import codes_of
from bitjax.frameworks.costs import costs_with, site_costs, total_macs
from bitjax.models import GPT2, CifarResNet, Llama


def zeros(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


# (layer, shape of the input, MACs per example, elements of the kernel, of the input, filters)
LAYERS = {
    "dense": (nn.Dense(4), (2, 3), 12, 12, 3, 4),
    "dense on a sequence": (nn.Dense(4), (2, 7, 3), 7 * 12, 12, 21, 4),
    "dense_general": (nn.DenseGeneral((2, 5)), (2, 3), 30, 30, 3, 10),
    "dense_general over two axes": (nn.DenseGeneral(4, axis=(-2, -1)), (2, 3, 5), 60, 60, 15, 4),
    "conv": (nn.Conv(8, (3, 3)), (2, 6, 6, 4), 36 * 9 * 4 * 8, 9 * 4 * 8, 144, 8),
    "conv, strided": (nn.Conv(8, (3, 3), (2, 2)), (2, 6, 6, 4), 9 * 9 * 32, 288, 144, 8),
    "conv, dilated": (
        nn.Conv(8, (3, 3), kernel_dilation=2, padding="VALID"),
        (2, 6, 6, 4), 4 * 9 * 32, 288, 144, 8,
    ),
    "conv, grouped": (
        nn.Conv(8, (3, 3), feature_group_count=2), (2, 6, 6, 4), 36 * 9 * 2 * 8, 9 * 2 * 8, 144, 8
    ),
    "conv, depthwise": (
        nn.Conv(4, (3, 3), feature_group_count=4), (2, 6, 6, 4), 36 * 9 * 4, 9 * 4, 144, 4
    ),
    "conv_transpose": (
        nn.ConvTranspose(8, (3, 3), (2, 2)), (2, 5, 5, 4), 25 * 9 * 32, 288, 100, 8
    ),
    "conv_transpose, valid": (
        nn.ConvTranspose(8, (3, 3), (2, 2), padding="VALID"), (2, 5, 5, 4), 25 * 9 * 32, 288, 100, 8
    ),
    "conv_transpose, transposed kernel": (
        nn.ConvTranspose(8, (2, 2), (2, 2), padding="VALID", transpose_kernel=True),
        (2, 5, 5, 4), 25 * 4 * 32, 128, 100, 8,
    ),
    # Its input is the patches, 4 of 3 * 4 elements, and every place has filters of its own.
    "conv_local": (nn.ConvLocal(8, (3,), padding="VALID"), (2, 6, 4), 4 * 96, 4 * 96, 48, 4 * 8),
    "einsum": (nn.Einsum((3, 2, 5), "abc,cde->abde"), (2, 7, 3), 7 * 30, 30, 21, 10),
    "einsum with a kernel's own axis": (
        nn.Einsum((7, 3, 5), "bti,tio->bto", use_bias=False), (2, 7, 3), 7 * 15, 105, 21, 35
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_weighs_what_is_counted_by_hand(name):
    layer, shape, count, kernel, given, filters = LAYERS[name]
    costs = site_costs(layer, zeros(*shape))
    assert set(costs) == {"kernel", "input"}
    assert costs["kernel"].macs == costs["input"].macs == count
    assert (costs["kernel"].elements, costs["input"].elements) == (kernel, given)
    assert costs["kernel"].filters == filters
    if name != "conv_local":  # which is computed as one large product of zeros
        assert total_macs(layer, zeros(*shape)) == count


def test_resnet20_has_the_published_number_of_multiply_adds():
    """40.55 million: He et al. 2015 for CIFAR, as every later table counts it."""
    model = CifarResNet(depth=20)
    costs = site_costs(model, zeros(4, 32, 32, 3))
    assert macs(costs) == total_macs(model, zeros(4, 32, 32, 3))
    assert macs(costs) == pytest.approx(40.55e6, rel=5e-3)
    assert sum(c.elements for c in costs.values() if c.role == "kernel") == 268_336
    layers = list(dict.fromkeys(cost.layer for cost in costs.values()))
    assert (layers[0], layers[-1], len(layers)) == ("stem", "head", 20)


def test_a_wrapped_model_weighs_what_the_float_one_does():
    model, x = CifarResNet(depth=8, width=4), zeros(2, 8, 8, 3)
    wrapped = Quantized(model, [rule("stem/.*", None), rule(".*", uniform(4))])
    assert site_costs(wrapped, x) == site_costs(model, x)
    assert site_costs(model, x, train=True) == site_costs(model, x)


def test_attention_is_its_projections_and_two_products_of_activations():
    batch, length, features, heads = 2, 7, 12, 3
    model = nn.MultiHeadDotProductAttention(heads, qkv_features=features)
    x = zeros(batch, length, features)
    costs = site_costs(model, x)
    kernels = [cost.macs for cost in costs.values() if cost.role == "kernel"]
    assert sum(kernels) == 4 * length * features**2
    # QK^T and the weighted sum of V: a sum over the features for each pair of positions.
    for name in ("product0", "product1"):
        left, right = (costs[f"{name}/{role}"] for role in ("left", "right"))
        assert left.macs == right.macs == length**2 * features
    assert total_macs(model, x) == macs(costs) == sum(kernels) + 2 * length**2 * features


def test_a_tensor_read_by_several_layers_has_one_source():
    model = nn.MultiHeadDotProductAttention(2, qkv_features=4)
    costs = site_costs(model, zeros(1, 3, 4))
    assert {costs[f"{p}/input"].source for p in ("query", "key", "value")} == {"query/input"}
    assert costs["out/input"].source == "out/input"


def test_a_sum_computes_nothing_and_its_shortcut_is_the_array_that_the_next_layer_reads():
    model, x = CifarResNet(depth=8, width=4), zeros(2, 8, 8, 3)
    costs, plain = site_costs(Quantized(model, sums=True), x), site_costs(model, x)
    added = {site: entry for site, entry in costs.items() if site not in plain}
    blocks = [f"stage{i}/block1" for i in (1, 2, 3)]
    assert [*added] == [f"{block}/sum0/{side}" for block in blocks for side in ("left", "right")]
    assert {entry.macs for entry in added.values()} == {0}
    assert macs(costs) == macs(plain) and bops({}, costs) == bops({}, plain)
    for block in blocks:
        assert added[f"{block}/sum0/right"].source == f"{block}/conv1/input"
    # The other addends, a convolution's output each, are stored beside what layers read.
    left = sum(entry.elements for site, entry in added.items() if site.endswith("left"))
    assert activation_bytes({}, costs) == activation_bytes({}, plain) + 4 * left


class Scanned(nn.Module):
    """Three layers of the same shape as one scan."""

    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "quant": 0, "quant_stats": 0}
        rngs = {"params": True}
        return nn.scan(Body, axes, split_rngs=rngs, length=3)(name="body")(x, None)[0]


class Body(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(5, name="dense")(x)), None


def test_a_scan_over_layers_is_one_site_that_counts_its_length():
    costs = site_costs(Scanned(), zeros(2, 5))
    kernel, given = costs["body/dense/kernel"], costs["body/dense/input"]
    assert (kernel.macs, kernel.elements, kernel.count) == (3 * 25, 3 * 25, 3)
    assert (given.elements, given.count) == (3 * 5, 3)
    assert total_macs(Scanned(), zeros(2, 5)) == 75


def test_a_scan_over_time_counts_its_kernel_once_and_its_multiply_adds_each_step():
    model, x = nn.RNN(nn.LSTMCell(4)), zeros(2, 5, 3)
    costs = site_costs(model, x)
    kernel, given = costs["cell/ii/kernel"], costs["cell/ii/input"]
    assert (kernel.macs, kernel.elements, kernel.count) == (5 * 12, 12, 1)
    assert given.elements == 5 * 3
    assert macs(costs) == total_macs(model, x) == 5 * 4 * (12 + 16)


class Stacked(nn.Module):
    shared: bool

    @nn.compact
    def __call__(self, x):
        axes = {"params": None if self.shared else 0}
        rngs = {"params": not self.shared}
        layers = nn.vmap(nn.Dense, axes, rngs, in_axes=0 if self.shared else None, axis_size=3)
        return layers(4, name="dense")(x)


def test_a_vmap_over_layers_counts_each_of_them():
    costs = site_costs(Stacked(shared=False), zeros(2, 5))
    kernel = costs["dense/kernel"]
    # One array with one quantizer: only a scan's steps have their own.
    assert (kernel.macs, kernel.elements, kernel.count) == (3 * 20, 3 * 20, 1)
    costs = site_costs(Stacked(shared=True), zeros(3, 2, 5))
    assert costs["dense/kernel"].macs * 3 == 3 * 2 * 20  # the vmapped axis is taken for the batch
    assert costs["dense/kernel"].elements == 20


class Twice(nn.Module):
    remat: bool = False

    def setup(self):
        self.dense = (nn.remat(nn.Dense) if self.remat else nn.Dense)(5)

    def __call__(self, x):
        return self.dense(self.dense(x))


@pytest.mark.parametrize("remat", [False, True])
def test_a_layer_called_twice_computes_twice_and_is_stored_once(remat):
    costs = site_costs(Twice(remat), zeros(2, 5))
    assert set(costs) == {"dense/kernel", "dense/input"}
    assert (costs["dense/kernel"].macs, costs["dense/kernel"].elements) == (2 * 25, 25)
    assert costs["dense/input"].elements == 5


class Tied(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 6, name="embed")
        return embed.attend(embed(tokens))


def test_a_lookup_computes_nothing_and_reading_it_backwards_is_a_product():
    tokens = jax.ShapeDtypeStruct((2, 3), jnp.int32)
    costs = site_costs(Tied(), tokens)
    assert set(costs) == {"embed/kernel", "embed/input"}
    assert (costs["embed/kernel"].macs, costs["embed/kernel"].elements) == (3 * 6 * 11, 66)
    assert costs["embed/kernel"].filters == 11
    lookup = site_costs(nn.Embed(11, 6), tokens)
    assert lookup["kernel"].macs == 0


def test_a_look_up_and_a_tied_head_read_one_quantized_table_and_both_move_it():
    model = Quantized(Tied(), [rule("embed/kernel", uniform(3, granularity="per_channel"))])
    tokens = jnp.array([[1, 4, 4]])
    variables = model.init(jax.random.key(0), tokens)
    table = variables["params"]["embed"]["embedding"]

    def slope(found):
        return jax.grad(lambda table: jnp.sum(jnp.sin(found(table))))(table)

    def ours(table):
        return model.apply({**variables, "params": {"embed": {"embedding": table}}}, tokens)

    scale = jnp.max(jnp.abs(table), axis=1, keepdims=True)
    levels = codes_of(model, variables, tokens)["embed/kernel"].levels
    assert levels.shape == table.shape and jnp.max(jnp.abs(levels - table) / scale) < 0.5

    def by_hand(table):
        table = table + jax.lax.stop_gradient(levels - table)
        return table[tokens] @ table.T

    assert jnp.allclose(ours(table), by_hand(table), atol=1e-5)
    found, expected = slope(ours), slope(by_hand)
    inside = found != 0  # what a range cuts off has no gradient
    assert jnp.mean(inside) > 0.5
    assert jnp.allclose(found, jnp.where(inside, expected, 0.0), atol=1e-5)


DECODERS = {
    "llama": Llama(vocab_size=11, width=12, layers=1, heads=6, kv_heads=2, hidden=10, context=9),
    "gpt2": GPT2(vocab_size=11, width=12, layers=1, heads=3, context=9),
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_has_the_same_sites_with_its_cache_and_without(name):
    model, tokens = DECODERS[name], jax.ShapeDtypeStruct((2, 7), jnp.int32)
    costs = site_costs(model, tokens)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.ones((2, 9), int), decode=True)
    )
    one = jax.ShapeDtypeStruct((2, 1), jnp.int32)
    step = costs_with(model, variables, (one,), {"decode": True})
    assert list(step) == list(costs)
    assert ("positions/kernel" in costs) is (name == "gpt2")
    assert macs(costs) == total_macs(model, tokens)


def test_a_decoders_cache_grows_by_its_keys_and_values_in_every_layer():
    costs = site_costs(DECODERS["llama"], jax.ShapeDtypeStruct((2, 7), jnp.int32))
    caches = {site: cost for site, cost in costs.items() if cost.role == "cache"}
    names = ("key_cache", "value_cache")
    assert list(caches) == [f"layers_0/attention/{name}" for name in names]
    assert {(c.elements, c.filters) for c in caches.values()} == {(7 * 2 * 2, 2 * 2)}
    assert cache_bytes({}, costs) == 2 * 4 * 4
    # Keys are turned behind the cache, so that what queries meet is another tensor.
    values = "layers_0/attention/value_cache"
    assert (caches[values].macs, costs["layers_0/attention/product1/right"].partner) == (
        588,
        values,
    )


def test_without_a_batch_axis_it_is_an_error_that_says_so():
    for args in ((), (jnp.float32(1.0),), (zeros(0, 3),)):
        with pytest.raises(ValueError, match="needs an argument with a batch axis"):
            site_costs(nn.Dense(2), *args)
