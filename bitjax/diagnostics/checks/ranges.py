"""Findings on what a quantizer does to its tensor: zeros, clipping, codes unused, its gradient."""

from collections.abc import Callable, Iterator

import numpy as np

from bitjax.diagnostics.checks.layers import calls
from bitjax.diagnostics.checks.variables import stored
from bitjax.diagnostics.findings import Found
from bitjax.diagnostics.measure import Measured, read_leaf
from bitjax.diagnostics.spots import Spot
from bitjax.variables import QUANT, STATS, read_site

_MOSTLY_ZERO = {"kernel": 0.9, "input": 0.98}  # share of zeros; of other roles, all
_SATURATED = 0.05
# A fresh kernel has no zeros in float32, and 0.8 % of them in bfloat16; pruning begins far above.
_PRUNED = 0.01
_HARDLY_USED = 0.1  # share of a range that the elements reach
_FEW_CODES = 8.0  # and codes that this leaves
_OUTLIER = 10.0  # the largest element over their mean size
_CRUSHED, _SMALL = 0.2, 0.1  # share of filters; a filter's size beside that of the middle one
_TOO_SMALL, _TOO_LARGE = 0.01, 100.0  # a gradient over the straight-through one
_UNRELATED = 0.1  # cosine of the two

# How a range comes to be where it is, by the leaf that holds it, and what sets it anew.
_REMEDY = {
    "clip_max": "{leaf!r} is a parameter that starts at the argument init_clip",
    "log_clip_max": "{leaf!r} is a parameter that is fitted at the bits of the argument clip_bits",
    "scale": "{leaf!r} is a parameter that starts as the arguments init_range or range say",
}


def ranges(m: Measured) -> Iterator[Found]:
    """Every quantized tensor's findings; of several calls or steps each is said once."""
    # What has a finding of its own, which explains what its range does.
    broken = {found.site for found in stored(m) if found.blocks}
    broken |= {found.site for found in calls(m)}
    for site, spots in m.sites.items():
        if site in broken:
            continue
        refit = _refit(m, site, spots[0].role)
        for check in CHECKS:
            found = [(spot, one) for spot in spots if (one := check(spot, refit))]
            if not found:
                continue
            spot, one = found[0]
            if len(found) < len(spots):
                more = f" and {len(found) - 1} more" if len(found) > 1 else ""
                message = f"in {spot.place}{more}, {one.message}"
                one = one._replace(message=message)
            yield one


def _refit(m, site, role):
    """What sets a site's range anew."""
    if role == "kernel" and read_site(m.variables.get(STATS, {}), site, None):
        return "a kernel's range is that of its present value: choose another quantizer or range="
    if read_leaf(m.variables.get(STATS, {}), site, "clip_max") is not None:
        return (
            "the range was observed on other data: run bitjax.calibrate(model, variables, batches)"
        )
    for leaf, origin in _REMEDY.items():
        if read_leaf(m.variables[QUANT], site, leaf) is not None:
            return f"{origin.format(leaf=leaf)}: set that, or fit it anew by bitjax.attach"
    return "fit the range anew"


def _settings(spot):
    """The quantizer with those of its arguments that decide its range."""
    names = ("fit", "range", "signed", "granularity")
    given = [f"{n}={spot.quantizer.form[n]!r}" for n in names if n in spot.quantizer.form]
    return f"{spot.quantizer.name}({', '.join(given)})"


def _reach(spot):
    """The size of the outermost level; infinite where nothing is clipped."""
    return max(abs(float(spot.figures.low)), abs(float(spot.figures.high)))


def _ends(spot):
    return f"[{float(spot.figures.low):.3g}, {float(spot.figures.high):.3g}]"


def _is_mostly_zero(spot):
    return float(spot.figures.zeros) > _MOSTLY_ZERO.get(spot.role, 0.9999)


def zeros(spot: Spot, refit: str) -> Found | None:
    """Nearly all elements become 0."""
    share, peak, reach = float(spot.figures.zeros), float(spot.figures.peak), _reach(spot)
    if not _is_mostly_zero(spot):
        return None
    per_tensor = spot.role == "kernel" and spot.quantizer.form.get("granularity") == "per_tensor"
    filters = "granularity='per_channel', " if per_tensor else ""
    if spot.figures.bits <= 0:
        why = "it has 0 bits: give it more bits"
    elif reach == 0.0:
        why = f"its range is empty: {refit}"
    elif spot.figures.bits <= 1 and not spot.quantizer.traits.rectifies:
        why = (
            f"at 1 bit {_settings(spot)} has the levels {_ends(spot)}, 0 among them: give it more "
            "bits, or take binary()"
        )
    elif peak < _HARDLY_USED * reach:
        why = f"its elements reach {peak:.3g}, its range is {_ends(spot)}: {refit}"
    elif peak > _OUTLIER * spot.figures.mean:
        why = (
            f"an outlier of {peak:.3g}, {peak / spot.figures.mean:.0f} times their mean size, sets "
            f"the range of {_settings(spot)}: give it a range that it does not set (uniform's "
            f"range='percentile' or 'mse', bitlength's range='learned', lsq), {filters}more bits, "
            "or clip the outlier"
        )
    else:
        why = "give it more bits, a range fitted to it (bitjax.attach) or granularity='per_channel'"
    amount = "all zeros" if share == 1.0 else f"{100 * share:.1f} % zeros"
    level = "error" if share == 1.0 else "warning"
    return Found(level, spot.site, f"is quantized to {amount}: {why}", blocks=True)


