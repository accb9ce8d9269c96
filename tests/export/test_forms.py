"""What NumPy makes of a deployed site's leaves is what its quantizer makes of them in JAX."""

import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.export import forms

SHAPE = 2, 6, 4
AFFINE, STORED = forms.Form("offset", "narrow"), forms.Form("offset", "stored")
CASES = [(form, (1, 3, 4)) for form in forms.FORMS]  # a block is a group of two in each channel
CASES += [(AFFINE, ()), (forms.TABLE, ())]


def drawn(form, block):
    """Leaves of a form for bits that differ, and codes that stand for something."""
    draw = np.random.default_rng(0)
    low, high = (1, 2) if form.coding == "signs" else (2, 6)
    leaves = {"bits": draw.integers(low, high, block).astype(np.float32)}
    if form == forms.TABLE:
        levels = draw.normal(size=(*block, 1 << int(leaves["bits"].max())))
        leaves["levels"] = np.sort(levels).astype(np.float32)
        last = (1 << leaves["bits"].astype(int)) - 1
        return leaves, draw.integers(0, forms.spread(last, SHAPE) + 1, SHAPE).astype(np.uint16)
    leaves["scale"] = draw.uniform(0.1, 2.0, block).astype(np.float32)
    if form.ends == "stored":
        leaves["first"] = draw.integers(-9, 3, block).astype(np.float32)
    first, last = (forms.spread(np.asarray(e), SHAPE) for e in forms.ends_of(form, leaves))
    whole = draw.integers(first, last + 1, SHAPE)
    whole = np.where(whole == 0, last, whole) if form.coding == "signs" else whole
    codes = {
        "offset": whole - first,
        "signs": whole > 0,
        "sign_magnitude": np.where(whole < 0, last + 1 - whole, whole),
    }[form.coding]
    return leaves, codes.astype(np.uint16)


@pytest.mark.parametrize(("form", "block"), CASES, ids=str)
def test_levels_and_codes_are_those_of_the_quantizer(form, block):
    quantizer, (leaves, codes) = forms.quantizer_of(form), drawn(form, block)
    assert forms.form_of(quantizer) == form
    forms.check_leaves(form, leaves, SHAPE)
    found = forms.levels_of(form, leaves, codes)
    wanted = quantizer.decode(leaves, {}, bj.Codes(jnp.asarray(codes, jnp.int32)))
    assert found.tobytes() == np.asarray(wanted).tobytes()
    assert (forms.codes_of(form, leaves, found) == codes).all()
    assert (np.asarray(quantizer.encode(leaves, {}, wanted).codes) == codes).all()


def test_a_scanned_layers_leaf_has_its_steps_in_front():
    assert forms.spread(np.array([1.0, 2.0]), (2, 3)).tolist() == [[1.0], [2.0]]
    leaves = {"bits": np.float32([2, 3]), "first": np.float32([[[-1, 0]], [[-2, 1]]])}
    _, last = forms.ends_of(STORED, leaves)
    assert last.tolist() == [[[2, 3]], [[5, 8]]]


@pytest.mark.parametrize(
    ("form", "leaves", "said"),
    [
        (AFFINE, {"scale": [1, 1]}, "blocks that do not fit"),
        (AFFINE, {"scale": []}, "without numbers"),
        (
            AFFINE,
            {"scale": 1, "first": 1},
            "has the leaves bits, first, scale, and needs bits, sca",
        ),
        (AFFINE, {"scale": 1, "edges": [1, 0]}, "has edges that do not rise"),
        (AFFINE, {"scale": 1, "edges": 1}, "has a 'edges' that is no table"),
        (AFFINE, {"scale": np.inf}, "has a 'scale' that is not finite"),
        (STORED, {"scale": 1, "first": 0.5}, "has a first integer that is none"),
        (STORED, {"scale": 1, "first": 2e9}, "has a first integer beyond 16,777,216"),
        (forms.TABLE, {"levels": [0, 1], "edges": []}, "has 0 edges between 2 levels"),
        (forms.TABLE, {"levels": [], "edges": []}, "has 0 levels"),
    ],
)
def test_leaves_that_an_input_cannot_have_are_refused(form, leaves, said):
    given = {"bits": [1, 2, 3] if said.startswith("blocks") else 2, **leaves}
    with pytest.raises(ValueError, match=said):
        forms.check_leaves(form, {n: np.asarray(x, np.float32) for n, x in given.items()}, None)


def test_a_quantizer_that_is_not_deployed_has_no_form():
    assert forms.form_of(bj.lsq(4)) is None and forms.form_of(None) is None
