"""The laws that hold a quantizer to its traits: what it says of itself must be so.

Each law passes at once where the quantizer does not say the trait.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.quantizers import blocks
from bitjax.quantizers.base import Numbers
from bitjax.quantizers.coding import codes_of_integers, integers_of_codes
from bitjax.quantizers.subject import (
    EPS,
    KEY,
    ULPS,
    Subject,
    equal,
    numbers,
    require,
    some,
    with_bits,
)

_FEW = (1, 2, 3, 5, 8)


def learns_its_bits(s: Subject, x: jax.Array) -> None:
    """Learned bits start within their bounds, and a loss has a finite slope to them that moves."""
    if s.quantizer.traits.learns_bits is None:
        return
    law, (least, most) = (
        "learned bits start in their bounds and move",
        s.quantizer.traits.learns_bits,
    )
    params, stats = s.init(x)
    start = numbers(params["bits"])
    inside = bool(np.all((least <= start) & (start <= most)))
    require(inside, s, law, f"they start at {start.ravel()[0]:g}, outside {least:g} to {most:g}")
    if np.floor(most) - np.ceil(least) < 1:
        return  # nothing lies between two whole numbers
    between = min(max(np.ceil(least), 3.0), np.floor(most) - 1.0) + 0.4
    slope = _slopes(s, with_bits(params, between), stats, x)[0].get("bits")
    name = f"the gradient to `bits` at {between:g}"
    require(bool(np.isfinite(slope).all()), s, law, f"{name} is not finite")
    require(bool(np.any(slope)), s, law, f"{name} is 0 everywhere")


def freezes(s: Subject, x: jax.Array) -> None:
    """What `frozen` gives takes the same leaves, has the same levels at whole bits, learns neither.

    Leaves that only learning needs may go. A range may move so that 0.0 becomes a code where bits
    are learned; levels then move with it.
    """
    q, law = s.quantizer, "frozen, it has the same leaves and levels"
    if q.frozen is None:
        must = q.traits.learns_bits is not None or q.traits.stored_scale
        require(not must, s, law, "there is no `frozen`, which learned bits and stored scales need")
        return
    held, (params, stats) = q.frozen(), s.init(x)
    require(held.traits.learns_bits is None, s, law, "it still says that it learns its bits")
    found, wanted = (_shapes(quantizer, s.axes, x) for quantizer in (held, q))
    require(found.items() <= wanted.items(), s, law, f"its leaves are {found}, not {wanted}")
    again = s._replace(
        quantizer=held,
        apply=jax.jit(lambda params, stats, x: held.apply(params, stats, x)),
        decode=jax.jit(lambda params, stats, codes: held.decode(params, stats, codes)),
    )
    exact = q.traits.zero_is_code or q.traits.learns_bits is None
    for bits in some(s.claims.bits, _FEW):
        params = with_bits(params, bits)
        x_hat = again.apply(params, stats, x)
        decoded = again.decode(params, stats, jax.jit(held.encode)(params, stats, x))
        equal(numbers(decoded), numbers(x_hat), 0.0, s, law, f"frozen at {bits} bits", "decoded")
        if exact:
            before = numbers(s.apply(params, stats, x))
            equal(numbers(x_hat), before, 0.0, s, law, f"frozen at {bits} bits", "x_hat")
    if q.traits.stored_scale:
        slope = _slopes(again, params, stats, x)[1]
        require(not np.any(slope), s, law, "its codes still follow x: the gradient to x is not 0")


def cuts_below_zero(s: Subject, x: jax.Array) -> None:
    """Of unsigned numbers, and of a rectifier, what is below 0 becomes 0."""
    traits, law = s.quantizer.traits, "what is below 0 becomes 0"
    if traits.numbers != "unsigned" and not traits.rectifies:
        return
    params, stats = s.init(x)
    for bits in some(s.claims.bits, _FEW):
        x_hat = numbers(s.apply(with_bits(params, bits), stats, -jnp.abs(x)))
        worst = float(x_hat.ravel()[np.argmax(np.abs(x_hat))])
        require(worst == 0, s, law, f"at {bits} bits something below 0 becomes {worst:g}")


def scales_its_codes(s: Subject, x: jax.Array) -> None:
    """With a stored scale, a level is an integer times the leaf `scale`, whatever that is."""
    if not s.quantizer.traits.stored_scale:
        return
    law = "a level is an integer times the stored scale"
    params, stats = s.init(x)
    require("scale" in params, s, law, f"`params` has no leaf 'scale', only {sorted(params)}")
    codes, levels = s.roundtrip(params, stats, x)
    scale = numbers(params["scale"])
    whole = numbers(levels) / np.where(scale == 0, 1.0, scale)
    equal(whole, np.rint(whole), ULPS * EPS * np.abs(whole).max(), s, law, "in scales", "a level")
    double = s.decode({**params, "scale": 2.0 * params["scale"]}, stats, codes)
    equal(numbers(double), 2.0 * numbers(levels), 0.0, s, law, "at twice the scale", "a level")


def divides_its_gradients(s: Subject, x: jax.Array) -> None:
    """The gradient to a normalized leaf is divided by the root of the number of elements."""
    law = "normalized gradients are divided by the root of the number of elements"
    params, stats = s.init(x)
    for leaf in s.quantizer.traits.normalized:
        require(leaf in params, s, law, f"`params` has no leaf {leaf!r}, only {sorted(params)}")
        # Each row twice: the sum doubles, and its divisor grows by the root of 2.
        once, twice = (_slopes(s, params, stats, x, n)[0][leaf] for n in (1, 2))
        atol = 1e-4 * float(np.abs(twice).max())
        equal(twice, np.sqrt(2.0) * once, atol, s, law, f"to {leaf!r} of each row twice", "it")


def adds_up_its_planes(s: Subject, x: jax.Array) -> None:
    """The level of a code of planes is the sum of the levels of its planes."""
    planes, law = s.quantizer.traits.planes, "the level of a code is the sum of its planes'"
    if planes is None:
        return
    params, stats = s.init(x)
    leaves: dict[str, tuple[int, ...]] = {"shift": ()}
    if planes.scale == "learned":
        leaves["scale"] = ()
    if planes.coefficients != "power_of_two":
        leaves["coefficients"] = (planes.depth,)
    for leaf, shape in leaves.items():
        found = params[leaf].shape if leaf in params else None
        require(
            found == shape, s, law, f"`params` must have {leaf!r} of shape {shape}, has {found}"
        )
    for bits in some(s.claims.bits, (2, 5, 8)):
        params = with_bits(params, bits)
        codes, _ = s.roundtrip(params, stats, x)
        count = bits - (s.quantizer.traits.numbers == "signed")
        magnitude = codes.codes & 2**count - 1
        total, size = np.zeros(x.shape), 0.0
        for i in range(count):
            plane = codes._replace(codes=jnp.full_like(magnitude, 2**i))
            level = numbers(s.decode(params, stats, plane)).astype(np.float64)
            total, size = total + level * (np.asarray(magnitude) >> i & 1), size + np.abs(level)
        levels = numbers(s.decode(params, stats, codes._replace(codes=magnitude)))
        atol = ULPS * EPS * float(np.max(size))
        equal(levels, total, atol, s, law, f"at {bits} bits", "a level")


def keeps_zeros(s: Subject, x: jax.Array) -> None:
    """With zero as a code, 0.0 stays 0.0 whatever the range was fitted to, in training too."""
    law = "what is 0 stays 0"
    if not s.quantizer.traits.zero_is_code:
        return

    @jax.jit
    def both(params, stats, x):
        training = s.quantizer.apply(params, stats, x, train=True, key=jax.random.key(KEY))
        return {"evaluation": s.quantizer.apply(params, stats, x), "training": training}

    above = jnp.abs(x) + 1.0
    columns = (jnp.arange(x.shape[-1]) - 1.0) * 10.0 ** jnp.arange(x.shape[-1])
    tensors = (x, above, -above, 1e-6 * above, -1e6 * above, above * columns.astype(x.dtype))
    between = (0.3, 0.5, 2.3, 4.5, 7.9) if s.claims.fractional else ()
    tried = [*some(s.claims.bits, (0, *_FEW, 16)), *between]
    zero = np.arange(x.size).reshape(x.shape) % 3 == 1
    for fitted in tensors:
        params, stats = s.init(fitted)
        given = jnp.where(zero, jnp.zeros_like(fitted), fitted)
        for bits in tried:
            if bits < 1 and 0 not in s.claims.bits:
                continue
            for where, x_hat in both(with_bits(params, bits), stats, given).items():
                worst = float(np.abs(numbers(x_hat)[zero]).max())
                require(worst == 0, s, law, f"at {bits:g} bits 0 becomes {worst:g} in {where}")
            levels = s.roundtrip(with_bits(params, bits), stats, given)[1]
            worst = float(np.abs(numbers(levels)[zero]).max())
            require(worst == 0, s, law, f"at {bits:g} bits 0 is decoded as {worst:g}")


def tells_its_numbers(s: Subject, x: jax.Array) -> None:
    """Levels are the scale of `numbers` times whole integers between its ends, which codes hold."""
    q, law = s.quantizer, "levels are integers times the scale of its numbers"
    both = (q.numbers is None) == (q.integers is None)
    require(both, s, law, "`numbers` and `integers` go together")
    if q.numbers is None or q.integers is None:
        return
    params, stats = s.init(x)

    @jax.jit
    def told(params, stats, x):
        told, integers = q.numbers(params, stats), q.integers(params, stats, x)
        spread = Numbers(*(blocks.spread(a, x.shape) for a in told))
        codes = codes_of_integers(q, told, integers)
        return spread, integers, codes, integers_of_codes(q, told, codes)

    for bits in some(s.claims.bits, _FEW):
        params = with_bits(params, bits)
        codes, levels = s.roundtrip(params, stats, x)
        spread, integers, stored, again = jax.tree.map(np.asarray, told(params, stats, x))
        where = f"at {bits} bits"
        whole = (integers == np.rint(integers)) & (spread.first <= integers)
        whole &= integers <= spread.last
        require(bool(whole.all()), s, law, f"{where} an integer is none, or outside its ends")
        equal(stored, np.asarray(codes.codes), 0.0, s, law, where, "a code")
        equal(again, integers, 0.0, s, law, where, "the integer of a code")
        if q.traits.narrow:
            opposite = bool((spread.first == -spread.last).all())
            require(opposite, s, law, f"{where} an integer of a narrow range has no opposite")
        ends = np.maximum(np.abs(spread.first), np.abs(spread.last)) * np.abs(spread.scale)
        atol = 2 * EPS * float(ends.max())
        if q.traits.power_of_two:
            atol, (share, power) = 0.0, np.frexp(spread.scale)
            exact = (spread.scale == 0) | (
                (share == 0.5) & (spread.rate == np.ldexp(1.0, 1 - power))
            )
            require(bool(exact.all()), s, law, f"{where} a scale is no power of two, or its rate")
        equal(spread.scale * integers, numbers(levels), atol, s, law, where, "scale * integer")


TRAIT_LAWS = (
    learns_its_bits,
    freezes,
    cuts_below_zero,
    scales_its_codes,
    divides_its_gradients,
    adds_up_its_planes,
    keeps_zeros,
    tells_its_numbers,
)


def _shapes(quantizer, axes, x) -> dict[str, tuple[int, ...]]:
    params, stats = jax.eval_shape(lambda x: quantizer.init(x, axes), x)
    return {name: leaf.shape for name, leaf in {**params, **stats}.items()}


def _slopes(s: Subject, params, stats, x, times: int = 1) -> Any:
    """Gradients to the parameters and to x, each of whose rows is there so many times."""
    weights = jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    x, weights = (jnp.repeat(a, times, axis=0) for a in (x, weights))

    def loss(params, x):
        key = jax.random.key(KEY)
        return jnp.sum(s.quantizer.apply(params, stats, x, train=True, key=key) * weights)

    return jax.tree.map(np.asarray, jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x))
