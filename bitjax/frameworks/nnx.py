"""`quantize(model, rules, *batch)`: an NNX model with quantizers. Loads NNX when it is called."""

from typing import Any

from bitjax.checks import SWITCH, checked
from bitjax.rules import Rules


@checked(sums=SWITCH)
def quantize(model: Any, rules: Rules = (), *batch: Any, sums: bool = False, **kwargs: Any) -> Any:
    """Puts quantizers beside an NNX model, and gives a module that is called like the model.

    The model stays as it is, and keeps its variables: it is the result's attribute `model`. Sites
    are named by the paths of its parameters, as in `bitjax.Quantized`; a product of two
    activations by the path of the kernels that feed it: `attn/product0/left`.

    Quantizers' variables lie beside the model as `quant/<site>/<leaf>` and
    `quant_stats/<site>/<leaf>`. What training moves is an `nnx.Param`, so that `nnx.grad` and
    `nnx.Optimizer` learn it; observed ranges are `nnx.BatchStat`s; fixed bits are neither.

    The result trains or evaluates by NNX's own calls: `train()` and `eval()` set its
    `use_running_average` like that of a batch normalisation. In training, batches' own statistics
    quantize, and the moving ones move. It begins in the model's mode. A `train=`, `training=` or
    `deterministic=` among the call's arguments decides before the mode does.

    Two attributes may be set: `axis_name`, the device axis over which statistics are merged, and
    `rngs`, an `nnx.Rngs` whose stream `quant` serves quantizers that draw in training.

    Args:
      model: an `nnx.Module`.
      rules: the rules, from `bitjax.rule`. The first one that matches a site decides; a site that
        none matches stays float.
      *batch: one real batch, the positional arguments of the model: ranges start from it. The
        model evaluates it, and none of its variables changes.
      sums: whether the addends of residual sums are sites too.
      **kwargs: keyword arguments of the model.

    Returns:
      An `nnx.Module`. `functional()` gives `(function, variables)`, which bitjax's tools take, and
      `update(variables)` takes variables that they changed.

    Raises:
      TypeError: the model is no `nnx.Module` (the message says what to call), or rules came
        without a batch.
      ValueError: a rule does nothing.

    Example:
      >>> from flax import nnx
      >>> import bitjax as bj, jax.numpy as jnp
      >>> float_model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
      >>> model = quantize(float_model, [bj.rule(".*", bj.lsq(bits=4))], jnp.ones((1, 3)))
      >>> model(jnp.ones((1, 3))).shape, sorted(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
      ((1, 2), ['model', 'quant'])
    """
    from bitjax.frameworks.nnx_module import quantized

    return quantized(model, rules, batch, kwargs, sums)
