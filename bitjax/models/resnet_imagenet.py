"""The ResNets for ImageNet of He et al. 2015, with projection shortcuts (option B)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class ImageNetBlock(nn.Module):
    """Convolutions and a shortcut, which is projected where the shape changes.

    Attributes:
      filters: Number of channels inside; 4 times as many leave a bottleneck.
      stride: Stride of the block, at its first 3x3 convolution.
      bottleneck: 1x1, 3x3, 1x1 convolutions; else two of 3x3.
      dtype: Dtype of the computation.
    """

    filters: int
    stride: int = 1
    bottleneck: bool = False
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
            y = _conv(out if last else self.filters, size, stride, self.dtype, f"conv{i}")(y)
            # A block starts as its shortcut: Goyal et al. 2017, section 5.1.
            y = _norm(train, self.dtype, f"bn{i}", zero=last)(y)
            y = y if last else nn.relu(y)
        if x.shape[-1] != out or self.stride > 1:
            x = _conv(out, 1, self.stride, self.dtype, "shortcut")(x)
            x = _norm(train, self.dtype, "shortcut_bn")(x)
        return nn.relu(y + x)


class ImageNetStage(nn.Module):
    """A row of blocks `block1`, `block2`, ... of one width; the first one has the stride.

    Attributes:
      blocks: Number of blocks.
      filters: See `ImageNetBlock`, as are the others.
      stride: Stride of the first block.
      bottleneck: Kind of the blocks.
      dtype: Dtype of the computation.
    """

    blocks: int
    filters: int
    stride: int
    bottleneck: bool
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map [N, H, W, C] to [N, ceil(H / stride), ceil(W / stride), filters or 4 filters]."""
        for i in range(1, self.blocks + 1):
            stride = self.stride if i == 1 else 1
            block = ImageNetBlock(
                self.filters, stride, self.bottleneck, self.dtype, name=f"block{i}"
            )
            x = block(x, train)
        return x


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
        """Compute logits.

        Args:
          x: [N, H, W, 3] normalised images; ImageNet's are 224x224x3.
          train: Whether batch norms use the batch's statistics and update `batch_stats`.

        Returns:
          [N, num_classes] logits.
        """
        x = _conv(self.width, 7, 2, self.dtype, "stem")(x)
        x = nn.relu(_norm(train, self.dtype, "stem_bn")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for i, blocks in enumerate(self.blocks):
            stage = ImageNetStage(
                blocks,
                self.width * 2**i,
                1 if i == 0 else 2,
                self.bottleneck,
                self.dtype,
                name=f"stage{i + 1}",
            )
            x = stage(x, train)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)


def resnet18(**options: Any) -> ImageNetResNet:
    """ResNet-18: 11.7 M parameters, 1.814 G multiply-adds at 224x224."""
    return ImageNetResNet(blocks=(2, 2, 2, 2), **options)


def resnet50(**options: Any) -> ImageNetResNet:
    """ResNet-50: 25.6 M parameters, 4.09 G multiply-adds at 224x224."""
    return ImageNetResNet(blocks=(3, 4, 6, 3), bottleneck=True, **options)


def _conv(filters, size, stride, dtype, name):
    # Padding on both sides alike is PyTorch's rule; Flax's 'SAME' pads the far side only.
    return nn.Conv(
        filters,
        (size, size),
        strides=(stride, stride),
        padding=size // 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        name=name,
    )


def _norm(train, dtype, name, zero=False):
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        scale_init=nn.initializers.zeros if zero else nn.initializers.ones,
        name=name,
    )
