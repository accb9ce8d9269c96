"""Layers solved from what a teacher's layers give: exact where it can be, else refused."""

import functools
import io
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.frameworks.targets import plan_layers
from bitjax.two_step.fits import SolveOptions
from bitjax.two_step.layer import layer_of
from bitjax.two_step.moments import collect, merge, moments_of, sums_of
from bitjax.two_step.solve import solve_each, solve_layers

TERNARY = bj.ternary(fit="stored")
KEY = jax.random.key(0)


def ternary_like(key, kernel):
    """A kernel of the same shape whose filters are a scale times ternary codes."""
    codes = jax.random.choice(key, jnp.array([-1.0, 0.0, 1.0]), kernel.shape)
    scale = jax.random.uniform(jax.random.fold_in(key, 1), kernel.shape[-1:], minval=0.2)
    return codes * scale


def shaken(variables, key=KEY):
    """Variables with ternary kernels, and batch normalisations of which some turn channels over."""

    def leaf(path, x):
        name, key_ = path[-1].key, jax.random.fold_in(key, zlib.crc32(str(path).encode()) % 2**31)
        if name == "kernel":
            return ternary_like(key_, x)
        if name in ("var",):
            return jax.random.uniform(key_, x.shape, minval=0.5, maxval=2.0)
        if name == "scale" and "bn" in str(path):
            sign = jax.random.rademacher(key_, x.shape, jnp.float32)
            return sign * jax.random.uniform(key_, x.shape, minval=0.5, maxval=1.5)
        if name in ("mean", "bias"):
            return 0.3 * jax.random.normal(key_, x.shape)
        return x

    return jax.tree_util.tree_map_with_path(leaf, variables)


LAYERS = {
    "dense": (nn.Dense(5), (300, 6)),
    "dense without bias": (nn.Dense(5, use_bias=False), (300, 6)),
    "convolution": (nn.Conv(5, (3, 3), strides=2), (40, 9, 9, 3)),
    "groups": (nn.Conv(6, (3, 3), feature_group_count=3), (40, 6, 6, 6)),
    "depthwise": (nn.Conv(4, (3, 3), feature_group_count=4), (40, 6, 6, 4)),
    "heads": (nn.DenseGeneral((2, 5)), (40, 7, 6)),
}


@pytest.mark.parametrize(
    "name", [n if n == "dense" else pytest.param(n, marks=pytest.mark.slow) for n in LAYERS]
)
def test_a_layer_that_is_ternary_already_is_recovered(name):
    layer, shape = LAYERS[name]
    x = jax.random.normal(KEY, shape)
    model = bj.Quantized(layer, [bj.rule("kernel", TERNARY)])
    floats = shaken(layer.init(KEY, x))
    variables = bj.attach(model, floats, x)
    found = solve_layers(model, variables, [x], ridge=0.0, positions=20, starts=8)
    np.testing.assert_allclose(found["params"]["kernel"], floats["params"]["kernel"], atol=1e-4)
    np.testing.assert_allclose(model.apply(found, x), layer.apply(floats, x), atol=1e-3)


