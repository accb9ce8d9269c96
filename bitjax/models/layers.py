"""The layers that several models are built from, each with the name that its variables get."""

from collections.abc import Callable

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from bitjax.checks import DTYPE, NONE, either, integer, number

EPSILON = 1e-5  # of batch norms
HE_NORMAL = nn.initializers.he_normal()
FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

# What the fields of models may be.
COUNT = integer(1)
SHARE = number(0, 1, below=True)
FIELDS = {"num_classes": COUNT, "width": COUNT, "dtype": either(NONE, DTYPE)}


def conv(
    name: str,
    dtype: DTypeLike | None,
    filters: int,
    size: int = 3,
    stride: int = 1,
    *,
    padding: int | None = None,
    groups: int = 1,
    bias: bool = False,
    init: Callable = HE_NORMAL,
) -> nn.Conv:
    """A square convolution, padded by half its size unless told otherwise."""
    # The same padding on every side is PyTorch's rule; at stride 2 Flax's 'SAME' pads only one.
    return nn.Conv(
        filters, (size, size), strides=(stride, stride),
        padding=size // 2 if padding is None else padding, feature_group_count=groups,
        use_bias=bias, dtype=dtype, kernel_init=init, name=name,
    )  # fmt: skip


def norm(
    name: str,
    dtype: DTypeLike | None,
    train: bool,
    *,
    affine: bool = True,
    start: Callable = nn.initializers.ones,
) -> nn.BatchNorm:
    """A batch norm whose running statistics move by 0.1; `affine` learns a scale and a shift."""
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=EPSILON, use_scale=affine,
        use_bias=affine, scale_init=start, dtype=dtype, name=name,
    )  # fmt: skip


class Blocks(nn.Module):
    """A row of blocks `block1`, `block2`, ...; only the first one has the stride."""

    count: int
    stride: int
    block: Callable[..., nn.Module]  # takes `stride` and `name`

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map [N, H, W, C] to [N, ceil(H / stride), ceil(W / stride), channels of a block]."""
        for i in range(1, self.count + 1):
            x = self.block(stride=self.stride if i == 1 else 1, name=f"block{i}")(x, train)
        return x


def check_size(x: jax.Array, least: int) -> None:
    """Raises a ValueError for images of less than `least` x `least` pixels."""
    if min(x.shape[1:3]) < least:
        raise ValueError(
            f"`x` must have images of {least}x{least} or more, got {x.shape[1]}x{x.shape[2]}."
        )
