"""A small convolutional network: 99 % on 8x8 digits after some hundred steps on a CPU."""

import math

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from bitjax.checks import checked
from bitjax.models.layers import FIELDS, conv, norm


@checked(**FIELDS)
class SmallCNN(nn.Module):
    """Three 3x3 convolutions `conv1..3`, each with batch norm `bn1..3` and ReLU; Dense `head`.

    The second and the third convolution halve the picture. The head reads every position,
    because the place of a stroke tells digits apart.

    Attributes:
      num_classes: Number of logits.
      width: Filters of the first convolution; the others have twice and four times as many.
      dtype: Dtype of the computation; None: that of the inputs and parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> model = SmallCNN(width=8)
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
      >>> sorted(shapes["params"])
      ['bn1', 'bn2', 'bn3', 'conv1', 'conv2', 'conv3', 'head']
    """

    num_classes: int = 10
    width: int = 16
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Normalised images [N, H, W, C] to logits [N, num_classes]; `train` moves statistics."""
        init = nn.linear.default_kernel_init
        layers = ((self.width, 1), (2 * self.width, 2), (4 * self.width, 2))
        for i, (filters, stride) in enumerate(layers, start=1):
            x = conv(f"conv{i}", self.dtype, filters, stride=stride, init=init)(x)
            x = nn.relu(norm(f"bn{i}", self.dtype, train)(x))
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)