class Chain(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        for i in (1, 2):
            x = nn.Conv(8, (3, 3), use_bias=False, name=f"conv{i}")(x)
            x = nn.BatchNorm(use_running_average=not train, name=f"bn{i}")(x)
            x = nn.relu(x)
        return nn.Dense(4, name="head")(x.mean((1, 2)))


RULES = (
    bj.rule("conv./kernel", TERNARY),
    bj.rule("conv2/input", bj.lsq(bits=3, signed=False)),
)
IMAGES = jax.random.normal(jax.random.key(3), (64, 8, 8, 3))
BATCHES = [IMAGES[:32], IMAGES[32:]]


@functools.cache
def made(transform):
    model = bj.Quantized(Chain(), RULES)
    floats = Chain().init(KEY, IMAGES)
    floats = transform(floats) if transform else floats
    return model, floats, bj.attach(model, floats, IMAGES)


def chain(transform=None):
    model, *trees = made(transform)
    return model, *(jax.tree.map(lambda x: x, tree) for tree in trees)  # dicts of the caller's own


@pytest.mark.slow
def test_normalisations_that_turn_channels_upside_down_are_taken_into_account():
    model, floats, variables = chain(shaken)
    teacher = bj.Quantized(Chain(), (RULES[1]._replace(pattern="conv2/input"),))
    found = solve_layers(model, variables, BATCHES, ridge=0.0, starts=4, positions=32)
    wanted = teacher.apply(variables, IMAGES)
    assert float(jnp.mean((model.apply(found, IMAGES) - wanted) ** 2)) < 1e-4 * float(
        jnp.var(wanted)
    )


@pytest.mark.slow
def test_each_layer_says_what_it_was_solved_for_and_how_well():
    model, _, variables = chain()
    reports = []
    solve_layers(model, variables, BATCHES, log=reports.append, positions=32)
    first, second = reports
    assert (first.layer, first.target) == ("conv1", "codes")
    assert (second.layer, second.target, second.mismatch) == ("conv2", "output", None)
    assert 0 < first.mismatch < 0.5 and 0 < second.error < 1 and 0.1 < first.sparsity < 0.8
    assert first.patches == 64 * 32


@pytest.mark.slow
def test_solving_gives_less_error_than_rounding_the_kernels():
    model, floats, variables = chain()
    kernels = model.apply(variables, IMAGES)  # rounded at the scale they were attached with
    solved = model.apply(solve_layers(model, variables, BATCHES, positions=32), IMAGES)
    teacher = bj.Quantized(Chain(), RULES[1:]).apply(variables, IMAGES)
    rounded, error = (float(jnp.mean((y - teacher) ** 2)) for y in (kernels, solved))
    assert error < 0.5 * rounded


@pytest.mark.slow
def test_only_the_solved_layers_and_the_means_behind_them_change():
    model, _, variables = chain()
    found = solve_layers(model, variables, BATCHES, layers="conv1")
    same = jax.tree.map(lambda a, b: a is b or bool((a == b).all()), found, dict(variables))
    assert not same["params"]["conv1"]["kernel"] and not same["batch_stats"]["bn1"]["mean"]
    same["params"]["conv1"] = same["quant"]["conv1"]["kernel"] = {}
    same["batch_stats"]["bn1"]["mean"] = True
    assert jax.tree.all(same)


@pytest.mark.slow
def test_the_stored_scale_decodes_the_kernel():
    model, _, variables = chain()
    found = solve_layers(model, variables, BATCHES)
    kernel, params = found["params"]["conv1"]["kernel"], found["quant"]["conv1"]["kernel"]
    np.testing.assert_array_equal(TERNARY.apply(params, {}, kernel), kernel)
    codes = np.asarray(kernel / params["scale"])
    assert set(np.unique(codes.round(5)).tolist()) <= {-1.0, 0.0, 1.0}


@pytest.mark.slow
def test_later_layers_see_what_is_solved_before_them_unless_told_otherwise():
    model, _, variables = chain()
    both = [
        solve_layers(model, variables, BATCHES, asymmetric=asymmetric)
        for asymmetric in (True, False)
    ]
    first, second = (
        jnp.array_equal(*(v["params"][name]["kernel"] for v in both)) for name in ("conv1", "conv2")
    )
    assert first and not second


@pytest.mark.slow
def test_a_solve_that_is_taken_up_again_ends_as_one_that_was_not_interrupted():
    model, _, variables = chain()
    whole = [v for v, _ in solve_each(model, variables, lambda: BATCHES)]
    later = [v for v, _ in solve_each(model, whole[0], lambda: BATCHES, start=1, teacher=variables)]
    assert len(whole) == 2 and len(later) == 1
    jax.tree.map(np.testing.assert_array_equal, dict(later[0]), dict(whole[1]))


@pytest.mark.slow
def test_other_grids_and_numbers_of_bits_are_solved_too():
    errors = []
    for kernel in (bj.binary(fit="stored"), TERNARY, bj.low_bit(bits=3, fit="stored")):
        model = bj.Quantized(Chain(), [bj.rule("conv./kernel", kernel)])
        variables = bj.attach(model, Chain().init(KEY, IMAGES), IMAGES)
        reports = []
        solve_layers(model, variables, BATCHES, log=reports.append, target="output")
        errors.append(reports[0].error)
    assert errors[0] > errors[1] > errors[2] > 0


@pytest.mark.slow
def test_dead_inputs_and_zero_filters_do_no_harm():
    model, floats, _ = chain()
    kernel = floats["params"]["conv1"]["kernel"].at[..., 0].set(0.0)
    floats["params"]["conv1"]["kernel"] = kernel
    images = IMAGES.at[..., 1].set(0.0)
    variables = bj.attach(model, floats, images)
    found = solve_layers(model, variables, [images])
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found))
    assert not found["params"]["conv1"]["kernel"][..., 0].any()
    assert not found["params"]["conv1"]["kernel"][:, :, 1].any()


