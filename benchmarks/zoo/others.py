"""NNX, Equinox, Haiku and plain functions."""

from importlib import metadata

import flax
import jax
import jax.numpy as jnp

from benchmarks.zoo.case import Builder, Case, normal, package, stir, tokens


def _flax() -> str:
    return f"flax {flax.__version__}"


def nnx_attention() -> Case:
    """Convolution, batch normalisation, attention, dropout, in evaluation."""
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.stem = nnx.Conv(3, 32, (4, 4), strides=4, rngs=rngs)
            self.norm = nnx.BatchNorm(32, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(
                num_heads=2, in_features=32, decode=False, rngs=rngs
            )
            self.dropout = nnx.Dropout(0.1, rngs=rngs)
            self.head = nnx.Linear(32, 10, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.stem(x)))
            x = x.reshape(x.shape[0], -1, x.shape[-1])
            x = x + self.dropout(self.attention(x))
            return self.head(x.mean(axis=1))

    return _nnx(Net(nnx.Rngs(0)), normal(2, 16, 16, 3))


def nnx_recurrent() -> Case:
    """An LSTM over time by nnx.RNN, on embedded tokens."""
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.embed = nnx.Embed(32, 16, rngs=rngs)
            self.rnn = nnx.RNN(nnx.LSTMCell(16, 16, rngs=rngs))
            self.head = nnx.Linear(16, 4, rngs=rngs)

        def __call__(self, x):
            return self.head(self.rnn(self.embed(x))[:, -1])

    return _nnx(Net(nnx.Rngs(0)), tokens(2, 7, 32))


def nnx_scan() -> Case:
    """Layers made by nnx.vmap and run by nnx.scan: stacked parameters."""
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.linear = nnx.Linear(16, 16, rngs=rngs)
            self.norm = nnx.LayerNorm(16, rngs=rngs)

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            @nnx.split_rngs(splits=3)
            @nnx.vmap(in_axes=(0,), out_axes=0)
            def blocks(rngs):
                return Block(rngs)

            self.blocks = blocks(rngs)
            self.head = nnx.Linear(16, 4, rngs=rngs)

        def __call__(self, x):
            @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            def run(x, block):
                return x + nnx.relu(block.linear(block.norm(x)))

            return self.head(run(x, self.blocks))

    return _nnx(Net(nnx.Rngs(0)), normal(2, 16))


def _nnx(model, x) -> Case:
    from flax import nnx

    model.eval()
    nnx.update(model, stir(nnx.state(model, nnx.Param)))
    return Case("nnx", model, None, (x,), source=_flax())


def equinox_mlp() -> Case:
    """Parameters are the module's arrays; the batch is a vmap."""
    eqx = package("equinox")
    return _equinox(eqx.nn.MLP(8, 4, 16, 2, key=jax.random.key(0)), normal(2, 8))


def equinox_conv() -> Case:
    """A small convolutional network, channels first, with a group norm."""
    eqx = package("equinox")
    nn, keys = eqx.nn, jax.random.split(jax.random.key(0), 3)
    layers = [
        nn.Conv2d(3, 16, 3, stride=2, padding=1, key=keys[0]), nn.GroupNorm(4, 16),
        nn.Lambda(jax.nn.relu), nn.Conv2d(16, 16, 3, padding=1, groups=2, key=keys[1]),
        nn.Lambda(jax.nn.relu), nn.AdaptiveAvgPool2d(1), nn.Lambda(jnp.ravel),
        nn.Linear(16, 4, key=keys[2]),
    ]  # fmt: skip
    return _equinox(nn.Sequential(layers), normal(2, 3, 12, 12))


def equinox_attention() -> Case:
    """Self-attention over a sequence."""
    eqx = package("equinox")

    class Net(eqx.Module):
        attention: eqx.nn.MultiheadAttention
        head: eqx.nn.Linear

        def __call__(self, x):
            return self.head((x + self.attention(x, x, x)).mean(axis=0))

    one, two = jax.random.split(jax.random.key(0))
    attention = eqx.nn.MultiheadAttention(2, 16, key=one)
    return _equinox(Net(attention, eqx.nn.Linear(16, 4, key=two)), normal(2, 6, 16))


