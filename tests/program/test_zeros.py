"""Zeros that carry meaning stay zero: a mask's and those of pruned weights, or it is an error."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.diagnostics.doctor import doctor
from bitjax.frameworks.shapes import program_of

LENGTH, CHANNELS, FILTERS = 7, 3, 4
PAST = np.zeros((5, CHANNELS, FILTERS), np.float32)
PAST[:3] = 1.0  # of a window of 5 with as much padding on both sides: two before and the present
CAUSAL = nn.Conv(FILTERS, (5,), mask=PAST)
SAMPLED = {"mode": "sample", "zero_on_grid": True, "granularity": "per_channel"}
QUANTIZERS = {
    "identity": bj.identity(),
    "uniform": bj.uniform(4),
    "uniform per channel": bj.uniform(4, range="mse", granularity="per_channel"),
    "uniform off zero": bj.uniform(4, zero_on_grid=False),
    "lsq": bj.lsq(4, granularity="per_channel"),
    "pact": bj.pact(4, signed=True),
    "bitlength": bj.bitlength(4.0),
    "bitlength learned": bj.bitlength(4.0, range="learned"),
    "bitlength on zero": bj.bitlength(4.0, zero_on_grid=True),
    "bitlength sharpened": bj.bitlength(4.0, zero_on_grid=True, mode="sharpen", range="learned"),
    "bitlength sampled": bj.bitlength(4.0, **SAMPLED),
    "bitlength ste": bj.bitlength(4.0, zero_on_grid=True, mode="ste"),
    "bitplane": bj.bitplane(4, signed=True, depth=8),
    "bitplane free": bj.bitplane(4, signed=True, coefficients="free", scale="observed"),
    "bitplane faithful": bj.bitplane(4, signed=True, mode="faithful", dither=True),
    "halfwave": bj.halfwave(2),
    "hwgq": bj.hwgq(2),
    "ternary": bj.ternary(),
    "ternary twn": bj.ternary("twn"),
    "ternary stored": bj.ternary("stored"),
    "low_bit": bj.low_bit(4),
    "low_bit stored": bj.low_bit(4, fit="stored"),
    "binary": bj.binary(),
    "binary stored": bj.binary("stored"),
}
REFUSED = {
    "uniform off zero", "bitlength", "bitlength learned", "binary", "binary stored"
}  # fmt: skip
KERNEL = np.random.default_rng(0).normal(size=PAST.shape).astype(np.float32)
KERNELS = (KERNEL, np.abs(KERNEL) + 1.0, -1e4 * (np.abs(KERNEL) + 0.5))
X = np.random.default_rng(1).normal(size=(1, LENGTH, CHANNELS)).astype(np.float32)
CHANGE = 3  # the first step that is changed


def outputs(model, kernel, bits, x):
    """What the layer gives in evaluation and in training, with quantizers made for this kernel."""
    params = {"kernel": kernel, "bias": jnp.zeros(FILTERS)}
    _, made = model.apply({"params": params}, x, mutable=["quant", "quant_stats"])
    leaves = made["quant"]["kernel"]
    leaves["bits"] = jnp.full_like(leaves["bits"], bits)
    rngs = {"quant": jax.random.key(2)}
    return [model.apply({"params": params, **made}, x, train=t, rngs=rngs) for t in (False, True)]


def bits_of(quantizer):
    """Numbers of bits that a quantizer may have."""
    if quantizer.traits.learns_bits is not None:
        return 1.0, 2.4, 3.5, 8.0
    return (2.0,) if quantizer.name in ("ternary", "halfwave", "hwgq") else (2.0, 3.0, 8.0)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_causal_convolution_does_not_see_the_future_or_is_refused(name):
    model = bj.Quantized(CAUSAL, [bj.rule("kernel", QUANTIZERS[name])])
    if name in REFUSED:
        with pytest.raises(ValueError, match="site 'kernel' is masked"):
            jax.eval_shape(partial(outputs, model), KERNEL, 4.0, X)
        return
    later = X.copy()
    later[:, CHANGE:] += 10.0
    run = jax.jit(partial(outputs, model))
    for kernel in KERNELS:
        for bits in bits_of(QUANTIZERS[name]):
            for one, other in zip(run(kernel, bits, X), run(kernel, bits, later), strict=True):
                np.testing.assert_array_equal(one[:, :CHANGE], other[:, :CHANGE])


def test_every_quantizer_that_is_shipped_is_asked():
    asked = {quantizer.name.partition("/")[0] for quantizer in QUANTIZERS.values()}
    made = {n for n, f in vars(bj.quantizers).items() if getattr(f, "__annotations__", {}).get(
        "return") is bj.Quantizer}  # fmt: skip
    assert made and made <= asked, made - asked


def test_the_refusal_names_the_site_the_quantizer_and_what_to_do():
    model = bj.Quantized(nn.Sequential([CAUSAL]), [bj.rule(".*", bj.bitlength(4.0))])
    with pytest.raises(ValueError) as caught:
        jax.eval_shape(model.init, jax.random.key(0), X)
    message = str(caught.value)
    for part in ("'layers_0/kernel'", "'bitlength/blend'", "zero_on_grid=True", "lsq", "None)"):
        assert part in message
    assert "\n" not in message
    free = [bj.rule("layers_0/kernel", None), *model.rules]
    made = jax.eval_shape(model.with_rules(free).init, jax.random.key(0), X)
    assert set(made["quant"]["layers_0"]) == {"input"}


W = {"w": jnp.ones((4, 4))}
MASKED = {
    "tril": lambda w: jnp.tril(w),
    "blocks": lambda w: jnp.kron(jnp.eye(2), w[:2, :2]),
    "entries set to zero": lambda w: w.at[0].set(0.0),
    "small entries cut": lambda w: jnp.where(jnp.abs(w) > 0.1, w, 0.0),
    "a truth value as factor": lambda w: w * (jnp.abs(w) > 0.1),
}
UNMASKED = {
    "a number": lambda w: 0.5 * w,
    "a mask of ones": lambda w: w * np.ones((4, 4), np.float32),
    "scales": lambda w: w * np.arange(1.0, 5.0, dtype=np.float32),
    "standardisation": lambda w: (w - w.mean(0)) / w.std(0),
    "a leak": lambda w: jnp.where(w > 0, w, 0.1 * w),
}


def test_a_kernel_that_one_of_its_products_masks_is_masked():
    def fn(params, x):
        return x @ params["w"] @ jnp.tril(params["w"])

    program, _ = program_of(fn, (W, jnp.ones((2, 4))), {})
    assert program.sites["kernel"].masked


@pytest.mark.parametrize("what", [*MASKED, *UNMASKED])
def test_a_mask_is_what_sets_entries_to_zero(what):
    change = {**MASKED, **UNMASKED}[what]
    program, _ = program_of(lambda params, x: x @ change(params["w"]), (W, jnp.ones((2, 4))), {})
    assert program.sites["kernel"].masked == (what in MASKED)


def pruned(rule, share=0.5):
    """A layer half of whose weights are zero, with a quantizer, and what the doctor says of it."""
    model = bj.Quantized(nn.Dense(16), [rule])
    x = np.random.default_rng(2).normal(size=(4, 32)).astype(np.float32)
    kernel = np.random.default_rng(3).normal(size=(32, 16)).astype(np.float32)
    kernel.ravel()[: round(share * kernel.size)] = 0.0
    variables = {"params": {"kernel": kernel, "bias": np.zeros(16, np.float32)}}
    return doctor(model, bj.attach(model, variables, x), x)


def test_the_doctor_says_that_pruned_weights_come_back():
    (finding,) = pruned(bj.rule("kernel", bj.bitlength(4.0)))
    assert (finding.level, finding.site) == ("error", "kernel")
    assert "has 50 % zeros, and pruned weights come back: use zero_on_grid=True" in finding.message
    assert not pruned(bj.rule("kernel", bj.bitlength(4.0, zero_on_grid=True)))
    assert not pruned(bj.rule("kernel", bj.bitlength(4.0)), share=0.005)


def attention(params, x):
    """Causal attention of one head."""
    q, v = x @ params["q"], x @ params["v"]
    scores = jnp.where(jnp.tril(jnp.ones((len(x), len(x)))) > 0, q @ x.T, -jnp.inf)
    return jax.nn.softmax(scores) @ v


def test_the_doctor_says_that_masked_attention_comes_back():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(6, 4)).astype(np.float32)
    variables = {"params": {name: np.float32(rng.normal(size=(4, 4))) for name in "qv"}}

    def said(quantizer):
        model = bj.Function(attention, [bj.rule("product1/left", quantizer)])
        found = doctor(model, bj.attach(model, variables, x), x)
        return [f for f in found if "what a mask takes away comes back" in f.message]

    (finding,) = said(bj.bitlength(4.0, range="learned"))
    assert (finding.level, finding.site) == ("warning", "product1/left")
    assert not said(bj.bitlength(4.0, range="learned", zero_on_grid=True))
