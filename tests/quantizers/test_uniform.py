"""Fixed-bit grids against arithmetic by hand and the papers' starting points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.quantizers import Axes, Codes, lsq, pact, uniform

KERNEL = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 4, 6)), jnp.float32)
AXES = Axes((-1,), -2)


def quantize(q, x, axes=AXES):
    return jax.jit(lambda x: q.apply(*q.init(x, axes), x))(x)


def by_hand(x, low, high, bits):
    """Jacob et al., arXiv 1712.05877, eq. 11-13."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    zero_point = np.rint(-low / scale)
    return scale * (np.clip(np.rint(x / scale) + zero_point, 0, 2**bits - 1) - zero_point)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_uniform_is_the_affine_grid_of_jacob_et_al(bits):
    x = np.asarray(KERNEL, np.float64)
    expected = by_hand(x, x.min(), x.max(), bits)
    np.testing.assert_allclose(quantize(uniform(bits), KERNEL), expected, rtol=1e-5, atol=1e-6)


def test_without_a_zero_both_ends_of_the_range_are_levels():
    x_hat = quantize(uniform(3, zero_on_grid=False), KERNEL)
    assert float(x_hat.min()) == float(KERNEL.min())
    assert float(x_hat.max()) == pytest.approx(float(KERNEL.max()), rel=1e-6)


@pytest.mark.parametrize(
    "make",
    [uniform, lambda *a, **k: lsq(*a, init_range="lsq", **k), lambda *a, **k: pact(*a, **k)],
    ids=["uniform", "lsq", "pact"],
)
def test_a_channel_or_group_is_quantized_as_if_it_were_alone(make):
    per_channel = quantize(make(4, granularity="per_channel"), KERNEL)
    per_group = quantize(make(4, granularity="per_group", group_size=2), KERNEL)
    for c in (0, 3, 5):
        alone = quantize(make(4), KERNEL[..., c : c + 1])
        np.testing.assert_allclose(per_channel[..., c : c + 1], alone, rtol=1e-5, atol=1e-6)
    block = np.s_[:, :, 2:4, 5:6]
    alone = quantize(make(4), KERNEL[block])
    np.testing.assert_allclose(per_group[block], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 7, 8, 16])
@pytest.mark.parametrize("clip", [1.0, 0.1, 3.7, 1e-5, 123.4])
def test_a_symmetric_range_has_the_codes_of_twos_complement(bits, clip):
    q = uniform(bits, signed=True)
    params, stats = q.init(jnp.array([-clip, clip / 3]), Axes())
    ends = q.decode(params, stats, Codes(jnp.array([0, 2 ** (bits - 1), 2**bits - 1])))
    scale = 2 * clip / (2**bits - 1)
    expected = [-(2 ** (bits - 1)) * scale, 0.0, (2 ** (bits - 1) - 1) * scale]
    np.testing.assert_allclose(ends, expected, rtol=1e-6)


def test_lsq_codes_stand_for_whole_multiples_of_the_scale():
    q = lsq(3)
    params = {"bits": jnp.float32(3.0), "scale": jnp.float32(0.25)}
    levels = q.decode(params, {}, Codes(jnp.arange(8)))
    np.testing.assert_allclose(levels, np.arange(-4, 4) * 0.25, rtol=1e-6)
    levels = lsq(3, signed=False).decode(params, {}, Codes(jnp.arange(8)))
    np.testing.assert_allclose(levels, np.arange(8) * 0.25, rtol=1e-6)


def test_lsq_starts_where_the_paper_does_or_at_a_smaller_error():
    """Esser et al., arXiv 1902.08153, section 2.1: 2 mean|x| / sqrt(qmax)."""
    paper, ours = lsq(3, init_range="lsq"), lsq(3)
    scale = paper.init(KERNEL, AXES)[0]["scale"]
    assert float(scale) == pytest.approx(2 * np.abs(KERNEL).mean() / np.sqrt(3), rel=1e-5)
    errors = [float(jnp.mean((quantize(q, KERNEL) - KERNEL) ** 2)) for q in (paper, ours)]
    assert errors[1] <= errors[0]


def test_a_negative_scale_or_clip_acts_as_its_absolute_value():
    for q, leaf in ((lsq(4), "scale"), (pact(4), "clip_max")):
        params, stats = q.init(KERNEL, AXES)
        flipped = {**params, leaf: -params[leaf]}
        np.testing.assert_array_equal(
            q.apply(flipped, stats, KERNEL), q.apply(params, stats, KERNEL)
        )


def test_pact_clips_at_zero_and_at_the_clip():
    q = pact(8, init_clip=6.0)
    x_hat = quantize(q, jnp.array([-1.0, 0.0, 3.0, 6.0, 9.0]), Axes())
    np.testing.assert_allclose(x_hat, [0.0, 0.0, 3.0, 6.0, 6.0], atol=6 / 255 / 2)


def test_training_uses_the_range_of_the_batch_and_evaluation_the_average():
    q = uniform(8, decay=0.9)
    params, stats = q.init(jnp.array([0.0, 1.0]), Axes())
    for x in (jnp.array([0.0, 2.0]), jnp.array([0.0, 4.0])):
        stats = q.update(stats, q.measure(params, stats, x))
    large = jnp.array([100.0])
    assert float(q.apply(params, stats, large, train=True)[0]) == 4.0
    assert float(q.apply(params, stats, large)[0]) == pytest.approx(0.9 * 2 + 0.1 * 4)


def test_lsq_learns_a_scale_that_a_search_would_choose():
    x = KERNEL.reshape(-1)
    q = lsq(2, init_range="lsq")
    params, _ = q.init(x, Axes())

    def loss(scale):
        return jnp.mean((q.apply({**params, "scale": scale}, {}, x) - x) ** 2)

    step = jax.jit(lambda scale: scale - 5.0 * jax.grad(loss)(scale))
    scale = params["scale"]
    for _ in range(200):
        scale = step(scale)
    best = min(float(loss(s)) for s in np.linspace(0.3, 2.0, 60).astype(np.float32))
    assert float(loss(scale)) <= 1.1 * best
