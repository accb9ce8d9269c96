"""The subject of the laws: a quantizer with its claims, and the helpers that judge it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.quantizers.base import Axes, Params, Quantizer

EPS = float(np.finfo(np.float32).eps)
ULPS = 4  # of the range: what two programs' rounding may differ by
KEY = 0


class BrokenLaw(AssertionError):
    """A quantizer does not keep a law; one line that names both."""


class Claims(NamedTuple):
    """What a quantizer claims beyond what is asked of all.

    Attributes:
      bits: the code lengths that it can have.
      constant: ulps by which a constant tensor may be off; None claims nothing.
      grid: whether it rounds at all.
      ordered: whether codes rise with what they stand for, in equal steps.
      steady: whether its range stays where it is in `apply`, so that quantizing twice changes
        nothing.
      fractional: whether bits in between are values too; always so where bits are learned.
      any_bits: whether its range serves other bits than it was fitted for; else constants are
        asked at those alone.
    """

    bits: Sequence[int] = range(1, 17)
    constant: float | None = 0
    grid: bool = True
    ordered: bool = True
    steady: bool = True
    fractional: bool = False
    any_bits: bool = True


class Subject(NamedTuple):
    """A quantizer that is asked, with its functions compiled apart, as training and export do."""

    quantizer: Quantizer
    claims: Claims
    axes: Axes  # which axes of the tensors that it is asked with are channels and groups
    init: Callable[..., Any]  # (x) -> (params, stats)
    apply: Callable[..., Any]  # (params, stats, x) -> x_hat, as in evaluation
    decode: Callable[..., Any]  # (params, stats, codes) -> levels
    roundtrip: Callable[..., Any]  # (params, stats, x) -> (codes, levels)


def subject(
    quantizer: Quantizer, claims: Claims | None = None, axes: Axes | None = None
) -> Subject:
    """A quantizer ready to be asked; its programs compile once for each shape and dtype."""
    axes = Axes((-1,), -2) if axes is None else axes
    claims = claims or Claims()
    if quantizer.traits.learns_bits is not None:
        claims = claims._replace(fractional=True)

    def roundtrip(params, stats, x):
        codes = quantizer.encode(params, stats, x)
        return codes, quantizer.decode(params, stats, codes)

    return Subject(
        quantizer,
        claims,
        axes,
        jax.jit(lambda x: quantizer.init(x, axes)),
        jax.jit(lambda params, stats, x: quantizer.apply(params, stats, x)),
        jax.jit(lambda params, stats, codes: quantizer.decode(params, stats, codes)),
        jax.jit(roundtrip),
    )


def with_bits(params: Params, bits: float) -> dict[str, Any]:
    """The parameters at other bits; of the same shape, so that nothing compiles anew."""
    return {**params, "bits": np.full(params["bits"].shape, bits, np.float32)}


def numbers(x: jax.Array) -> np.ndarray:
    """An array as numpy has it: bfloat16, which it has not, as float32."""
    return np.asarray(x.astype(jnp.promote_types(x.dtype, jnp.float32)))


def tensor(seed=0, scale=1.0, offset=0.0, dtype="float32"):
    """A fixed tensor of shape [6, 4]."""
    values = (np.random.default_rng(seed).normal(size=(6, 4)) + offset) * scale
    return jnp.asarray(values, dtype)


def some(bits, few):
    """The few of them, where they are among the bits; else all bits."""
    return [n for n in bits if n in few] or list(bits)


def equal(found, wanted, atol, s, law, where, name):
    """Two arrays within atol; NaN is equal to nothing."""
    require(found.shape == wanted.shape, s, law, f"{where} {wanted.shape} became {found.shape}")
    off = np.argwhere(~(np.abs(found - wanted) <= atol))
    if len(off):
        place = tuple(off[0].tolist())
        detail = f"{name} is {found[place]} at {list(place)}, not {wanted[place]}"
        require(False, s, law, f"{where} {detail} ({len(off)} of {found.size} elements are off)")


def require(condition, s, law, detail):
    """Raises `BrokenLaw`, in one line, unless the condition holds."""
    if not condition:
        raise BrokenLaw(f"{s.quantizer.name} breaks '{law}': {detail}.")
