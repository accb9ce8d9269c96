"""The laws that every quantizer keeps, as functions that ask one of them.

Training, export and costs rely on these and on nothing else of a quantizer. `check_quantizer` asks
all of them, and those of its traits (`trait_laws`), on fixed tensors; a test with more time draws
its own and calls the laws.
"""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.checks import NONE, checked, either, instance
from bitjax.quantizers.base import QUANTIZER, Axes, Params, Quantizer, Stats
from bitjax.quantizers.subject import (
    EPS,
    KEY,
    ULPS,
    Claims,
    Subject,
    equal,
    numbers,
    require,
    some,
    subject,
    tensor,
    with_bits,
)
from bitjax.quantizers.trait_laws import TRAIT_LAWS


def keeps_shape_and_dtype(s: Subject, x: jax.Array) -> None:
    """x_hat has x's shape and dtype; what is stored is float32, with `bits` among it."""
    law, q = "shape and dtype are kept", s.quantizer

    def everything(x):
        params, stats = q.init(x, s.axes)
        require("bits" in params, s, law, f"`params` has no leaf 'bits', only {sorted(params)}")
        moved = stats
        if q.measure is not None and q.update is not None:
            moved = q.update(stats, q.measure(params, stats, x))
        training = q.apply(params, stats, x, train=True, key=jax.random.key(KEY))
        return params, stats, moved, (q.apply(params, stats, x), training)

    params, stats, moved, values = jax.eval_shape(everything, x)
    for leaf in jax.tree.leaves((params, stats)):
        require(leaf.dtype == jnp.float32, s, law, f"a leaf is stored as {leaf.dtype}, no float32")
    same = jax.tree.map(str, moved) == jax.tree.map(str, stats)
    require(same, s, law, f"`update` makes {moved} of {stats}")
    for value, name in zip(values, ("evaluation", "training"), strict=True):
        found, wanted = (value.shape, value.dtype), (x.shape, x.dtype)
        require(found == wanted, s, law, f"{wanted} becomes {found} in {name}")


def decodes_exactly(s: Subject, x: jax.Array, fitted: tuple[Params, Stats] | None = None) -> None:
    """With whole bits, decoding the codes gives exactly what `apply` gives, and codes fit the bits.

    `fitted` is what `init` made of another tensor, perhaps of another dtype; None takes x.
    """
    law = "decoding the codes gives exactly what apply gives"
    params, stats = fitted or s.init(x)
    for bits in s.claims.bits:
        params = with_bits(params, bits)
        codes, decoded = s.roundtrip(params, stats, x)
        x_hat = numbers(s.apply(params, stats, x))
        equal(numbers(decoded.astype(x.dtype)), x_hat, 0.0, s, law, f"at {bits} bits", "decoded")
        if s.claims.grid:
            stored = np.asarray(codes.codes)
            low, high = stored.min(), stored.max()
            fit = low >= 0 and high <= 2**bits - 1 - (s.quantizer.traits.narrow and bits > 0)
            require(fit, s, law, f"at {bits} bits codes are {low} to {high}")
        if bits == 0:
            require(not x_hat.any(), s, law, "at 0 bits something is not 0")


def errs_at_most_half_a_step(s: Subject, x: jax.Array) -> None:
    """Inside the range, the error is at most half of the distance between levels."""
    law = "the error is at most half a step inside the range"
    params, stats = s.init(x)
    for bits in some(s.claims.bits, (1, 2, 5, 8, 16)):
        params = with_bits(params, bits)
        last = 2**bits - 1 - s.quantizer.traits.narrow
        codes, _ = s.roundtrip(params, stats, x)
        low, high = (
            numbers(s.decode(params, stats, codes._replace(codes=jnp.full_like(codes.codes, c))))
            for c in (0, last)
        )
        step = (high - low) / last
        error = np.abs(numbers(s.apply(params, stats, x)) - np.clip(numbers(x), low, high))
        rounding = 4 * EPS * np.abs(np.stack([low, high, numbers(x)])).max(0)
        worst = float(np.max(error - rounding - 0.51 * step))
        require(worst <= 0, s, law, f"at {bits} bits it is {worst:g} more")


