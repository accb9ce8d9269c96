"""What a model starts from is the same however quickly its program compiles."""

import jax
import numpy as np
import pytest

from bitjax.frameworks.compiled import compile_quickly
from bitjax.models import MLP, Llama, SmallCNN
from tests.compiling import QUICKLY


@pytest.mark.slow
@pytest.mark.skipif(QUICKLY, reason="this process compiles without optimisation")
@pytest.mark.parametrize(
    ("net", "x"),
    [
        (MLP(features=(8,)), np.zeros((2, 8, 8, 1), np.float32)),
        (SmallCNN(), np.zeros((2, 8, 8, 1), np.float32)),
        (
            Llama(vocab_size=16, width=8, layers=1, heads=2, kv_heads=1, hidden=12),
            np.zeros((8, 2), np.int32),
        ),
    ],
    ids=["mlp", "cnn", "llama"],
)
def test_an_exact_program_starts_a_model_as_full_optimisation_does(net, x):
    found = jax.jit(net.init, **compile_quickly(exact=True))(jax.random.key(3), x)
    wanted = jax.jit(net.init)(jax.random.key(3), x)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
