"""MobileNetV2 (Sandler et al. 2018): inverted residuals with linear bottlenecks."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bitjax.checks import checked, several
from bitjax.models.layers import COUNT, FAN_OUT, FIELDS, SHARE, Blocks, conv, norm

# Expansion, filters in quarters of the stem's, blocks, stride of the first block: table 2.
STAGES = (
    (1, 2, 1, 1),
    (6, 3, 2, 2),
    (6, 4, 3, 2),
    (6, 8, 4, 2),
    (6, 12, 3, 1),
    (6, 20, 3, 2),
    (6, 40, 1, 1),
)


@checked(filters=COUNT, stride=COUNT, expansion=COUNT, dtype=FIELDS["dtype"])
class InvertedResidual(nn.Module):
    """`expand` (1x1), `depthwise` (3x3, a filter per channel), `project` (1x1, no rectifier).

    What leaves the block is signed: nothing rectifies it. Where the shape stays, x is added.

    Attributes:
      filters: Number of channels that leave the block.
      stride: Stride of the depthwise convolution.
      expansion: Times as many channels inside as come in; 1 leaves `expand` out.
      dtype: Dtype of the computation.
    """

    filters: int
    stride: int = 1
    expansion: int = 6
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map [N, H, W, C] to [N, ceil(H / stride), ceil(W / stride), filters]."""
        inside = self.expansion * x.shape[-1]
        y = x
        if self.expansion > 1:
            y = conv("expand", self.dtype, inside, 1, init=FAN_OUT)(y)
            y = nn.relu6(norm("expand_bn", self.dtype, train)(y))
        y = conv("depthwise", self.dtype, inside, 3, self.stride, groups=inside, init=FAN_OUT)(y)
        y = nn.relu6(norm("depthwise_bn", self.dtype, train)(y))
        y = conv("project", self.dtype, self.filters, 1, init=FAN_OUT)(y)
        y = norm("project_bn", self.dtype, train)(y)
        return x + y if y.shape == x.shape else y


@checked(stages=several(several(COUNT, 4, 4), 1), dropout=SHARE, **FIELDS)
class MobileNetV2(nn.Module):
    """`stem`, `stage{1..7}/block{1..n}/{expand,depthwise,project}`, `last`, mean, `head`.

    Every convolution has a batch norm, `stem_bn`, `expand_bn`, ..., and all but `project` a ReLU6
    behind it. Signed therefore are the inputs of `stem`, `expand` and `last`; those of `depthwise`,
    `project` and `head` are not below 0.

    Attributes:
      num_classes: Number of logits.
      width: Filters of the stem, a multiple of 4; the others are in proportion.
      stages: (expansion, quarters of `width` as filters, blocks, stride) of each stage.
      dropout: Probability of dropping an input of the head in training, which needs the PRNG key
        `dropout`.
      dtype: Dtype of the computation; None: that of the inputs and parameters.

    Raises:
      ValueError: If `width` is not a multiple of 4.

    Example:
      >>> model = MobileNetV2(width=8, stages=STAGES[:2])
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> block = shapes["params"]["stage2"]["block1"]
      >>> [block[name]["kernel"].shape for name in ("expand", "depthwise", "project")]
      [(1, 1, 4, 24), (3, 3, 1, 24), (1, 1, 24, 6)]

    Source: Sandler et al., MobileNetV2, CVPR 2018, arXiv 1801.04381, table 2, laid out as
      torchvision's `mobilenet_v2`: 3,504,872 parameters, 0.301 G multiply-adds at 224x224. Differs:
      narrower ones are in proportion, where theirs round filters to multiples of 8 and never have
      fewer than 1280 in `last`.
    """

    num_classes: int = 1000
    width: int = 32
    stages: Sequence[Sequence[int]] = STAGES
    dropout: float = 0.2
    dtype: DTypeLike | None = None

    def __post_init__(self):
        if self.width < 4 or self.width % 4:
            raise ValueError(f"`width` must be a multiple of 4, got {self.width}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Normalised images [N, H, W, C] to logits [N, num_classes]; `train` moves statistics."""
        x = conv("stem", self.dtype, self.width, 3, 2, init=FAN_OUT)(x)
        x = nn.relu6(norm("stem_bn", self.dtype, train)(x))
        for i, (expansion, quarters, blocks, stride) in enumerate(self.stages, 1):
            block = partial(
                InvertedResidual,
                filters=self.width * quarters // 4,
                expansion=expansion,
                dtype=self.dtype,
            )
            x = Blocks(blocks, stride, block, name=f"stage{i}")(x, train)
        x = conv("last", self.dtype, 40 * self.width, 1, init=FAN_OUT)(x)
        x = nn.relu6(norm("last_bn", self.dtype, train)(x))
        x = jnp.mean(x, axis=(1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        init = nn.initializers.normal(0.01)
        return nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=init, name="head")(x)