def changes_nothing_twice(s: Subject, x: jax.Array) -> None:
    """Quantizing what is quantized changes nothing."""
    law = "quantizing twice changes nothing"
    params, stats = s.init(x)
    for bits in some(s.claims.bits, (0, 1, 3, 8, 16)):
        once = s.apply(with_bits(params, bits), stats, x)
        twice = s.apply(with_bits(params, bits), stats, once)
        ulp = EPS * np.abs(numbers(once)).max()
        equal(numbers(twice), numbers(once), ULPS * ulp, s, law, f"at {bits} bits", "twice")


def keeps_a_constant(s: Subject, x: jax.Array) -> None:
    """A constant tensor comes out as it is, within the ulps that are claimed."""
    law = "a constant tensor comes out as it is"
    params, stats = s.init(x)
    value = float(np.abs(numbers(x)).max())
    if value == 0 and not stats and not s.quantizer.traits.zero_is_code:
        return  # the clip of a tensor of zeros is 1, and the ends alone do not hold 0
    own = float(np.max(params["bits"]))
    fraction = (2.5, 7.3) if s.claims.fractional else ()
    for bits in (*s.claims.bits, *fraction) if s.claims.any_bits else (own,):
        if bits >= 1:
            x_hat = numbers(s.apply(with_bits(params, bits), stats, x))
            atol = float(s.claims.constant or 0) * float(np.spacing(np.float32(value)))
            equal(x_hat, numbers(x), atol, s, law, f"at {bits:g} bits", "x_hat")


def has_finite_gradients(
    s: Subject, tensors: Iterable[jax.Array], weights: jax.Array, bits: Sequence[float]
) -> None:
    """Gradients to parameters and statistics are finite, and new values compile nothing."""
    law, traced = "gradients are finite", []

    @jax.jit
    def gradient(params, stats, x, weights, key):
        traced.append(1)

        def loss(params, x):
            return jnp.sum(s.quantizer.apply(params, stats, x, train=True, key=key) * weights)

        return jax.grad(loss, argnums=(0, 1))(params, x)

    for i, x in enumerate(tensors):
        params, stats = s.init(x)
        for n in bits:
            found = gradient(with_bits(params, n), stats, x, weights, jax.random.key(i))
            for path, leaf in jax.tree_util.tree_leaves_with_path(found):
                name = "x" if path[0].idx else path[-1].key
                finite = bool(np.isfinite(numbers(leaf)).all())
                require(finite, s, law, f"not to {name} at {n:g} bits")
    require(len(traced) == 1, s, "new values compile nothing", f"they compiled {len(traced)} times")


def agrees_with_eager(s: Subject, x: jax.Array) -> None:
    """Compiled and eager differ in a code at most where x lies on its boundary."""
    law, q = "jit and eager differ only at the boundary of a code", s.quantizer
    params, stats = s.init(x)
    codes, _ = s.roundtrip(params, stats, x)
    eager, compiled = q.decode(params, stats, codes), s.decode(params, stats, codes)
    ulp = EPS * float(jnp.max(jnp.abs(x)))
    equal(numbers(eager), numbers(compiled), ULPS * ulp, s, law, "decoding", "eager")
    _equal_but_on_boundaries(s, law, x, q.apply(params, stats, x), s.apply(params, stats, x))


def maps_over_a_stack(s: Subject, x: jax.Array, bits: Sequence[float]) -> None:
    """A stack of parameters under `jax.vmap` gives what a loop over them gives."""
    law = "a stack of parameters under vmap equals a loop"
    params, stats = s.init(x)
    stack = [with_bits(params, n) for n in bits]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *stack)
    together = jax.jit(jax.vmap(lambda p: s.quantizer.apply(p, stats, x)))(stacked)
    for member, params in zip(together, stack, strict=True):
        _equal_but_on_boundaries(s, law, x, member, s.apply(params, stats, x))


