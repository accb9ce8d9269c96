"""A multilayer perceptron: the smallest model, for tests and first looks."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from bitjax.checks import checked, several
from bitjax.models.layers import COUNT, FIELDS


@checked(features=several(COUNT), num_classes=COUNT, dtype=FIELDS["dtype"])
class MLP(nn.Module):
    """Dense layers `dense1`, `dense2`, ... with ReLU, and a Dense `head`.

    Attributes:
      features: Width of each hidden layer.
      num_classes: Number of logits.
      dtype: Dtype of the computation; None: that of the inputs and parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> model = MLP(features=(32,))
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
      >>> sorted(shapes["params"])
      ['dense1', 'head']
    """

    features: Sequence[int] = (64, 64)
    num_classes: int = 10
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Normalised inputs [N, ...], which are flattened, to logits [N, num_classes]."""
        del train  # no layer behaves differently in training
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        for i, width in enumerate(self.features, start=1):
            x = nn.Dense(width, dtype=self.dtype, name=f"dense{i}")(x)
            x = nn.relu(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)
