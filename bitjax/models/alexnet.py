"""AlexNet as torchvision has it, and with batch norms and without groups (Wang et al. 2018)."""

import math

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from bitjax.checks import checked
from bitjax.models.layers import FIELDS, SHARE, check_size, conv, norm


@checked(dropout=SHARE, **FIELDS)
class AlexNet(nn.Module):
    """Convolutions `conv1..5` and `fc1`, `fc2`, each with a bias and a ReLU; `head`.

    Filters are 64, 192, 384, 256, 256; kernels 11x11 of stride 4, 5x5 and three of 3x3; behind
    `conv1`, `conv2` and `conv5` a 3x3 pool of stride 2.

    Attributes:
      num_classes: Number of logits.
      width: Filters of `conv1`; the others have 3, 6, 4, 4 times, `fc1` and `fc2` 64 times as many.
      dropout: Probability of dropping an input of `fc1` and of `fc2` in training, which needs the
        PRNG key `dropout`. A quantizer sees the inputs that are left, times 1 / (1 - dropout).
      dtype: Dtype of the computation; None: that of the inputs and parameters.

    Raises:
      ValueError: If images are smaller than 63x63.

    Example:
      >>> import jax.numpy as jnp
      >>> model = AlexNet(width=4)
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
      >>> shapes["params"]["conv2"]["kernel"].shape, shapes["params"]["fc1"]["kernel"].shape
      ((5, 5, 4, 12), (576, 256))

    Source: Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014, arXiv
      1404.5997, laid out as torchvision's `alexnet`: 61,100,840 parameters and 0.714 G
      multiply-adds at 224x224. Differs: `fc1` grows with the images of `init`, where torchvision
      first brings every image to 6x6 by means; at 224x224 both are 6x6. Biases start at 0.
    """

    num_classes: int = 1000
    width: int = 64
    dropout: float = 0.5
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Normalised images [N, H, W, C] to logits [N, num_classes]; `train` drops inputs."""
        check_size(x, 63)
        # Times of `width`, size, stride, padding, pool.
        layers = (
            (1, 11, 4, 2, True),
            (3, 5, 1, 2, True),
            (6, 3, 1, 1, False),
            (4, 3, 1, 1, False),
            (4, 3, 1, 1, True),
        )
        # PyTorch's start: no batch norm follows, so that the size of kernels counts.
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        for i, (times, size, stride, padding, pool) in enumerate(layers, 1):
            layer = conv(
                f"conv{i}", self.dtype, times * self.width, size, stride, padding=padding,
                bias=True, init=init,
            )  # fmt: skip
            x = nn.relu(layer(x))
            if pool:
                x = nn.max_pool(x, (3, 3), strides=(2, 2))
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        for name in ("fc1", "fc2"):
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = nn.relu(_dense(64 * self.width, self.dtype, name, True, init)(x))
        return _dense(self.num_classes, self.dtype, "head", True, init)(x)


@checked(**FIELDS)
class AlexNetBN(nn.Module):
    """Convolutions `conv1..5`, then `fc1`, `fc2`, each with a batch norm `bn1..7`; `head`.

    Filters are 96, 256, 384, 384, 256; kernels 11x11 of stride 4, 5x5 and three of 3x3. The order
    is convolution, batch norm, ReLU, with a 3x3 pool of stride 2 in front of the ReLU of `conv1`,
    `conv2` and `conv5`: batch norms see every position, and a quantizer in place of the ReLU the
    largest of nine. Batch norms have no learned scale and shift, and no layer has a bias.

    Attributes:
      num_classes: Number of logits.
      width: A third of the filters of `conv1`; the others have 8, 12, 12, 8 times, `fc1` and `fc2`
        128 times as many.
      dtype: Dtype of the computation; None: that of the inputs and parameters.

    Raises:
      ValueError: If images are smaller than 67x67.

    Example:
      >>> import jax.numpy as jnp
      >>> model = AlexNetBN(width=4)
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 227, 227, 3)))
      >>> shapes["params"]["conv2"]["kernel"].shape, shapes["params"]["fc1"]["kernel"].shape
      ((5, 5, 12, 32), (1152, 512))

    Source: Krizhevsky et al., ImageNet Classification, 2012; the layout is that of the first
      author's AlexNet of Wang et al., Two-Step Quantization, CVPR 2018: 1.135 G multiply-adds at
      227x227. Differs: no batch norm behind the head, which reads logits.
    """

    num_classes: int = 1000
    width: int = 32
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Normalised images [N, H, W, C] to logits [N, num_classes]; `train` moves statistics."""
        check_size(x, 67)
        # Times of `width`, size, stride, padding, pool. Caffe's pools count a last, partial window;
        # at 227 and 67 pixels there is none.
        layers = (
            (3, 11, 4, 0, True),
            (8, 5, 1, 2, True),
            (12, 3, 1, 1, False),
            (12, 3, 1, 1, False),
            (8, 3, 1, 1, True),
        )
        for i, (times, size, stride, padding, pool) in enumerate(layers, 1):
            filters = times * self.width
            x = conv(f"conv{i}", self.dtype, filters, size, stride, padding=padding)(x)
            x = norm(f"bn{i}", self.dtype, train, affine=False)(x)
            if pool:
                x = nn.max_pool(x, (3, 3), strides=(2, 2))
            x = nn.relu(x)
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        for i in (1, 2):
            x = _dense(128 * self.width, self.dtype, f"fc{i}")(x)
            x = nn.relu(norm(f"bn{i + 5}", self.dtype, train, affine=False)(x))
        return _dense(self.num_classes, self.dtype, "head")(x)


def _dense(features, dtype, name, bias=False, init=None):
    init = init or nn.linear.default_kernel_init
    return nn.Dense(features, use_bias=bias, dtype=dtype, kernel_init=init, name=name)