def _equinox(model, x) -> Case:
    eqx = package("equinox")
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def call(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    return Case("function", call, stir(params), (x,), source=f"equinox {eqx.__version__}")


def haiku_mlp() -> Case:
    """`hk.transform` of a function."""
    hk = package("haiku")
    return _haiku(lambda x: hk.nets.MLP([16, 16, 4])(x), normal(2, 8))


def haiku_conv() -> Case:
    """Convolutions, plain and depthwise, with batch statistics as an argument."""
    hk = package("haiku")

    def net(x, train):
        x = hk.Conv2D(16, 3, stride=2, with_bias=False)(x)
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, is_training=train))
        x = jax.nn.relu(hk.DepthwiseConv2D(1, 3)(x))
        return hk.Linear(4)(x.mean(axis=(1, 2)))

    x = normal(2, 12, 12, 3)
    made = hk.without_apply_rng(hk.transform_with_state(net))
    params, state = made.init(jax.random.key(0), x, True)

    def call(params, state, x):
        return made.apply(params, state, x, False)[0]

    source = f"dm-haiku {metadata.version('dm-haiku')}"
    return Case("function", call, stir(params), (state, x), source=source, neutral=(0,))


def haiku_lstm() -> Case:
    """An LSTM by `hk.dynamic_unroll`, a scan."""
    hk = package("haiku")

    def net(x):
        core = hk.LSTM(16)
        out, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[0]), time_major=False)
        return hk.Linear(4)(out[:, -1])

    return _haiku(net, normal(2, 7, 8))


def _haiku(net, x) -> Case:
    hk = package("haiku")
    made = hk.without_apply_rng(hk.transform(net))
    params = made.init(jax.random.key(0), x)
    source = f"dm-haiku {metadata.version('dm-haiku')}"
    return Case("function", made.apply, stir(params), (x,), source=source)


def plain() -> Case:
    """`x @ w`."""
    params = {"w": normal(8, 4, seed=1)}
    source = f"jax {jax.__version__}"
    return Case("function", lambda p, x: x @ p["w"], params, (normal(2, 8),), source=source)


def plain_layers() -> Case:
    """A list of arrays, tanh between them, a scan over a stack."""
    params = [normal(8, 16, seed=1), normal(3, 16, 16, seed=2), normal(16, 4, seed=3)]

    def call(params, x):
        first, stack, last = params
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), jnp.tanh(x @ first), stack)
        return x @ last

    return Case("function", call, params, (normal(2, 8),), source=f"jax {jax.__version__}")


def plain_state() -> Case:
    """Statistics as an argument that is neither parameters nor data."""

    def call(params, state, x):
        return jnp.tanh((x @ params["w"] - state["mean"]) / state["deviation"]) @ params["head"]

    params = {"w": normal(8, 16, seed=1), "head": normal(16, 4, seed=2)}
    state = {"mean": normal(1, 16, seed=3), "deviation": 1 + normal(1, 16, seed=4) ** 2}
    args = (state, normal(2, 8))
    return Case("function", call, params, args, source=f"jax {jax.__version__}", neutral=(0,))


CASES: dict[str, Builder] = {
    "nnx attention": nnx_attention,
    "nnx LSTM": nnx_recurrent,
    "nnx scan": nnx_scan,
    "Equinox MLP": equinox_mlp,
    "Equinox conv net": equinox_conv,
    "Equinox attention": equinox_attention,
    "Haiku MLP": haiku_mlp,
    "Haiku conv net": haiku_conv,
    "Haiku LSTM": haiku_lstm,
    "x @ w": plain,
    "a list of matrices, scanned": plain_layers,
    "statistics as an argument": plain_state,
}
