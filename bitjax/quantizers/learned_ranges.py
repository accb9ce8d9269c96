"""Fixed-bit grids whose range training moves: a learned scale (LSQ), a learned clip (PACT).

LSQ: Esser et al., arXiv 1902.08153. PACT: Choi et al., arXiv 1805.06085.
"""

import jax
import jax.numpy as jnp

from bitjax.checks import SWITCH, check_one, checked, choice, either, number
from bitjax.quantizers import blocks, ranges
from bitjax.quantizers.base import BITS, Quantizer, Traits
from bitjax.quantizers.forms import ZERO, check_form, form_of, power_of_two, said
from bitjax.quantizers.grid import Grid, fake_quant, steps_of
from bitjax.quantizers.ste import scale_gradient
from bitjax.quantizers.uniform import HARDWARE, SHARED, affine, tried_of


@checked(signed=SWITCH, init_range=choice("mse", "lsq"), **SHARED, **HARDWARE)
def lsq(
    bits: float = 8,
    *,
    signed: bool = True,
    granularity: str = "per_tensor",
    group_size: int | None = None,
    init_range: str = "mse",
    scale: str = "free",
    narrow: bool = False,
) -> Quantizer:
    """Learned step size quantization: the scale is a parameter.

    x_hat = scale * clip(round(x / scale), qmin, qmax), with codes -2^(bits-1) .. 2^(bits-1) - 1 if
    signed, 0 .. 2^bits - 1 if not. Gradients: to x, 1 inside and 0 outside; to scale,
    round(v) - v inside, qmin or qmax outside, times 1 / sqrt(N qmax) as in the paper's section 2.2.
    N counts the elements that share the scale; in a model, an input's are those of one example. A
    scale is kept above 0 by its absolute value.

    Args:
      bits: integer code length; 2 to 16 signed, 1 to 16 unsigned.
      signed: whether codes lie on both sides of 0.
      granularity: what shares a scale: `per_tensor`, `per_channel` or `per_group`.
      group_size: elements of a group, with `per_group`.
      init_range: `mse` starts at the scale of least squared error, `lsq` at the paper's
        2 mean|x| / sqrt(qmax).
      scale: `power_of_two` rounds the scale to the nearest one in the exponent, at the start to the
        one of least squared error. Rescaling is then a shift, and every level is exact. The
        gradient is that of the scale before.
      narrow: whether the least code, -2^(bits - 1), is left out; with `signed=True`.

    Raises:
      ValueError: an argument is outside what is listed above.

    Example:
      >>> from bitjax.quantizers.base import Axes
      >>> q = lsq(bits=2, init_range="lsq")
      >>> params, stats = q.init(jnp.array([-1.0, 1.0]), Axes())
      >>> float(params["scale"])
      2.0

    Source: Esser et al., arXiv 1902.08153, eq. 1-3 and 5. Departure: the start by squared error;
      on a constant tensor the result is within 4 ulp, not exact, since the scale is what is stored.
    """
    check_one("bits", BITS._replace(low=1 + signed), bits)
    blocks.check_granularity(granularity, group_size)
    check_form(scale, narrow, signed, True, bits)
    lies = form_of(scale, narrow, signed, True)
    tried = tried_of(lies)

    def code_limits(n):
        count = steps_of(n, lies)
        qmin = -(count + (not narrow)) / 2.0 if signed else jnp.zeros_like(count)
        return qmin, count + qmin, count

    def grid_from_scale(scale, n):
        qmin, _, count = code_limits(n)
        return Grid(qmin * scale, count * scale)

    def init(x, axes):
        block = blocks.block_shape(x.shape, axes, granularity, group_size)
        n = jnp.float32(bits)
        _, qmax, _ = code_limits(n)
        if init_range == "lsq":
            cut, inner = blocks.split(jnp.abs(x).astype(jnp.float32), block)
            start = 2.0 * jnp.mean(cut, axis=inner).reshape(block) / jnp.sqrt(qmax)
        else:

            def quantize(x, low, high):
                del low
                return fake_quant(x, grid_from_scale(high / qmax, n), n, tried)

            low, high = ranges.calibrate(x, block, "mse", signed=signed, quantize=quantize)
            # A constant block's range ends at 0 on one side; the other side sets the scale.
            start = jnp.maximum(high, -low if signed else high) / qmax
            if lies.rounded:
                start, _ = power_of_two(start, "up")
        return {"bits": n, "scale": jnp.where(start > 0, start, 1.0).astype(jnp.float32)}, {}

    def grid_of(params, stats, train):
        del stats, train
        n = jax.lax.stop_gradient(params["bits"])
        return grid_from_scale(jnp.abs(params["scale"]), n)

    base = affine(
        init,
        grid_of,
        lies=lies,
        name="lsq",
        form={"bits": bits, "granularity": granularity, "signed": signed} | said(scale, narrow),
        traits=Traits(
            numbers="signed" if signed else "unsigned",
            normalized=("scale",),
            zero_is_code=True,
            power_of_two=lies.rounded is not None,
            narrow=narrow,
        ),
    )

    def apply(params, stats, x, *, train=False, key=None):
        _, qmax, _ = code_limits(params["bits"])
        per_block = x.size / max(1, params["scale"].size)
        factor = 1.0 / jnp.sqrt(per_block * jnp.maximum(qmax, 1.0))
        scale = scale_gradient(params["scale"], jax.lax.stop_gradient(factor))
        return base.apply({**params, "scale": scale}, stats, x, train=train, key=key)

    return base._replace(apply=apply)