def refuses_an_empty_tensor(s: Subject, shape: tuple[int, ...] = (0, 4)) -> None:
    """A tensor without elements is a ValueError that says so and gives the shape."""
    law = "an empty tensor is an error that says so"
    try:
        jax.eval_shape(lambda x: s.quantizer.init(x, s.axes), jnp.zeros(shape))
    except ValueError as error:
        said = "at least one element" in str(error) and str(shape) in str(error)
        require(said, s, law, f"it says {' '.join(str(error).split())!r}")
    else:
        require(False, s, law, "there is none; `blocks.block_shape` raises it")


@checked(
    quantizer=QUANTIZER, claims=either(NONE, instance(Claims)), axes=either(NONE, instance(Axes))
)
def check_quantizer(
    quantizer: Quantizer, claims: Claims | None = None, *, axes: Axes | None = None
) -> None:
    """Asks a quantizer every law that it claims, on fixed tensors of shape [6, 4].

    Args:
      quantizer: any quantizer, of this project or not. Its traits are asked too.
      claims: what the quantizer claims beyond what is asked of all; if None, everything, from 1 to
        16 bits.
      axes: which axes of the tensors are channels and groups; by default the last and the first.

    Raises:
      BrokenLaw: it does not keep a law; one line says which, and where.
      ValueError: it claims no bits.

    Example:
      >>> from bitjax.quantizers.uniform import uniform
      >>> check_quantizer(uniform(bits=4), Claims(bits=(2, 4, 8)))
    """
    s = subject(quantizer, claims, axes)
    claims, own = s.claims, list(s.claims.bits)
    if not own:
        raise ValueError("`claims.bits` must name at least one code length, got none.")
    few = sorted({own[0], own[len(own) // 2], own[-1]})
    tried = [*few, *((n + 0.5 for n in few[:-1]) if claims.fractional else ())]
    for dtype in ("float32", "bfloat16", "float64"):
        fitted = s.init(tensor(7, 3.0, 1.0)) if dtype != "float32" else None
        with jax.enable_x64(dtype == "float64"):
            keeps_shape_and_dtype(s, tensor(dtype=dtype))
            decodes_exactly(s, tensor(7, 3.0, 1.0, dtype), fitted)
    for seed, scale, offset in ((0, 1.0, 0.0), (1, 1e-6, 1.0), (2, 1e6, -3.0), (3, 20.0, 5.0)):
        x = tensor(seed, scale, offset)
        decodes_exactly(s, x)
        if claims.grid and claims.ordered:
            errs_at_most_half_a_step(s, x)
        if claims.grid and claims.steady:
            changes_nothing_twice(s, x)
    if claims.constant is not None:
        for value in (0.0, 0.1, -7.3, 1e-9, 1e9):
            value = abs(value) if quantizer.traits.numbers == "unsigned" else value
            keeps_a_constant(s, jnp.full((6, 4), value, jnp.float32))
    tensors = (tensor(), jnp.zeros((6, 4)), jnp.full((6, 4), -2.0, jnp.float32))
    has_finite_gradients(s, tensors, tensor(1), tried)
    agrees_with_eager(s, tensor(3, 2.0))
    maps_over_a_stack(s, tensor(4), few)
    if claims.grid:
        refuses_an_empty_tensor(s)
    for law in TRAIT_LAWS:
        law(s, tensor(5, 2.0))


def _equal_but_on_boundaries(s, law, x, a, b):
    """Two roundings of x: within 4 ulp of the range, or neighbours that x lies between."""
    x, a, b = numbers(x), numbers(a), numbers(b)
    span = np.abs(x).max()
    differ = ~(np.abs(a - b) <= ULPS * EPS * span)
    beside = np.abs(x - (a + b) / 2)[differ] <= 1e-5 * span
    require(bool(beside.all()), s, law, f"{np.sum(~beside)} of {x.size} elements differ elsewhere")