def hardly_used(spot: Spot, refit: str) -> Found | None:
    """A range so wide that few codes are left."""
    peak, reach = float(spot.figures.peak), _reach(spot)
    if _is_mostly_zero(spot) or not 0.0 < peak < _HARDLY_USED * reach or np.isinf(reach):
        return None
    count = 2.0 ** np.clip(np.rint(spot.figures.bits), 0, 16)
    codes = max(1.0, count * peak / reach)
    if codes > _FEW_CODES:
        return None
    message = (
        f"uses {100 * peak / reach:.2g} % of its range: its elements reach {peak:.3g}, the range "
        f"is {_ends(spot)}, so that about {codes:.0f} of its {count:.0f} codes are used: {refit}"
    )
    return Found("warning", spot.site, message)


def clipped(spot: Spot, refit: str) -> Found | None:
    """Elements below a range without sign, or beyond the ends of one that is too narrow."""
    cut, outside = float(spot.figures.cut), float(spot.figures.saturated)
    if cut > 0 and spot.quantizer.traits.numbers == "unsigned":
        message = (
            f"is quantized without sign, but {100 * cut:.1f} % of its elements are below 0 "
            "and are cut: use signed=True"
        )
        return Found("warning", spot.site, message)
    if outside <= _SATURATED or _reach(spot) == 0.0:
        return None
    closed = spot.figures.passed == 0.0
    message = (
        f"saturates: {100 * outside:.1f} % of its elements lie outside its range {_ends(spot)}"
        f"{' and get no gradient' if closed else ''}, they reach {float(spot.figures.peak):.3g}: "
        f"{refit}"
    )
    return Found("error" if closed else "warning", spot.site, message, blocks=bool(closed))


def half_used(spot: Spot, refit: str) -> Found | None:
    """Levels on both sides of 0 for a tensor that has one side."""
    del refit  # the setting is `signed`
    if spot.role == "kernel" or not spot.figures.half_used:
        return None
    message = "never is below 0, yet half of its codes are: use signed=False"
    return Found("warning", spot.site, message)


def moved(spot: Spot, refit: str) -> Found | None:
    """Zeros that carry meaning, in a kernel or in masked attention, and do not stay zero."""
    del refit  # the setting is the form of the grid
    share = float(spot.figures.moved)
    if share <= _PRUNED or spot.role == "input":
        return None
    remedy = "use zero_on_grid=True, or a quantizer with a level 0.0 such as lsq or ternary"
    if spot.role == "kernel":
        message = f"has {100 * share:.0f} % zeros, and pruned weights come back: {remedy}"
        return Found("error", spot.site, message)
    message = f"has {100 * share:.0f} % zeros, and what a mask takes away comes back: {remedy}"
    return Found("warning", spot.site, message)


def crushed(spot: Spot, refit: str) -> Found | None:
    """Filters that a range for all filters turns into zeros."""
    del refit  # the setting is the granularity
    size, kept = np.asarray(spot.figures.filters), np.asarray(spot.figures.kept)
    lost = (size > 0) & (kept == 0)
    if _is_mostly_zero(spot) or not np.any(lost):
        return None
    middle = float(np.median(size))
    # At few bits some filters of few weights are lost by chance: those are as large as the others.
    if np.mean(lost) < _CRUSHED and not np.any(size[lost] < _SMALL * middle):
        return None
    message = (
        f"has {np.sum(lost)} of {size.size} filters quantized to zeros by {_settings(spot)}: their "
        f"weights reach {size[lost].max():.3g}, those of the middle filter {middle:.3g}: use "
        "granularity='per_channel', or more bits"
    )
    return Found("warning", spot.site, message)


def gradient(spot: Spot, refit: str) -> Found | None:
    """A quantizer whose own gradient is far from the straight-through one."""
    del refit  # the quantizer's code is at fault
    traits, cosine, ratio = spot.quantizer.traits, spot.figures.cosine, spot.figures.ratio
    held = traits.stored_scale and spot.quantizer.frozen is None  # its codes are not to move
    if held or not spot.figures.inside or not np.isfinite(ratio):  # NaN is said of the kernel
        return None
    form = "a straight-through `apply` ends with x + jax.lax.stop_gradient(x_hat - x)"
    if ratio == 0.0:
        message = (
            f"gets no gradient from {spot.quantizer.name!r}, not even for elements inside its "
            f"range: {form}"
        )
        return Found("error", spot.site, message, blocks=True)
    if cosine < _UNRELATED:
        sign = "the other sign" if cosine < -_UNRELATED else "another direction"
        message = (
            f"gets a gradient of {sign} from {spot.quantizer.name!r}: its cosine with the "
            f"straight-through one is {cosine:.2f}: {form}"
        )
    elif not _TOO_SMALL < ratio < _TOO_LARGE:
        message = (
            f"gets a gradient from {spot.quantizer.name!r} that is {ratio:.2g} times the "
            f"straight-through one: {form}"
        )
    else:
        return None
    return Found("error", spot.site, message)


Check = Callable[[Spot, str], Found | None]
CHECKS: tuple[Check, ...] = (zeros, hardly_used, clipped, half_used, moved, crushed, gradient)
