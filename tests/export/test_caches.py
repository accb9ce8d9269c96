"""Decoders in files and in programs of integers: caches, tables and groups of inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import bitjax as bj
from bitjax.export.graph import graph_of
from bitjax.export.nodes import sums_of
from bitjax.models import Llama

RNG = np.random.default_rng
X = RNG(0).normal(size=(2, 5, 4)).astype(np.float32)
PARAMS = {n: {"w": RNG(i).normal(size=(4, 4)).astype(np.float32)} for i, n in enumerate("qkv")}


def attention(params, x):
    q, k, v = (x @ params[n]["w"] for n in "qkv")
    k, v = checkpoint_name(k, "key_cache"), checkpoint_name(v, "value_cache")
    return jax.nn.softmax(jnp.einsum("nqc,nkc->nqk", q, k)) @ v


@pytest.fixture(scope="module")
def made():
    rules = [bj.rule(".*/kernel", bj.lsq(4)), bj.rule(".*", bj.uniform(5))]
    net = bj.Function(attention, rules)
    return bj.deploy(net, {"params": PARAMS, **jax.jit(net.init)(PARAMS, X)}, X)


def test_products_of_a_caches_integers_are_summed_as_integers(made):
    program = bj.integer_model(made, X)
    assert {"product0", "product1"} < set(sums_of(graph_of(made, X)))
    state = {"quant": made.variables["quant"]}
    expected, _ = jax.jit(made.model.apply)(made.variables["params"], state, X)
    np.testing.assert_array_equal(program(X), expected)
    assert {"key_cache", "value_cache"} < set(program.sites(X).integers)


def test_a_file_holds_what_caches_are_quantized_by(made, tmp_path):
    path = tmp_path / "model.safetensors"
    bj.save_packed(path, made, X)
    read = bj.load_packed(path, bj.Function(attention)).deployed
    assert jax.tree.structure(read.variables) == jax.tree.structure(made.variables)
    jax.tree.map(np.testing.assert_array_equal, read.variables, made.variables)
    costs = bj.site_costs(bj.Function(attention), PARAMS, X)
    assert bj.cache_bytes(read.variables, costs) == 2 * 4 * 5 / 8


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["onnx", "stablehlo"])
def test_a_decoder_with_a_quantized_table_and_cache_is_the_same_in_every_runtime(tmp_path, ending):
    model = Llama(vocab_size=11, width=12, layers=1, heads=6, kv_heads=2, hidden=10)
    tokens = RNG(0).integers(0, 11, size=(2, 7)).astype(np.int32)
    rules = [
        bj.rule(".*_cache", bj.uniform(4, granularity="per_channel")),
        bj.rule(".*/kernel", bj.lsq(4, granularity="per_channel")),
        bj.rule(".*", bj.uniform(8)),
    ]
    net = bj.Quantized(model, rules)
    fixed = bj.deploy(net, net.init(jax.random.key(0), tokens), tokens)
    path = tmp_path / f"model.{ending}"
    if ending == "onnx":
        bj.to_onnx(fixed, tokens, path=path)
    else:
        bj.to_stablehlo(fixed, tokens, path=path)
    found = bj.check_export(path, fixed, tokens)
    assert not found.first, str(found)
    assert found.verdict.same == len(tokens)
    if ending == "onnx":  # the other one shows no sites
        assert any(site.name.endswith("key_cache") for site in found.sites)


@pytest.mark.slow
def test_groups_of_a_decoders_inputs_are_held_by_files_and_programs_as_they_are_counted(tmp_path):
    model = Llama(vocab_size=16, width=16, layers=1, heads=4, kv_heads=2, hidden=24)
    tokens = RNG(0).integers(0, 16, size=(2, 7)).astype(np.int32)
    groups = bj.uniform(4, range="mse", granularity="per_group", group_size=8)
    net = bj.Quantized(model, [bj.rule(".*/kernel", groups)])
    variables = jax.jit(net.init)(jax.random.key(0), tokens)
    stats = variables["quant_stats"]
    assert stats["layers_0"]["ffn"]["w2"]["kernel"]["clip_max"].shape == (24 // 8, 16)
    assert stats["embed"]["kernel"]["clip_max"].shape == (16, 16 // 8)  # of each row
    fixed = bj.deploy(net, variables, tokens)
    found = jax.jit(fixed.model.apply)(fixed.variables, tokens)
    np.testing.assert_allclose(found, jax.jit(net.apply)(variables, tokens), atol=1e-5)
    np.testing.assert_array_equal(bj.integer_model(fixed, tokens)(tokens), found)
    path = tmp_path / "model.safetensors"
    size = bj.save_packed(path, fixed, tokens)
    assert size.payload == bj.model_bytes(variables, bj.site_costs(model, tokens))
    read = bj.load_packed(path, model).deployed
    jax.tree.map(np.testing.assert_array_equal, read.variables, fixed.variables)
