"""Layers of plain functions are solved as those of Linen are: by the paths of their parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bitjax as bj
from bitjax.frameworks.targets import plan_layers

KEY = jax.random.key(0)
TERNARY, CODES = bj.ternary(fit="stored"), bj.lsq(bits=3, signed=False)


def ternary_like(key, shape, filters):
    """A kernel whose filters, along one axis, are a scale times ternary codes."""
    each = [1] * len(shape)
    each[filters] = -1
    scale = jax.random.uniform(jax.random.fold_in(key, 1), (shape[filters],), minval=0.2)
    return jax.random.choice(key, jnp.array([-1.0, 0.0, 1.0]), shape) * scale.reshape(each)


def conv_net(params, x):
    """Channels in front of places; batch normalisations of stored statistics."""
    for block in params["blocks"]:
        x = lax.conv_general_dilated(
            x, block["conv"]["w"], (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")
        )
        mean, var, gamma, beta = (leaf[:, None, None] for leaf in block["bn"])
        x = jax.nn.relu((x - mean) / jnp.sqrt(var + 1e-5) * gamma + beta)
    return x.mean((2, 3)) @ params["head"]["w"] + params["head"]["b"]


def conv_params():
    def block(key, inputs, filters):
        keys = jax.random.split(key, 5)
        bn = [
            0.3 * jax.random.normal(keys[0], (filters,)),
            jax.random.uniform(keys[1], (filters,), minval=0.5, maxval=2.0),
            jax.random.rademacher(keys[2], (filters,), jnp.float32),
            0.3 * jax.random.normal(keys[3], (filters,)),
        ]
        return {"conv": {"w": ternary_like(keys[4], (filters, inputs, 3, 3), 0)}, "bn": bn}

    keys = jax.random.split(KEY, 3)
    return {
        "blocks": [block(keys[0], 3, 6), block(keys[1], 6, 8)],
        "head": {"w": jax.random.normal(keys[2], (8, 4)), "b": jnp.zeros(4)},
    }


CONV_RULES = (
    bj.rule("blocks/./conv/kernel", TERNARY),
    bj.rule("blocks/1/conv/input", CODES),
)
IMAGES = jax.random.normal(jax.random.key(3), (64, 3, 8, 8))


@pytest.mark.slow
def test_a_plain_convolutional_net_is_planned_by_its_normalisations_and_sites():
    model, params = bj.Function(conv_net, CONV_RULES), conv_params()
    plans = plan_layers(model, {"params": params, **model.init(params, IMAGES)}, (IMAGES,))
    assert [(p.layer, p.target, p.consumer.norm) for p in plans] == [
        ("blocks/0/conv", "codes", "blocks/0/bn"),
        ("blocks/1/conv", "output", "blocks/1/bn"),
    ]


@pytest.mark.slow
def test_a_plain_convolutional_net_that_is_ternary_already_is_recovered():
    model, params, reports = bj.Function(conv_net, CONV_RULES), conv_params(), []
    variables = {"params": params, **model.init(params, IMAGES)}
    found = solve(model, variables, [IMAGES[:32], IMAGES[32:]], reports, starts=4, positions=32)
    assert [r.target for r in reports] == ["codes", "output"]
    teacher = bj.Function(conv_net, CONV_RULES[1:])
    wanted, _ = teacher.apply(params, variables, IMAGES)
    out, _ = model.apply(found["params"], found, IMAGES)
    assert float(jnp.mean((out - wanted) ** 2)) < 1e-4 * float(jnp.var(wanted))
    np.testing.assert_array_equal(found["params"]["head"]["w"], params["head"]["w"])
    assert (found["params"]["blocks"][1]["bn"][0] != params["blocks"][1]["bn"][0]).any()


def solve(model, variables, batches, reports, **settings):
    return bj.solve_layers(model, variables, batches, ridge=0.0, log=reports.append, **settings)


def mlp(params, batch, *, gain):
    x = batch["x"]
    for w, b in params[:-1]:
        x = jax.nn.relu(gain * (x @ w + b))
    w, b = params[-1]
    return x @ w + b


@pytest.mark.slow
def test_a_plain_mlp_with_lists_of_parameters_dict_inputs_and_keyword_arguments_is_recovered():
    sizes = ((6, 8), (8, 8), (8, 3))
    keys = jax.random.split(KEY, 4)
    params = [
        (ternary_like(k, size, 1), 0.2 * jax.random.normal(k, size[1:]))
        for k, size in zip(keys, sizes, strict=False)
    ]
    rules = [bj.rule("[01]/0/kernel", TERNARY), bj.rule("1/0/input", CODES)]
    model, batch = bj.Function(mlp, rules), {"x": jax.random.normal(keys[3], (400, 6))}
    variables, reports = {"params": params, **model.init(params, batch, gain=2.0)}, []
    found = solve(model, variables, [batch], reports, starts=4, kwargs={"gain": 2.0})
    assert [(r.layer, r.target) for r in reports] == [("0/0", "codes"), ("1/0", "relu")]
    for layer in (0, 1):
        np.testing.assert_allclose(found["params"][layer][0], params[layer][0], atol=1e-2)
        scale = found["quant"][str(layer)]["0"]["kernel"]["scale"]
        codes = np.asarray(found["params"][layer][0] / scale)
        assert set(np.unique(codes.round(4)).tolist()) <= {-1.0, 0.0, 1.0}


@pytest.mark.slow
def test_an_nnx_model_is_solved_with_intercepts_in_its_normalisations_means():
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.convs = nnx.List([
                nnx.Conv(i, o, (3, 3), use_bias=False, rngs=rngs) for i, o in ((3, 6), (6, 8))
            ])  # fmt: skip
            self.norms = nnx.List([nnx.BatchNorm(o, rngs=rngs) for o in (6, 8)])
            self.head = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = jax.nn.relu(norm(conv(x)))
            return self.head(x.mean((1, 2)))

    net, x = Net(nnx.Rngs(0)), IMAGES.transpose(0, 2, 3, 1)
    rules = [bj.rule("convs/./kernel", TERNARY), bj.rule("convs/1/input", CODES)]
    model, variables = bj.quantize(net, rules, x).functional()
    reports = []
    found = bj.solve_layers(model, variables, [x], log=reports.append)
    assert [(r.layer, r.target) for r in reports] == [("convs/0", "codes"), ("convs/1", "output")]
    kernel = found["params"]["convs"]["0"]["kernel"]
    codes = np.asarray(kernel / found["quant"]["convs"]["0"]["kernel"]["scale"])
    assert set(np.unique(codes.round(4)).tolist()) <= {-1.0, 0.0, 1.0}
    means = [tree["batch_stats"]["norms"]["0"]["mean"] for tree in (variables, found)]
    assert (means[0] != means[1]).any()


@pytest.mark.slow
def test_kernels_that_are_moved_before_their_product_are_solved_in_their_own_place():
    def net(params, x):
        return jnp.einsum("hdi,bi->bhd", params["heads"]["w"], x).reshape(len(x), -1)

    w = ternary_like(KEY, (2, 5, 6), 1) * jnp.array([1.0, 0.5])[:, None, None]
    model, x = (
        bj.Function(net, [bj.rule("heads/kernel", TERNARY)]),
        jax.random.normal(KEY, (300, 6)),
    )
    params = {"heads": {"w": w}}
    variables = {"params": params, **model.init(params, x)}
    found = solve(model, variables, [x], [], starts=8)
    np.testing.assert_allclose(found["params"]["heads"]["w"], w, atol=1e-4)
    assert found["quant"]["heads"]["kernel"]["scale"].shape == (2, 5, 1)


def test_a_kernel_that_is_computed_is_refused_in_one_line():
    def net(params, x):
        w = params["dense"]["w"]
        return x @ (w / jnp.linalg.norm(w, axis=0))

    model, x = bj.Function(net, [bj.rule("dense/kernel", TERNARY)]), jnp.ones((8, 3))
    params = {"dense": {"w": jnp.eye(3)}}
    variables = {"params": params, **model.init(params, x)}
    with pytest.raises(ValueError, match="layer 'dense'.* computes its kernel .*leave it out"):
        bj.solve_layers(model, variables, [x])
