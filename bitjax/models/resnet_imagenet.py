"""The ResNets for ImageNet of He et al. 2015, with projection shortcuts (option B)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bitjax.checks import SWITCH, checked, several
from bitjax.models.layers import COUNT, FAN_OUT, FIELDS, Blocks, conv, norm


class ImageNetBlock(nn.Module):
    """Convolutions and a shortcut, which is projected where the shape changes."""

    filters: int  # channels inside; 4 times as many leave a bottleneck
    stride: int = 1  # at the first 3x3 convolution
    bottleneck: bool = False  # 1x1, 3x3, 1x1 convolutions; else two of 3x3
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map [N, H, W, C] to [N, ceil(H / stride), ceil(W / stride), filters or 4 filters]."""
        sizes = (1, 3, 1) if self.bottleneck else (3, 3)
        out = self.filters * (4 if self.bottleneck else 1)
        y = x
        for i, size in enumerate(sizes, 1):
            last = i == len(sizes)
            stride = self.stride if i == sizes.index(3) + 1 else 1
            filters = out if last else self.filters
            y = conv(f"conv{i}", self.dtype, filters, size, stride, init=FAN_OUT)(y)
            # A block starts as its shortcut: Goyal et al. 2017, section 5.1.
            start = nn.initializers.zeros if last else nn.initializers.ones
            y = norm(f"bn{i}", self.dtype, train, start=start)(y)
            y = y if last else nn.relu(y)
        if x.shape[-1] != out or self.stride > 1:
            x = conv("shortcut", self.dtype, out, 1, self.stride, init=FAN_OUT)(x)
            x = norm("shortcut_bn", self.dtype, train)(x)
        return nn.relu(y + x)


@checked(blocks=several(COUNT, 1), bottleneck=SWITCH, **FIELDS)
class ImageNetResNet(nn.Module):
    """`stem`, `stem_bn`, `stage{1..4}/block{1..n}/{conv1,bn1,...,shortcut}`, mean, `head`.

    Attributes:
      blocks: Number of blocks in each stage.
      bottleneck: Whether blocks are bottlenecks.
      num_classes: Number of logits.
      width: Filters of the stem and of stage 1; every further stage has twice as many.
      dtype: Dtype of the computation; None: that of the inputs and parameters.

    Example:
      >>> model = ImageNetResNet((1, 1, 1, 1), bottleneck=True, width=8)
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
      >>> shapes["params"]["stage2"]["block1"]["shortcut"]["kernel"].shape
      (1, 1, 32, 64)

    Source: He et al., Deep Residual Learning, 2015, arXiv 1512.03385, table 1. The stride of a
      bottleneck is at its 3x3 convolution, as in torchvision, not at the first 1x1.
    """

    blocks: Sequence[int] = (2, 2, 2, 2)
    bottleneck: bool = False
    num_classes: int = 1000
    width: int = 64
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Normalised images [N, H, W, C] to logits [N, num_classes]; `train` moves statistics."""
        x = conv("stem", self.dtype, self.width, 7, 2, init=FAN_OUT)(x)
        x = nn.relu(norm("stem_bn", self.dtype, train)(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for i, blocks in enumerate(self.blocks):
            block = partial(
                ImageNetBlock,
                filters=self.width * 2**i,
                bottleneck=self.bottleneck,
                dtype=self.dtype,
            )
            x = Blocks(blocks, 2 if i else 1, block, name=f"stage{i + 1}")(x, train)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)


def resnet18(**options: Any) -> ImageNetResNet:
    """ResNet-18: 11.7 M parameters, 1.814 G multiply-adds at 224x224."""
    return ImageNetResNet(blocks=(2, 2, 2, 2), **options)


def resnet50(**options: Any) -> ImageNetResNet:
    """ResNet-50: 25.6 M parameters, 4.09 G multiply-adds at 224x224."""
    return ImageNetResNet(blocks=(3, 4, 6, 3), bottleneck=True, **options)
