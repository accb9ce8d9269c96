"""SqueezeNet of Iandola et al. 2016, version 1.0, arXiv 1602.07360."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bitjax.checks import checked
from bitjax.models.layers import COUNT, FIELDS, check_size, conv

# Times of `width` that each fire module squeezes to; behind 4 and 8 there is a pool.
_FIRES = {2: 1, 3: 1, 4: 2, 5: 2, 6: 3, 7: 3, 8: 4, 9: 4}
_POOLED = (4, 8)


@checked(filters=COUNT, dtype=FIELDS["dtype"])
class Fire(nn.Module):
    """A 1x1 convolution `squeeze`; what it gives goes through `expand1` (1x1) and `expand3` (3x3).

    Attributes:
      filters: Filters of `squeeze`; the other two have four times as many each.
      dtype: Dtype of the computation; None: that of the inputs and parameters.
    """

    filters: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [N, H, W, C] to [N, H, W, 8 * filters]: `expand1`'s channels, then `expand3`'s."""
        wide = 4 * self.filters
        x = nn.relu(conv("squeeze", self.dtype, self.filters, 1, bias=True)(x))
        one = nn.relu(conv("expand1", self.dtype, wide, 1, bias=True)(x))
        three = nn.relu(conv("expand3", self.dtype, wide, 3, bias=True)(x))
        return jnp.concatenate([one, three], axis=-1)


@checked(**FIELDS)
class SqueezeNet(nn.Module):
    """A convolution `conv1`, `fire2` to `fire9`, a 1x1 convolution `head`, mean over positions.

    `conv1` is 7x7 of stride 2. Behind it, behind `fire4` and behind `fire8` is a 3x3 pool of stride
    2. Each layer has a bias and a ReLU, the head too: logits are means of positive parts.

    Attributes:
      num_classes: Number of logits.
      width: Filters that the first fire module squeezes to; `conv1` has 6 times as many.
      dtype: Dtype of the computation; None: that of the inputs and parameters.

    Raises:
      ValueError: If images are smaller than 35x35.

    Example:
      >>> model = SqueezeNet(width=2, num_classes=10)
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 35, 35, 3)))
      >>> shapes["params"]["fire9"]["expand3"]["kernel"].shape
      (3, 3, 8, 32)

    Source: Iandola et al., SqueezeNet, 2016, table 1: 1,248,424 parameters, 26 convolutions. As the
      authors' network the head pads its input by 1. Differs: no dropout behind `fire9`.
    """

    num_classes: int = 1000
    width: int = 16
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Normalised images [N, H, W, C] to logits [N, num_classes]; `train` changes nothing."""
        del train
        check_size(x, 35)
        # Caffe's pools count a last, partial window; at 227x227 there is none.
        first = conv("conv1", self.dtype, 6 * self.width, 7, 2, padding=0, bias=True)
        x = _pool(nn.relu(first(x)))
        for i, times in _FIRES.items():
            x = Fire(times * self.width, self.dtype, name=f"fire{i}")(x)
            x = _pool(x) if i in _POOLED else x
        head = conv("head", self.dtype, self.num_classes, 1, padding=1, bias=True)
        return jnp.mean(nn.relu(head(x)), axis=(1, 2))


def _pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), strides=(2, 2))
