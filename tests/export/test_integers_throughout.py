"""A residual network with quantized sums and power-of-two scales is integers and shifts alone."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.export.graph import graph_of
from bitjax.export.interpreter import interpret
from bitjax.launch.build import build_rules
from bitjax.models import CifarResNet
from configs.cifar10.resnet20_int8 import get_config

pytestmark = pytest.mark.slow


class Tiny(NamedTuple):
    """A deployed network with random weights, its images, and what JAX finds at its sites."""

    fixed: bj.Deployed
    images: jax.Array
    ran: Any


@pytest.fixture(scope="module")
def tiny():
    model = CifarResNet(depth=8, width=2, norm="none")
    rules = [(site, {**one, "range": "minmax"}) for site, one in get_config().rules]  # compile fast
    net = bj.Quantized(model, build_rules(rules), sums=True)
    images = jax.random.normal(jax.random.key(0), (6, 8, 8, 3))
    floats = model.init(jax.random.key(1), images)
    floats = jax.tree.map(lambda x: x + 0.05 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), floats)
    fixed = bj.deploy(net, bj.attach(net, floats, images), images)
    fixed = bj.integer_biases(fixed, images)
    return Tiny(fixed, images, bj.integer_model(fixed, images).sites(images))


def test_every_code_sum_and_logit_of_every_image_is_the_same_in_jax_and_numpy(tiny):
    found = interpret(graph_of(tiny.fixed, tiny.images), tiny.images)
    sites = [site for site in tiny.fixed.variables["quant"] if site]
    assert len(sites) == 5 and "stage2/block1/sum0/right" in found.integers
    jax.tree.map(np.testing.assert_array_equal, found.integers, dict(tiny.ran.integers))
    jax.tree.map(np.testing.assert_array_equal, found.sums, dict(tiny.ran.sums))
    np.testing.assert_array_equal(found.out, tiny.ran.out)


class Fixed(NamedTuple):
    """Numbers `whole * 2^-point`, as hardware without floats holds them."""

    whole: np.ndarray  # int64
    point: int | np.ndarray


def aligned(x, point):
    return np.left_shift(x.whole, point - x.point)


def point_of(scale):
    return -np.log2(np.asarray(scale, np.float64)).astype(int)


class Hardware:
    """The network in integers, shifts and compares, from what a deployed model holds."""

    def __init__(self, fixed):
        self.params, self.quant = (fixed.variables[name] for name in ("params", "quant"))
        self.codes = {}

    def at(self, tree, path):
        for name in path.split("/"):
            tree = tree[name]
        return tree

    def quantize(self, site, x, signed=False):
        """Shifts to a site's scale, rounding halves to even, and limits to 8 bits."""
        point = int(point_of(self.at(self.quant, site)["scale"]))
        by = np.asarray(x.point) - point
        down = np.maximum(by, 1)
        low, rest = x.whole >> down, x.whole & (1 << down) - 1
        half = 1 << down - 1
        rounded = low + ((rest > half) | ((rest == half) & (low & 1 == 1)))
        whole = np.where(by <= 0, x.whole << np.maximum(-by, 0), rounded)
        first, last = (-128, 127) if signed else (0, 255)
        self.codes[site] = np.clip(whole, first, last)
        return Fixed(self.codes[site], point)

    def layer(self, name, x, stride=1, signed=False):
        """A convolution or a dense layer with an integer bias."""
        x = self.quantize(f"{name}/input", x, signed)
        leaves, scale = self.at(self.params, name), self.at(self.quant, name)["kernel"]["scale"]
        point = point_of(scale).reshape(-1)
        kernel = np.asarray(leaves["kernel"], np.float64) * 2.0**point
        bias = np.asarray(leaves["bias"], np.float64) * 2.0 ** (point + x.point)
        assert (kernel == np.rint(kernel)).all() and np.abs(kernel).max() <= 127
        assert (bias == np.rint(bias)).all()
        product = conv3x3 if kernel.ndim == 4 else (lambda x, k, _: x @ k)
        sums = product(x.whole, kernel.astype(np.int64), stride)
        return Fixed(sums + bias.astype(np.int64), point + x.point)

    def block(self, name, x, filters, stride):
        y = relu(self.layer(f"{name}/conv1", x, stride))
        y = self.quantize(f"{name}/sum0/left", self.layer(f"{name}/conv2", y), signed=True)
        shortcut = self.quantize(f"{name}/sum0/right", x)
        extra = (filters - x.whole.shape[-1]) // 2
        taken = np.pad(shortcut.whole[:, ::stride, ::stride], ((0, 0),) * 3 + ((extra, extra),))
        point = max(y.point, shortcut.point)
        both = aligned(y, point) + aligned(shortcut._replace(whole=taken), point)
        return relu(Fixed(both, point))


def relu(x):
    return x._replace(whole=np.maximum(x.whole, 0))


def conv3x3(x, kernel, stride):
    rows, columns = (range(0, size, stride) for size in x.shape[1:3])
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    pixels = [[np.tensordot(x[:, r : r + 3, c : c + 3], kernel, 3) for c in columns] for r in rows]
    return np.moveaxis(np.asarray(pixels), 2, 0)


def test_integers_shifts_and_compares_give_every_code_and_the_logits_exactly(tiny):
    hardware = Hardware(tiny.fixed)
    # The image is normalised in floats: its codes are where the integers begin.
    stem = tiny.fixed.variables["quant"]["stem"]["input"]["scale"]
    codes = np.asarray(tiny.ran.integers["stem/input"], np.int64)
    x = relu(hardware.layer("stem", Fixed(codes, int(point_of(stem))), signed=True))
    for i, stride in ((1, 1), (2, 2), (3, 2)):
        x = hardware.block(f"stage{i}/block1", x, 2 * 2 ** (i - 1), stride)
    pooled = Fixed(x.whole.sum((1, 2)), x.point + 2)  # the mean of 2 x 2 pixels
    logits = hardware.layer("head", pooled)
    assert {*hardware.codes} == {*tiny.ran.integers}
    for site, found in hardware.codes.items():
        np.testing.assert_array_equal(found, tiny.ran.integers[site], site)
    np.testing.assert_array_equal(logits.whole * 2.0**-logits.point, tiny.ran.out)
