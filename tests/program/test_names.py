"""How sites are named, and which operand of a product is a layer's kernel."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bitjax import Function, site_costs
from bitjax.frameworks.costs import total_macs
from bitjax.program.naming import prefixes, scope_of


def scores(q, k):
    return jnp.einsum("btd,bsd->bts", q, k)


class Attention(nn.Module):
    """Its product is in a method of its own."""

    @nn.compact
    def __call__(self, x):
        return self.mix(nn.Dense(4, name="q")(x), nn.Dense(4, name="k")(x))

    def mix(self, q, k):
        return scores(q, k)


class Encoder(nn.Module):
    """The model's method, around a module."""

    def setup(self):
        self.attention = Attention()

    def __call__(self, x):
        return self.encode(x)

    def encode(self, x):
        return self.attention(x)


def products(model, *args):
    return [site for site in site_costs(model, *args) if "product" in site]


def test_a_method_of_the_model_is_no_part_of_a_name():
    x = jnp.ones((2, 3, 5))
    assert products(Encoder(), x) == ["attention/product0/left", "attention/product0/right"]


def test_a_child_may_have_the_name_of_its_module():
    modules = prefixes(["encoder/encoder/q/kernel", "head/kernel"])
    assert scope_of("Model/encoder/encoder.encode", 1, modules) == "encoder/encoder"
    assert scope_of("Model/head/head.scores/ab,bc->ac", 1, modules) == "head"
    assert scope_of("Model/Model.encode/vmap(head)", 1, modules) == "head"


def test_a_module_under_a_foreign_scope_is_named_by_its_kernels():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            # As in big_vision's Gemma: a scope as the parent leaves the module without a name.
            return Attention(parent=self.scope.push("layers").push("0"))(x)

    x = jnp.ones((2, 3, 5))
    assert products(Model(), x) == ["layers/0/product0/left", "layers/0/product0/right"]


def test_a_named_scope_of_a_library_names_nothing():
    def attend(params, x):
        with jax.named_scope("library.Attention"):
            return scores(x @ params["attention"]["q"]["w"], x @ params["attention"]["k"]["w"])

    params = {"attention": {"q": {"w": jnp.ones((5, 4))}, "k": {"w": jnp.ones((5, 4))}}}
    found = products(Function(attend), params, jnp.ones((2, 3, 5)))
    assert found == ["attention/product0/left", "attention/product0/right"]


def test_a_layer_of_learned_queries_is_a_layer():
    class Pool(nn.Module):
        @nn.compact
        def __call__(self, x):
            queries = self.param("queries", nn.initializers.normal(), (3, 6))
            queries = jnp.tile(nn.LayerNorm()(queries), (x.shape[0], 1, 1))
            q, k = nn.Dense(4, name="q")(queries), nn.Dense(4, name="k")(x)
            return scores(q, k)

    costs = site_costs(Pool(), jnp.ones((2, 7, 5)))
    assert costs["q/kernel"].macs == 3 * 6 * 4 and costs["q/kernel"].elements == 6 * 4
    assert costs["q/input"].elements == 3 * 6
    assert costs["product0/left"].elements == 3 * 4


def test_a_kernel_computed_of_its_layers_parameters_is_one_kernel():
    def low_rank(params, x):
        dense = params["dense"]
        return x @ (dense["kernel"] @ dense["rotation"] + dense["a"] @ dense["b"])

    shapes = {"kernel": (5, 4), "rotation": (4, 4), "a": (5, 1), "b": (1, 4)}
    params = {"dense": {name: jnp.ones(shape) for name, shape in shapes.items()}}
    assert list(site_costs(Function(low_rank), params, jnp.ones((2, 5)))) == [
        "dense/kernel",
        "dense/input",
    ]


def test_a_mask_that_an_einsum_applies_is_no_product():
    def attend(params, x, mask):
        weights = jnp.einsum("bts,b->bts", scores(x @ params["q"], x), mask)
        return jnp.einsum("bts,bsd->btd", weights, x)

    model, x = Function(attend), jnp.ones((2, 3, 5))
    costs = site_costs(model, {"q": jnp.ones((5, 5))}, x, jnp.ones(2))
    assert [site for site in costs if site.endswith("right")] == [
        "product0/right",
        "product1/right",
    ]
    assert total_macs(model, {"q": jnp.ones((5, 5))}, x, jnp.ones(2)) == 3 * 25 + 2 * 9 * 5
