"""The ResNets for CIFAR of He et al. 2015, their shortcuts without parameters or projected."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bitjax.checks import checked, choice
from bitjax.models.layers import COUNT, FIELDS, Blocks, conv, norm

NORM = choice("batch", "none")
SHORTCUT = choice("pad", "project")


@checked(filters=COUNT, stride=COUNT)
def option_a_shortcut(x: jax.Array, filters: int, stride: int) -> jax.Array:
    """Every `stride`-th pixel of x, with zero channels added equally on both sides.

    Args:
      x: [N, H, W, C].
      filters: Number of channels to return, C or more, by an even difference.
      stride: Distance in pixels between the kept pixels.

    Returns:
      [N, ceil(H / stride), ceil(W / stride), filters], dtype of x; x itself if nothing changes.

    Raises:
      ValueError: If `filters` is less than C, or differs from it by an odd number.

    Example:
      >>> option_a_shortcut(jnp.ones((1, 2, 2, 1)), filters=3, stride=2).tolist()
      [[[[0.0, 1.0, 0.0]]]]

    Source: He et al., Deep Residual Learning, 2015, section 4.2. The paper does not say where
      the zeros go; the published weights were trained with half on each side.
    """
    extra = filters - x.shape[-1]
    if extra < 0 or extra % 2:
        raise ValueError(
            f"`filters` must be {x.shape[-1]} plus an even number, got {filters}; "
            "use an even `width`."
        )
    if stride > 1:
        x = x[:, ::stride, ::stride, :]
    if extra:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra // 2)))
    return x


@checked(filters=COUNT, stride=COUNT, norm=NORM, shortcut=SHORTCUT, dtype=FIELDS["dtype"])
class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; both read the same array.

    Attributes:
      filters: Number of channels that leave the block.
      stride: Stride of the first convolution and of the shortcut.
      dtype: Dtype of the computation.
      norm: `batch` normalises behind each convolution; `none` gives it a bias instead.
      shortcut: `pad` as `option_a_shortcut`; `project` where the shape changes.
    """

    filters: int
    stride: int = 1
    dtype: DTypeLike | None = None
    norm: str = "batch"
    shortcut: str = "pad"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map [N, H, W, C] to [N, ceil(H / stride), ceil(W / stride), filters]."""
        convolve = partial(_conv_norm, norm_as=self.norm, dtype=self.dtype, train=train)
        y = nn.relu(convolve(x, "conv1", "bn1", self.filters, stride=self.stride))
        y = convolve(y, "conv2", "bn2", self.filters)
        if self.shortcut == "pad":
            x = option_a_shortcut(x, self.filters, self.stride)
        elif x.shape[-1] != self.filters or self.stride > 1:
            x = convolve(x, "shortcut", "shortcut_bn", self.filters, size=1, stride=self.stride)
        return nn.relu(y + x)


def _conv_norm(x, name, norm_name, filters, *, size=3, stride=1, norm_as, dtype, train):
    """A convolution and its normalisation, or with a bias in place of that."""
    x = conv(name, dtype, filters, size, stride, bias=norm_as == "none")(x)
    return x if norm_as == "none" else norm(norm_name, dtype, train)(x)


@checked(depth=COUNT, norm=NORM, shortcut=SHORTCUT, **FIELDS)
class CifarResNet(nn.Module):
    """`stem`, `stem_bn`, `stage{1,2,3}/block{1..n}/{conv1,bn1,conv2,bn2}`, mean pooling, `head`.

    Attributes:
      depth: Number of layers with weights, 6 n + 2: 20, 32, 44, 56, ...
      num_classes: Number of logits.
      width: Filters of the stem and of stage 1; stages 2 and 3 have twice and four times as many.
      dtype: Dtype of the computation; None: that of the inputs and parameters.
      norm: `batch` normalises behind each convolution; `none` gives it a bias instead, as
        `load_resnet(path, folded=True)` has it.
      shortcut: `pad` leaves pixels out and adds channels of zeros (option A); `project` puts a 1x1
        convolution and its normalisation, `shortcut` and `shortcut_bn`, where the shape changes
        (option B).

    Raises:
      ValueError: If `depth` is not 6 n + 2 with n >= 1.

    Example:
      >>> model = CifarResNet(depth=8, width=4)
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> shapes["params"]["stage2"]["block1"]["conv1"]["kernel"].shape
      (3, 3, 4, 8)

    Source: He et al., Deep Residual Learning, 2015, arXiv 1512.03385, section 4.2 and table 6.
    """

    depth: int = 20
    num_classes: int = 10
    width: int = 16
    dtype: DTypeLike | None = None
    norm: str = "batch"
    shortcut: str = "pad"

    def __post_init__(self):
        if self.depth < 8 or (self.depth - 2) % 6:
            raise ValueError(
                f"`depth` must be 6 n + 2 with n >= 1 (8, 14, 20, ...), got {self.depth}."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Normalised images [N, H, W, C] to logits [N, num_classes]; `train` moves statistics."""
        blocks = (self.depth - 2) // 6
        common = {"norm_as": self.norm, "dtype": self.dtype, "train": train}
        x = nn.relu(_conv_norm(x, "stem", "stem_bn", self.width, **common))
        for i, stride in ((1, 1), (2, 2), (3, 2)):
            filters = self.width * 2 ** (i - 1)
            block = partial(
                ResidualBlock, filters=filters, dtype=self.dtype, norm=self.norm,
                shortcut=self.shortcut,
            )  # fmt: skip
            x = Blocks(blocks, stride, block, name=f"stage{i}")(x, train)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)


def resnet20(**options: Any) -> CifarResNet:
    """`CifarResNet(depth=20, **options)`: 0.27 M parameters, 8.75 % error in table 6."""
    return CifarResNet(depth=20, **options)


def resnet32(**options: Any) -> CifarResNet:
    """`CifarResNet(depth=32, **options)`: 0.46 M parameters, 7.51 % error in table 6."""
    return CifarResNet(depth=32, **options)


def resnet44(**options: Any) -> CifarResNet:
    """`CifarResNet(depth=44, **options)`: 0.66 M parameters, 7.17 % error in table 6."""
    return CifarResNet(depth=44, **options)


def resnet56(**options: Any) -> CifarResNet:
    """`CifarResNet(depth=56, **options)`: 0.85 M parameters, 6.97 % error in table 6."""
    return CifarResNet(depth=56, **options)
