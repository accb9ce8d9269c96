"""VGG-small for CIFAR-10 (Cai et al. 2017) and VGG-16 with batch norms (Simonyan & Zisserman)."""

import math

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from bitjax.checks import checked
from bitjax.models.layers import FIELDS, check_size, conv, norm


@checked(**FIELDS)
class VGGSmall(nn.Module):
    """Convolutions `conv1..6` of 3x3 with batch norms `bn1..6`, a pool after each pair, `head`.

    Every pair halves the picture and the next has twice the filters. The order is convolution,
    batch norm, ReLU. At the end of a pair the pool precedes the batch norm, so that a quantizer in
    place of the ReLU reads normalised values. After `conv6` the order is batch norm, ReLU, pool.
    `bn1..5` have no learned scale and shift: levels that are fixed in advance need their output,
    which is near N(0, 1). No convolution has a bias.

    Attributes:
      num_classes: Number of logits.
      width: Filters of the first pair; the others have twice and four times as many.
      dtype: Dtype of the computation; None: that of the inputs and parameters.

    Raises:
      ValueError: If images are smaller than 8x8.

    Example:
      >>> import jax.numpy as jnp
      >>> model = VGGSmall(width=32)
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> shapes["params"]["head"]["kernel"].shape, sorted(shapes["batch_stats"])
      ((2048, 10), ['bn1', 'bn2', 'bn3', 'bn4', 'bn5', 'bn6'])

    Source: Cai et al., Deep Learning with Low Precision by Half-wave Gaussian Quantization, CVPR
      2017, and the network of their Caffe program for CIFAR-10. Differs: running statistics move
      by 0.1 as in the other models here, theirs by 0.05.
    """

    num_classes: int = 10
    width: int = 128
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Normalised images [N, H, W, C] to logits [N, num_classes]; `train` moves statistics."""
        check_size(x, 8)
        for i in range(1, 7):
            x = conv(f"conv{i}", self.dtype, self.width * 2 ** ((i - 1) // 2))(x)
            if i in (2, 4):
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            x = nn.relu(norm(f"bn{i}", self.dtype, train, affine=i == 6)(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)


@checked(**FIELDS)
class VGG16(nn.Module):
    """`conv1_1`, `bn1_1`, ..., `conv5_3`, `bn5_3`, a pool after each stage; `fc1`, `fc2`, `head`.

    Attributes:
      num_classes: Number of logits.
      width: Filters of stage 1; stages 2, 3, 4, 5 have 2, 4, 8, 8 times, `fc1` and `fc2` 64 times
        as many.
      dtype: Dtype of the computation; None: that of the inputs and parameters.

    Raises:
      ValueError: If images are smaller than 32x32.

    Example:
      >>> import jax.numpy as jnp
      >>> model = VGG16(width=4)
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
      >>> shapes["params"]["conv5_3"]["kernel"].shape, shapes["params"]["fc1"]["kernel"].shape
      ((3, 3, 32, 32), (128, 256))

    Source: Simonyan & Zisserman, Very Deep Convolutional Networks, 2015, arXiv 1409.1556, table 1,
      column D, laid out as torchvision's `vgg16_bn`: 138,365,992 parameters and 15.47 G
      multiply-adds at 224x224, convolutions with a bias in front of their batch norm. Differs: no
      dropout, and `fc1` grows with the images of `init`, where torchvision first brings every
      image to 7x7 by means; at 224x224 both are 7x7 and its 25088 rows.
    """

    num_classes: int = 1000
    width: int = 64
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Normalised images [N, H, W, C] to logits [N, num_classes]; `train` moves statistics."""
        check_size(x, 32)
        for i, (times, convs) in enumerate(((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)), 1):
            for j in range(1, convs + 1):
                x = conv(f"conv{i}_{j}", self.dtype, self.width * times, bias=True)(x)
                x = nn.relu(norm(f"bn{i}_{j}", self.dtype, train)(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        for name in ("fc1", "fc2"):
            x = nn.relu(_dense(64 * self.width, self.dtype, name)(x))
        return _dense(self.num_classes, self.dtype, "head")(x)


def _dense(features, dtype, name):
    # torchvision's start. No batch norm follows, so that the size of these kernels counts.
    init = nn.initializers.normal(0.01)
    return nn.Dense(features, dtype=dtype, kernel_init=init, name=name)
