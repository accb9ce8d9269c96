"""Networks that are attached normally at usual bits, of which the doctor has nothing to say."""

import jax
import jax.numpy as jnp
import pytest

import bitjax as bj
from bitjax.models import MLP, CifarResNet, SmallCNN

# Of every family a kernel's and an input's quantizer; the input is behind a ReLU.
LEARNED = {"range": "learned", "clip_bits": 4.0, "zero_on_grid": True}
UNIFORM = bj.uniform(4), bj.uniform(4)
LSQ = bj.lsq(4, granularity="per_channel"), bj.lsq(4, signed=False)
TWO = bj.lsq(2), bj.uniform(2, signed=False)
PACT = bj.uniform(8), bj.pact(4)
PLANES = bj.uniform(8, granularity="per_channel"), bj.bitplane(4)
TERNARY = bj.ternary(), bj.lsq(2, signed=False)
BINARY = bj.binary(), bj.hwgq(2, fit="measured")
BITS = bj.bitlength(8.0, **LEARNED), bj.bitlength(8.0, signed=False, **LEARNED)
BLEND = bj.bitlength(8.0), bj.bitlength(8.0)


def rules(image, families):
    """Rules by layer: `families` quantizes each pattern of layers; the first input is signed."""
    found = [bj.rule(f"{image}/input", bj.bitlength(8.0, **LEARNED))]
    for pattern, (kernel, data) in families.items():
        found += [bj.rule(f"{pattern}/kernel", kernel)]
        found += [] if pattern == image else [bj.rule(f"{pattern}/input", data)]
    return found


def nothing_found(net, shape, image, families):
    x = jax.random.normal(jax.random.key(0), shape)
    model = bj.Quantized(net, rules(image, families))
    variables = bj.attach(model, net.init(jax.random.key(1), x), x)
    found = bj.doctor(model, variables, x, labels=jnp.arange(len(x)) % net.num_classes)
    assert found == (), bj.doctor_report(found)


@pytest.mark.slow
def test_a_small_net_of_all_families_is_left_alone():
    net = MLP(features=(24, 24, 24, 24), num_classes=4)
    families = {"dense1": UNIFORM, "dense2": TERNARY, "dense3": PLANES, "dense4": BITS}
    nothing_found(net, (64, 16), "dense1", {**families, "head": BINARY})


@pytest.mark.slow
def test_a_convolutional_net_is_left_alone():
    families = {"conv1": UNIFORM, "conv2": LSQ, "conv3": PACT, ".*": BLEND}
    nothing_found(SmallCNN(), (64, 8, 8, 1), "conv1", families)


@pytest.mark.slow
def test_a_residual_net_is_left_alone():
    families = {"stem": UNIFORM, "stage1/.*": TWO, "stage2/.*": TERNARY, "stage3/.*1": PLANES}
    nothing_found(CifarResNet(depth=14), (32, 16, 16, 3), "stem", {**families, ".*": PACT})
