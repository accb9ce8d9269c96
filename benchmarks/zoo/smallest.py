"""The smallest Linen models that show one property each."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.zoo.case import Builder, Case, linen, normal, tokens


class _Wrapper(nn.Module):
    """A submodule under the name that a wrapper would choose."""

    def setup(self):
        self.model = nn.Dense(4)

    def __call__(self, x):
        return self.model(x)


class _TiedHead(nn.Module):
    """A head whose kernel is the transposed table, as in transformers."""

    @nn.compact
    def __call__(self, words):
        embed = nn.Embed(16, 8)
        x = nn.Dense(8)(embed(words))
        table = self.variables["params"]["Embed_0"]["embedding"]
        return nn.Dense(16, use_bias=False).apply({"params": {"kernel": table.T}}, x)


class _Keywords(nn.Module):
    """A keyword-only argument and a dict, in and out."""

    @nn.compact
    def __call__(self, batch, *, scale):
        x = nn.Dense(8)(batch["image"]) * scale
        return {"logits": nn.Dense(4)(x), "value": nn.Dense(1)(x)}


class _Noise(nn.Module):
    """A stream of keys with a name of its own."""

    @nn.compact
    def __call__(self, x):
        x = x + 0.1 * jax.random.normal(self.make_rng("noise"), x.shape)
        return nn.Dense(4)(x)


class _Autoencoder(nn.Module):
    """Two methods, of which one is called."""

    def setup(self):
        self.encoder, self.decoder = nn.Dense(4), nn.Dense(8)

    def __call__(self, x):
        return self.decoder(nn.relu(self.encode(x)))

    def encode(self, x):
        return self.encoder(x)


class _Normalised(nn.Module):
    """A batch normalisation over its own mapped axis."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(4)(x)
        x = nn.BatchNorm(use_running_average=not train, axis_name="batch")(x)
        return nn.Dense(3)(nn.relu(x))


class _WeightNorm(nn.Module):
    """A kernel computed from two leaves."""

    @nn.compact
    def __call__(self, x):
        return nn.WeightNorm(nn.Dense(4))(x)


class _Shared(nn.Module):
    """One layer called twice."""

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(8)
        return layer(nn.relu(layer(x)))


class _Branches(nn.Module):
    """A layer in one branch of a cond, another in the other."""

    def setup(self):
        self.one, self.two = nn.Dense(4), nn.Dense(4)

    def __call__(self, x):
        if self.is_initializing():
            return self.one(x) + self.two(x)
        return nn.cond(x.sum() > 0, lambda m, x: m.one(x), lambda m, x: m.two(jnp.sin(x)), self, x)


class _Cached(nn.Module):
    """Keys of earlier calls, in a cache that every call changes."""

    @nn.compact
    def __call__(self, x):
        keys = self.variable("cache", "keys", jnp.zeros, (x.shape[0], 4, 8))
        keys.value = jnp.concatenate([keys.value[:, 1:], nn.Dense(8, name="k")(x)[:, None]], axis=1)
        return jnp.einsum("bd,btd->bt", nn.Dense(8, name="q")(x), keys.value)


class _Pooled(nn.Module):
    """Learned queries, projected by a layer of their own."""

    @nn.compact
    def __call__(self, x):
        queries = self.param("queries", nn.initializers.normal(1.0), (1, 3, 8))
        queries = jnp.tile(queries, (x.shape[0], 1, 1))
        return nn.MultiHeadDotProductAttention(2)(queries, x)


def _small(model, *args, **more) -> Case:
    return linen(model, args, source=f"flax {flax.__version__}", **more)


def normalised() -> Case:
    """In training, within a mapped axis `batch` inside another, `data`."""
    case = _small(_Normalised(), normal(2, 8), False)
    note = "in training, inside axis `data`"
    return case._replace(
        args=(normal(3, 2, 2, 8), True), mutable=("batch_stats",), axes=("data", "batch"),
        outside=case.args, examples=12, note=note,
    )  # fmt: skip


def noise() -> Case:
    """Keys are given under the model's own name."""
    return _small(_Noise(), normal(2, 8), rngs={"noise": jax.random.key(4)})


def cached() -> Case:
    """One step with a cache, which changes."""
    return _small(_Cached(), normal(2, 8))._replace(mutable=("cache",))


def keywords() -> Case:
    """A dict and a keyword."""
    args, kwargs = ({"image": normal(2, 8)},), {"scale": jnp.float32(0.5)}
    return linen(_Keywords(), args, kwargs, source=f"flax {flax.__version__}")


def only_keywords() -> Case:
    """No positional argument at all."""
    source = f"flax {flax.__version__}"
    return linen(nn.Dense(3), (), {"inputs": normal(2, 8)}, source=source)


def boxed() -> Case:
    """The kernel is a box with the names of its axes."""
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    return _small(nn.Dense(3, kernel_init=init), normal(2, 8))


def encode() -> Case:
    """`method="encode"`."""
    return _small(_Autoencoder(), normal(2, 8))._replace(method="encode")


CASES: dict[str, Builder] = {
    "Dense under self.model": lambda: _small(_Wrapper(), normal(2, 8)),
    "head by Dense.apply, tied": lambda: _small(_TiedHead(), tokens(2, 5, 16)),
    "Dense, boxed kernel": boxed,
    "keyword-only and dict": keywords,
    "keyword alone": only_keywords,
    'make_rng("noise")': noise,
    'method="encode"': encode,
    "BatchNorm, axis in axis": normalised,
    "WeightNorm": lambda: _small(_WeightNorm(), normal(2, 8)),
    "one layer twice": lambda: _small(_Shared(), normal(2, 8)),
    "a cache": cached,
    "learned queries": lambda: _small(_Pooled(), normal(2, 5, 8)),
    "cond": lambda: _small(_Branches(), normal(2, 8)),
    "ConvTranspose": lambda: _small(nn.ConvTranspose(4, (3, 3), (2, 2)), normal(2, 6, 6, 3)),
    "ConvLocal": lambda: _small(nn.ConvLocal(4, (3, 3)), normal(2, 6, 6, 3)),
    "DenseGeneral, Einsum": lambda: _small(
        nn.Sequential([nn.DenseGeneral((2, 4)), nn.Einsum((2, 4, 3), "...hd,hdo->...o")]),
        normal(2, 8),
    ),
}
