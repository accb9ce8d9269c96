"""A patch times the kernel's matrix is the product's output there, whatever its dimensions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax import lax

from bitjax.program.patches import draw_places, moves_of, patch_view

RNG = np.random.default_rng(0)
# Every example compiles a program: 20 of them in any profile, and no search for a smaller failure.
FEW = settings(max_examples=20, phases=[Phase.explicit, Phase.generate])


def whole(shape):
    """Small whole numbers, of which every order of summation gives the same sum."""
    return RNG.integers(-4, 5, shape).astype(np.float32)


def equation(function, *shapes):
    """The one product in what a function traces to."""

    def products(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
                yield eqn
            elif "jaxpr" in eqn.params:
                yield from products(eqn.params["jaxpr"].jaxpr)

    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    (found,) = products(jax.make_jaxpr(function)(*args).jaxpr)
    return found


def view_of(eqn, which, moves=None):
    lhs, rhs = (v.aval for v in eqn.invars)
    return patch_view("odd", eqn.primitive.name, eqn.params, lhs, rhs, which, moves)


def hold(eqn, which, examples, axis):
    """Holds a view to its equation, whose other operand has its examples along an axis."""
    view = view_of(eqn, which)
    operands = [whole(v.aval.shape) for v in eqn.invars]

    @jax.jit
    def compared(*operands):
        kernel, x = operands[which], operands[1 - which]
        out = eqn.primitive.bind(*operands, **eqn.params)
        positions = view.positions(x, out)
        # From the last place to the first, and of an output in another shape.
        places = jnp.arange(positions * examples)[::-1]
        patches, outputs = view.patches(x, places), view.outputs(out.reshape(1, -1), places)
        product = jnp.einsum("gtn,gmn->gtm", patches, view.matrix(kernel))
        first = jnp.moveaxis(jnp.moveaxis(x, axis, 0).at[0].set(9), 0, axis)
        changed = (view.patches(first, places) != patches).any((0, 2))[::-1]
        return out, outputs, product, changed.reshape(examples, positions)

    out, outputs, product, changed = (np.asarray(leaf) for leaf in compared(*operands))
    np.testing.assert_array_equal(product, outputs)
    assert product.size == out.size and len(product) == view.groups
    assert product.dtype == outputs.dtype == np.float32
    assert changed[0].any() and not changed[1:].any(), "the first example has the first places"
    # What is solved on the host stays there, in the precision that it has.
    matrix = view.matrix(operands[which].astype(np.float64))
    np.testing.assert_array_equal(view.kernel(matrix), operands[which])
    assert isinstance(matrix, np.ndarray) and matrix.dtype == np.float64


@FEW
@given(st.data())
def test_patches_times_the_matrix_are_a_convolutions_outputs(data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    def each(low, high):
        return [draw(low, high) for _ in range(rank)]

    rank = data.draw(st.sampled_from([1, 2, 2, 2, 3]))
    specs = [
        "".join(data.draw(st.permutations(ends + "DHW"[:rank]))) for ends in ("NC", "IO", "NC")
    ]
    # JAX names strides, padding and dilation in the order of the input's axes.
    axes = "".join(letter for letter in specs[0] if letter in "DHW")
    groups, window, dilation, strides = draw(1, 3), each(1, 3), each(1, 2), each(1, 2)
    inputs, filters, examples = draw(1, 2), groups * draw(1, 2), draw(1, 3)
    pads = [(draw(-1, 2), draw(0, 3)) for _ in range(rank)]
    # At least one output along every axis, whatever the window spans and the padding crops.
    sizes = [(n - 1) * d + 2 + draw(0, 3) for n, d in zip(window, dilation, strict=True)]
    shapes = [
        [dict(zip(names + axes, dims, strict=True))[letter] for letter in spec]
        for spec, names, dims in (
            (specs[0], "NC", [examples, groups * inputs, *sizes]),
            (specs[1], "IO", [inputs, filters, *window]),
        )
    ]
    eqn = equation(
        lambda x, kernel: lax.conv_general_dilated(
            x,
            kernel,
            strides,
            pads,
            rhs_dilation=dilation,
            dimension_numbers=tuple(specs),
            feature_group_count=groups,
        ),
        *shapes,
    )
    hold(eqn, 1, examples, specs[0].index("N"))


@FEW
@given(st.data())
def test_patches_times_the_matrix_are_a_products_outputs(data):
    batch, contract = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
    free, filters = data.draw(st.integers(1, 2)), data.draw(st.integers(0, 2))
    sizes = dict(zip("abcdpqmn", (2, 3, 4, 2, 3, 2, 2, 3), strict=True))
    shared, places, outs = "ab"[:batch] + "cd"[:contract], "pq"[:free], "mn"[:filters]
    x, kernel = ("".join(data.draw(st.permutations(shared + own))) for own in (places, outs))
    batches, contracted = (
        tuple(data.draw(st.permutations(letters))) for letters in (shared[:batch], shared[batch:])
    )
    which = data.draw(st.integers(0, 1))
    pair = (x, kernel) if which == 1 else (kernel, x)

    def axes_of(letters):
        lhs, rhs = (tuple(spec.index(letter) for letter in letters) for spec in pair)
        return lhs, rhs

    numbers = axes_of(contracted), axes_of(batches)
    eqn = equation(
        lambda lhs, rhs: lax.dot_general(lhs, rhs, numbers),
        *([sizes[letter] for letter in spec] for spec in pair),
    )
    axis = min(x.index(letter) for letter in places)
    hold(eqn, which, sizes[x[axis]], axis)


@pytest.mark.parametrize(
    ("function", "shapes", "groups", "positions"),
    [
        (lambda x, w: x @ w, [(4, 7, 3), (3, 5)], 1, 7),
        (lambda x, w: jnp.einsum("bthd,hdf->btf", x, w), [(4, 7, 2, 3), (2, 3, 5)], 1, 7),
        (lambda x, w: jnp.einsum("bti,ijk->btjk", x, w), [(4, 7, 3), (3, 2, 5)], 1, 7),
        (lambda x, w: jnp.einsum("ebi,eij->ebj", x, w), [(3, 4, 2), (3, 2, 5)], 3, 1),
        (lambda x, w: x @ w, [(3,), (3, 5)], 1, 1),
    ],
)
def test_positions_and_groups_of_what_people_write(function, shapes, groups, positions):
    eqn = equation(function, *shapes)
    which = [tuple(v.aval.shape) for v in eqn.invars].index(shapes[1])
    view = view_of(eqn, which)
    x, out = (jnp.zeros(v.aval.shape) for v in (eqn.invars[1 - which], eqn.outvars[0]))
    assert (view.groups, view.positions(x, out)) == (groups, positions)


def test_a_view_serves_batches_of_any_number_of_examples():
    eqn = equation(lambda x, k: lax.conv(x, k, (1, 1), "SAME"), (2, 3, 4, 4), (5, 3, 3, 3))
    view, kernel = view_of(eqn, 1), whole((5, 3, 3, 3))
    x = jnp.asarray(whole((6, 3, 4, 4)))
    out = lax.conv(x, kernel, (1, 1), "SAME")
    assert view.positions(x, out) == 16
    places = jnp.array([95, 3, 40])
    product = view.patches(x, places)[0] @ view.matrix(kernel)[0].T
    np.testing.assert_array_equal(product, view.outputs(out, places)[0])


MOVES = {
    "reshape": lambda p: p.reshape(6, 20),
    "transpose": lambda p: p.transpose(2, 0, 1),
    "reverse": lambda p: jnp.flip(p, (0, 2)),
    "many": lambda p: jnp.flip(p[None].swapaxes(1, 3).reshape(4, 30), 1).T[:, None],
    "cast": lambda p: p.astype(jnp.bfloat16).T,
}


@pytest.mark.parametrize("name", MOVES)
def test_moves_are_found_with_their_inverse_also_during_a_trace(name):
    shape, forward = (2, 15, 20) if name == "cast" else (3, 10, 4), MOVES[name]
    parameter = RNG.normal(size=shape).astype(np.float32)

    @jax.jit
    def there_and_back(parameter):
        moves = moves_of("odd", forward, parameter)
        there = moves.forward(parameter)
        return there, moves.back(there)

    there, back = there_and_back(parameter)
    np.testing.assert_array_equal(there.astype(forward(parameter).dtype), forward(parameter))
    np.testing.assert_array_equal(back, parameter)
    assert there.dtype == back.dtype == np.float32
    double = moves_of("odd", forward, parameter).forward(parameter.astype(np.float64))
    assert isinstance(double, np.ndarray) and double.dtype == np.float64


def test_a_view_through_moves_speaks_of_the_parameter():
    eqn = equation(lambda x, k: x @ k, (4, 6), (6, 5))
    moves = moves_of("odd", lambda p: p.reshape(5, 6).T, jax.ShapeDtypeStruct((30,), np.float32))
    view, parameter = view_of(eqn, 1, moves), whole((30,))
    np.testing.assert_array_equal(view.matrix(parameter)[0], parameter.reshape(5, 6))
    np.testing.assert_array_equal(view.kernel(view.matrix(parameter)), parameter)


@pytest.mark.parametrize(
    "forward",
    [
        lambda p: p.at[0, 0].set(0),  # a mask
        lambda p: jnp.concatenate([p, p]),
        lambda p: p[1:],
        lambda p: p[:0],
        lambda p: jnp.broadcast_to(p[:1], p.shape),
        lambda p: -p,
        lambda p: p * 1.001,
        lambda p: p + 1,
        lambda p: p / p.sum(),
        lambda p: p * jnp.nan,
        lambda p: p.at[0, 1].set(p[0, 0]),
    ],
)
def test_an_operand_with_other_elements_than_its_parameter_is_refused(forward):
    with pytest.raises(ValueError, match=r"layer 'odd' .*other elements.*leave it out of `layers`"):
        moves_of("odd", forward, jax.ShapeDtypeStruct((30, 20), np.float32))


def conv(**given):
    shapes = [(2, 4, 8), (4, 4, 3)]
    return equation(
        lambda x, kernel: lax.conv_general_dilated(x, kernel, (1,), [(0, 0)], **given), *shapes
    )


@pytest.mark.parametrize(
    ("eqn", "which", "why"),
    [
        (lambda: conv(lhs_dilation=(2,)), 1, "dilates its input"),
        (lambda: conv(batch_group_count=2), 1, "splits its examples"),
        (lambda: conv(), 0, "moves its input over its kernel"),
    ],
)
def test_a_product_without_patches_is_refused_by_name(eqn, which, why):
    with pytest.raises(ValueError, match=f"^layer 'odd' {why}.* leave it out of `layers`.$"):
        view_of(eqn(), which)


def test_what_is_no_product_is_refused_by_name():
    aval = jax.ShapeDtypeStruct((3, 3), np.float32)
    with pytest.raises(ValueError, match=r"layer 'odd' \(gather\) is no plain product .*`layers`"):
        patch_view("odd", "gather", {}, aval, aval, 1)


def test_places_are_drawn_without_repetition_and_evenly_over_examples():
    places = np.asarray(draw_places(jax.random.key(0), 10, 50, 7))
    assert len(set(places.tolist())) == 70
    assert np.bincount(places // 50).tolist() == [7] * 10
    again = np.asarray(draw_places(jax.random.key(1), 10, 50, 7))
    assert (again != places).any()