@checked(signed=SWITCH, init_clip=either(choice("mse"), number(0, above=True)), **SHARED)
def pact(
    bits: float = 8,
    *,
    signed: bool = False,
    granularity: str = "per_tensor",
    group_size: int | None = None,
    init_clip: float | str = "mse",
) -> Quantizer:
    """Parameterized clipping activation: the upper end of the range is a parameter.

    x_hat = scale * round(clip(x, 0, clip_max) / scale), scale = clip_max / (2^bits - 1). Gradients:
    to x, 1 inside and 0 outside; to clip_max, 0 inside and 1 for each clipped element, the paper's
    eq. 3. The paper adds L2 decay on clip_max: give its label weight decay.

    Args:
      bits: integer code length, 1 to 16.
      signed: clip to [-clip_max, clip_max] instead, with 0.0 kept a code (not in the paper).
      granularity: what shares a clip: `per_tensor`, `per_channel` or `per_group`.
      group_size: elements of a group, with `per_group`.
      init_clip: a number, or `mse` for the clip of least squared error.

    Raises:
      ValueError: an argument is outside what is listed above.

    Example:
      >>> from bitjax.quantizers.base import Axes
      >>> q = pact(bits=2, init_clip=3.0)
      >>> params, stats = q.init(jnp.array([0.0, 9.0]), Axes())
      >>> q.apply(params, stats, jnp.array([1.4, 9.0])).tolist()
      [1.0, 3.0]

    A constant tensor comes out exactly if unsigned; signed, its end of the range may be no level.

    Source: Choi et al., arXiv 1805.06085, eq. 1-3.
    """
    blocks.check_granularity(granularity, group_size)

    def grid_from_clip(clip_max):
        return Grid(-clip_max if signed else jnp.zeros_like(clip_max), clip_max * (1 + signed))

    def init(x, axes):
        block = blocks.block_shape(x.shape, axes, granularity, group_size)
        n = jnp.float32(bits)
        if isinstance(init_clip, str):  # `mse`

            def quantize(x, low, high):
                del low
                return fake_quant(x, grid_from_clip(high), n, ZERO)

            low, high = ranges.calibrate(x, block, "mse", signed=signed, quantize=quantize)
            clip_max = jnp.maximum(high, -low if signed else high)
        else:
            clip_max = jnp.full(block, init_clip, jnp.float32)
        return {"bits": n, "clip_max": jnp.where(clip_max > 0, clip_max, 1.0)}, {}

    def grid_of(params, stats, train):
        del stats, train
        return grid_from_clip(jnp.abs(params["clip_max"]))

    return affine(
        init,
        grid_of,
        lies=ZERO,
        clipped_only=True,
        name="pact",
        form={"bits": bits, "granularity": granularity, "signed": signed},
        traits=Traits(numbers="signed" if signed else "unsigned", zero_is_code=True),
    )
