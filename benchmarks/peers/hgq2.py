"""HGQ2's learned bits in a Keras ResNet-20 of the same layers, on Keras's JAX backend.

Run: benchmarks/peers/run hgq2 [--rounds 25]
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.peers.linen import Batch, Family, accuracy, cross_entropy
from benchmarks.peers.measure import main
from benchmarks.step_time import kept_relu


def resnet(conv: Callable, dense: Callable, relu: Callable) -> Any:
    """bitjax's `resnet20`, from Keras's layers; batch norms and sums stay float."""
    import keras
    from keras import layers

    def convolve(x, filters, stride=1):
        x = conv(
            filters, 3, strides=stride, padding="same", use_bias=False,
            kernel_initializer="he_normal",
        )(x)  # fmt: skip
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)

    def shortcut(x, filters, stride):
        extra = filters - x.shape[-1]
        x = x[:, ::stride, ::stride, :] if stride > 1 else x
        return keras.ops.pad(x, [(0, 0)] * 3 + [(extra // 2, extra // 2)]) if extra else x

    keras.utils.set_random_seed(0)
    inputs = layers.Input((32, 32, 3))
    x = layers.Activation(relu)(convolve(inputs, 16))
    for filters in (16, 32, 64):
        for block in range(3):
            stride = 2 if filters > 16 and block == 0 else 1
            y = layers.Activation(relu)(convolve(x, filters, stride))
            y = convolve(y, filters) + shortcut(x, filters, stride)
            x = layers.Activation(relu)(y)
    return keras.Model(inputs, dense(10)(layers.GlobalAveragePooling2D()(x)))


def keras_step(model: Any) -> tuple[Callable, Any]:
    """`(step, state)` of a Keras model by SGD with momentum, as Keras's guide to JAX writes it."""
    import keras

    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    optimizer.build(model.trainable_variables)
    own = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)

    def step(state: Any, batch: Batch) -> Any:
        params, rest, moments = state

        def loss_of(params):
            logits, updates, extra = model.stateless_call(
                params, rest, batch["image"], training=True, return_losses=True
            )
            loss = jnp.mean(cross_entropy(logits, batch["label"])) + sum(extra)
            return loss, (logits, updates)

        (loss, (logits, rest)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        params, moments = optimizer.stateless_apply(moments, grads, params)
        metrics = {"loss": loss, "accuracy": accuracy(logits, batch["label"])}
        return (params, rest, moments), metrics

    return step, tuple([jnp.copy(variable.value) for variable in group] for group in own)


def family(batch: Batch) -> Family:
    """float, the defaults of HGQ2's README, and one bitlength per tensor as bitjax learns it."""
    # Of bits per tensor EBOPs are a convolution of two broadcast numbers, which XLA's CPU library
    # (jaxlib 0.10.2) works out wrongly under jit, up to 1e33: they are left out there.
    os.environ["KERAS_BACKEND"] = "jax"
    from hgq.config import LayerConfigScope, QuantizerConfigScope
    from hgq.layers import QConv2D, QDense
    from keras import activations, layers

    def quantized(ebops=True, **settings):
        with ExitStack() as scopes:
            for place, kind, overflow in (("all", "kbi", "SAT_SYM"), ("datalane", "kif", "WRAP")):
                form = {"default_q_type": kind, "overflow_mode": overflow, **settings}
                scopes.enter_context(QuantizerConfigScope(place=place, **form))
            scopes.enter_context(LayerConfigScope(enable_ebops=ebops, beta0=1e-5))
            return keras_step(resnet(QConv2D, QDense, activations.relu))

    return {
        "keras float": keras_step(resnet(layers.Conv2D, layers.Dense, activations.relu)),
        "keras float, kept": keras_step(resnet(layers.Conv2D, layers.Dense, kept_relu)),
        "hgq2, bits per element": quantized(),
        "hgq2, bits per tensor, no EBOPs": quantized(
            ebops=False, heterogeneous_axis=(), homogeneous_axis=None
        ),
    }


if __name__ == "__main__":
    main(["hgq2", "keras"], family)
