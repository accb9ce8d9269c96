"""What an argument may not be is refused in one line, by every public function."""

import inspect

import jax
import jax.numpy as jnp
import pytest

import bitjax as bj
from bitjax import methods, models, solvers
from bitjax.checks import allowed_of
from tests.allowed import inside, outside

PUBLIC = {
    f"{module.__name__}.{name}": thing
    for module in (bj, methods, solvers, models)
    for name, thing in vars(module).items()
    if callable(thing) and not name.startswith("_") and allowed_of(thing)
}
ARGUMENTS = [
    pytest.param(function, name, id=f"{of}-{name}")
    for of, function in PUBLIC.items()
    for name in allowed_of(function)
]


# Data, which the functions look at themselves: models, batches and rules by their kind, and what a
# rival of a table would be. `sites` may be any iterable, a generator too.
DATA = {
    "model", "args", "fn", "rules", "batch", "labels", "loss", "file", "findings", "sites", "costs",
    "losses", "key", "precision", "path", "x", "parent", "name",
}  # fmt: skip


@pytest.mark.parametrize("module", [bj, methods, solvers, models])
def test_every_argument_of_a_public_function_is_in_a_table_or_data(module):
    for name, function in vars(module).items():
        value = isinstance(function, type) and hasattr(function, "_fields")
        if name.startswith("_") or not callable(function) or value or name == "Any":
            continue
        parameters = inspect.signature(function).parameters.values()
        named = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
        assert not named - set(allowed_of(function)) - DATA, name


def call_with(function, name, given):
    """Calls with one argument as given and the others as they may be."""
    table, parameters = allowed_of(function), inspect.signature(function).parameters
    others = {
        p.name: inside(table[p.name]) if p.name in table else object()
        for p in parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_ONLY]
    arguments = {**others, name: given}
    return function(*(arguments.pop(p) for p in positional), **arguments)


@pytest.mark.parametrize(("function", "name"), ARGUMENTS)
def test_what_an_argument_may_not_be_is_one_line_with_its_name(function, name):
    for given in outside(allowed_of(function)[name]):
        with pytest.raises(ValueError, match=rf"^`{name}` must be .*, got ") as caught:
            call_with(function, name, given)
        assert "\n" not in str(caught.value)


def test_a_traced_number_passes_and_a_traced_array_does_not():
    codes = jax.jit(lambda w, factor: bj.twn_codes(w, factor=factor))(jnp.eye(3), 0.7)[0]
    assert codes.tolist() == bj.twn_codes(jnp.eye(3), factor=0.7)[0].tolist()
    rates = jax.vmap(lambda bits: bj.rate(4.0, 8, bits))(jnp.array([0.0, 8.0]))
    assert rates.tolist() == [4.0, 5.0]
    for wrong in (jnp.ones(2), jnp.array(True), jnp.array(1j)):
        with pytest.raises(ValueError, match="`factor` must be a"):
            jax.jit(lambda factor: bj.twn_codes(jnp.eye(3), factor=factor))(wrong)