@pytest.mark.parametrize("start", ["best", "gptq", "adaround"])
@pytest.mark.parametrize(
    "quantizer",
    [TERNARY, bj.low_bit(bits=3, fit="stored"), bj.low_bit(bits=4, fit="stored", narrow=False)],
    ids=["ternary", "symmetric", "two-sided"],
)
def test_a_pruned_network_stays_pruned(quantizer, start):
    x = jax.random.normal(KEY, (200, 6)) @ jax.random.normal(jax.random.key(1), (6, 6))
    model = bj.Quantized(nn.Dense(5), [bj.rule("kernel", quantizer)])
    variables = model.init(KEY, x)
    pruned = jax.random.bernoulli(KEY, 0.5, (6, 5))
    variables["params"]["kernel"] = jnp.where(pruned, 0.0, variables["params"]["kernel"])
    variables = bj.attach(model, {"params": variables["params"]}, x)
    sweeps = 30 if start == "best" else 0
    kernel = solve_layers(model, variables, [x], start=start, max_sweeps=sweeps)["params"]["kernel"]
    assert not kernel[pruned].any() and kernel[~pruned].any()


def test_patches_fewer_than_inputs_never_become_a_gram_matrix():
    x, z = jax.random.normal(KEY, (2, 12, 10)), jax.random.normal(KEY, (2, 12, 3))
    batches = [(x[:, i : i + 3], z[:, i : i + 3], None) for i in range(0, 12, 3)]
    few = collect(batches[:3], resident=False)
    assert few.sums is None
    assert few.count == 9
    np.testing.assert_array_equal(few.x_GxTxN, x[:, :9])
    many, kept = (collect(batches, resident=r) for r in (False, True))
    assert many.x_GxTxN is None
    np.testing.assert_array_equal(kept.z_GxTxM, z)
    for found in (many, kept):
        for one, other in zip(found.sums, merge(None, sums_of(x, z)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_fewer_patches_than_inputs_are_enough_with_a_ridge():
    layer, x = nn.Dense(3), jax.random.normal(KEY, (20, 50))
    model = bj.Quantized(layer, [bj.rule("kernel", TERNARY)])
    variables, reports = model.init(KEY, x), []
    found = solve_layers(model, variables, [x], ridge=0.3, log=reports.append)
    assert bool(jnp.isfinite(model.apply(found, x)).all())
    assert reports[0].patches == 20
    assert reports[0].error < 0.1  # there are more codes than patches to explain
    wanted, rounded = layer.apply({"params": variables["params"]}, x), model.apply(variables, x)
    error = [float(jnp.sum((wanted - y) ** 2)) for y in (model.apply(found, x), rounded)]
    assert error[0] < 0.5 * error[1]


@pytest.mark.slow
def test_without_a_place_for_it_there_is_no_intercept():
    class Bare(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, use_bias=False, name="only")(x)

    x = 1.0 + jax.random.normal(KEY, (100, 6))
    model = bj.Quantized(Bare(), [bj.rule("only/kernel", TERNARY)])
    found = solve_layers(model, model.init(KEY, x), [x])
    assert set(found["params"]["only"]) == {"kernel"}


def test_what_cannot_be_solved_is_refused_in_one_line():
    model, _, variables = chain()
    with pytest.raises(ValueError, match=r"no layer to solve .* there are conv1 \(2 bits\)"):
        solve_layers(model, variables, BATCHES, bits=3)
    with pytest.raises(ValueError, match=r"no bits of 'conv1/kernel': make them by bitjax.attach"):
        solve_layers(model, {k: v for k, v in variables.items() if k != "quant"}, BATCHES)
    plain = bj.Quantized(Chain(), [bj.rule("conv./kernel", bj.lsq(bits=2))])
    with pytest.raises(ValueError, match=r"fit='stored'; there are none"):
        solve_layers(plain, bj.attach(plain, variables, IMAGES), BATCHES)
    with pytest.raises(ValueError, match=r"layer 'conv1': .*finite"):
        solve_layers(model, variables, [IMAGES.at[0].set(jnp.nan)])
    odd = nn.ConvTranspose(3, (3, 3), strides=(2, 2))
    model = bj.Quantized(odd, [bj.rule("kernel", TERNARY)])
    with pytest.raises(ValueError, match="no patches to be solved from"):
        solve_layers(model, model.init(KEY, IMAGES), [IMAGES])


def test_the_plan_follows_the_forward_order():
    model, _, variables = chain()
    plans = plan_layers(model, variables, (IMAGES,))
    assert [(p.layer, p.target) for p in plans] == [("conv1", "codes"), ("conv2", "output")]
    every = plan_layers(model, variables, (IMAGES,), target="output")
    assert {p.target for p in every} == {"output"}
    assert SolveOptions().asymmetric


class Two(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(6, name="first")(x))
        x = nn.relu(nn.BatchNorm(True, name="norm")(nn.Dense(6, use_bias=False, name="second")(x)))
        return nn.Dense(3, name="head")(x)


@pytest.mark.slow
def test_integers_alone_give_the_codes_that_the_network_gives():
    x = jax.random.normal(KEY, (400, 5))
    inputs = bj.lsq(bits=2, signed=False)
    rules = (bj.rule("(second|head)/input", inputs), bj.rule("second/kernel", TERNARY))
    model = bj.Quantized(Two(), rules)
    floats = shaken(Two().init(KEY, x))
    found = solve_layers(model, bj.attach(model, floats, x), [x], target="codes")
    tapped = bj.tap(model, found, x)
    quant, norm = found["quant"], layer_of(model, found, (x,), {}, "second").affine
    step, after = (float(quant[name]["input"]["scale"]) for name in ("second", "head"))
    scale = np.asarray(quant["second"]["kernel"]["scale"], np.float64).ravel()
    codes_in = np.rint(np.asarray(tapped["second"].input) / step).astype(np.int32)
    weights = np.rint(np.asarray(found["params"]["second"]["kernel"]) / scale).astype(np.int32)
    accumulated = codes_in @ weights  # int32
    # Thresholds of the accumulator: (t_k - b) / (a D), the other way round for a negative gain.
    gain = norm.gain_M * scale * step
    edges = (np.array([0.5, 1.5, 2.5])[:, None] * after - norm.offset_M) / gain
    above = np.where(
        gain > 0, accumulated[None] > edges[:, None], accumulated[None] < edges[:, None]
    )
    wanted = np.rint(np.asarray(tapped["head"].input) / after)
    near = np.abs(accumulated[None] - edges[:, None]).min(axis=0) < 1e-4
    assert near.mean() < 0.01
    np.testing.assert_array_equal(above.sum(axis=0)[~near], wanted[~near])


def test_the_summary_says_what_each_layer_is_solved_for():
    model, _, variables = chain()
    text = bj.summary(model, variables, IMAGES, file=io.StringIO())
    assert "solved for codes   conv1\n" in text and "solved for output  conv2\n" in text


def test_moments_with_an_intercept_are_centred():
    x, z = jnp.array([[[1.0], [3.0]]]), jnp.array([[[0.0], [2.0]]])
    found = moments_of(merge(None, sums_of(x, z)), 0, intercept=True)
    assert (found.gram_NxN.item(), found.cross_MxN.item(), found.mean_N.item()) == (1.0, 1.0, 2.0)
