"""That tools compile a program once in a process."""

import gc
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.frameworks.compiled import jit_arrays, jit_each
from bitjax.program.kept import Kept, Told
from tests.counted import compiling

X = np.linspace(-1.0, 1.0, 32, dtype=np.float32).reshape(8, 4)
NET = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(3)])
FLOATS = NET.init(jax.random.key(0), X)
UNIFORM = bj.Quantized(NET, [bj.rule(".*", bj.uniform(bits=4))])
TERNARY = bj.Quantized(NET, [bj.rule(".*/kernel", bj.ternary(fit="stored"))])
PLANES = bj.Quantized(NET, [bj.rule("layers_2/input", bj.bitplane(bits=8))])

TOOLS = {
    "attach": (UNIFORM, lambda net, variables: bj.attach(net, FLOATS, X)),
    "calibrate": (UNIFORM, lambda net, variables: bj.calibrate(net, variables, [X])),
    "deploy": (UNIFORM, lambda net, variables: bj.deploy(net, variables, X)),
    "codes_of": (UNIFORM, lambda net, variables: bj.codes_of(net, variables, X)),
}

SLOW_TOOLS = {
    "doctor": (UNIFORM, lambda net, variables: bj.doctor(net, variables, X)),
    "allocate": (PLANES, lambda net, variables: bj.allocate(net, variables, lambda: [X], rate=3.0)),
    "solve_layers": (TERNARY, lambda net, variables: bj.solve_layers(net, variables, [X], bits=2)),
}


@pytest.mark.parametrize(
    "tool", [*TOOLS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_TOOLS)]
)
def test_a_second_call_of_a_tool_compiles_nothing(tool):
    net, call = {**TOOLS, **SLOW_TOOLS}[tool]
    variables = bj.attach(net, FLOATS, X)
    call(net, variables)
    # As in a loop of training: the model is put together again, and the values are others.
    again = bj.Quantized(NET, list(net.rules))
    with compiling() as programs:
        call(again, jax.tree.map(lambda x: x, variables))
    assert not programs


def times(factor, flag, x):
    return Told(flag), x * factor


def test_programs_are_told_apart_by_static_values_of_every_type():
    with compiling() as programs:
        found = [
            jit_arrays(times, np.float32(3.0), static=(factor, flag))
            for factor, flag in ((1, 1), (1.0, 1), (True, 1), (1, True), (1, 1))
        ]
    assert len(programs) == 4
    assert [told.value for told, _ in found] == [1, 1, 1, True, 1]
    assert [type(told.value) for told, _ in found] == [int, int, int, bool, int]


def test_what_cannot_be_a_key_is_compiled_anew_and_is_right():
    factor = np.arange(3.0, dtype=np.float32)
    for shift in (0.0, 1.0):
        _, found = jit_arrays(times, np.float32(2.0), static=(factor + shift, None))
        np.testing.assert_array_equal(found, 2.0 * (factor + shift))


def test_no_array_of_a_call_is_kept():
    given, made = jnp.arange(7.0), jnp.arange(7.0) + 1
    ends = [weakref.ref(given), weakref.ref(made)]
    jit_arrays(times, given, static=(2.0, "kept"))
    jit_each(times, {"a": ((3.0, "kept"), (made,))})
    del given, made
    gc.collect()
    assert [end() for end in ends] == [None, None]


def test_the_oldest_of_too_many_is_forgotten():
    kept = Kept(2)
    made = [kept.get(key, object) for key in "aba"]
    kept.get("c", object)  # "b" was used before "a"
    assert made[0] is made[2] is kept.get("a", object)
    assert kept.get("b", object) is not made[1]


def test_calls_of_one_kind_share_a_place_in_the_only_program():
    calls = {i: ((float(i % 2), "each"), (np.full(2, i, np.float32),)) for i in range(5)}
    with compiling() as programs:
        found = jit_each(times, calls)
    assert len(programs) == 1
    for i in range(5):
        np.testing.assert_array_equal(found[i][1], np.full(2, i * (i % 2), np.float32))
