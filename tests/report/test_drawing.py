"""The picture of a graph is whole SVG, and says what the graph says."""

from xml.etree import ElementTree

import flax.linen as nn
import jax
import pytest

import bitjax as bj
from bitjax.export.graph import graph_of
from bitjax.report.drawing import draw_graph

RULES = [
    bj.rule("first/kernel", bj.uniform(bits=3)),
    bj.rule(".*/kernel", bj.uniform(bits=4)),
    bj.rule(".*", bj.uniform(bits=2)),
]


class Residual(nn.Module):
    """Two layers, and a sum that passes the second."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(6, name="first")(x))
        return x + nn.Dense(6, name="second")(x)


@pytest.fixture(scope="module")
def graph():
    model, x = bj.Quantized(Residual(), RULES), jax.numpy.ones((2, 5))
    return graph_of(bj.deploy(model, model.init(jax.random.key(0), x), x), x)


def texts(svg):
    found = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return [element.text for element in found]


def test_every_site_is_there_with_its_bits_and_the_batch_is_called_n(graph):
    found = texts(draw_graph(graph))
    assert found.count("Quantize") == found.count("MatMul") == 2
    assert {"first/input", "kernel 5×6 · 3 bits", "kernel 6×6 · 4 bits"} <= set(found)
    assert {"N×5 · 2 bits", "N×6 · 2 bits", "N×6 · sums"} <= set(found)


def test_what_passes_boxes_runs_beside_them(graph):
    svg = draw_graph(graph)
    assert svg.count(" C") == 2  # one edge: down to the sum, behind both boxes of `second`


def test_names_are_text_and_no_markup():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="<b>&'")(x)

    model, x = bj.Quantized(Net(), [bj.rule(".*", bj.uniform(bits=2))]), jax.numpy.ones((1, 3))
    drawn = graph_of(bj.deploy(model, model.init(jax.random.key(0), x), x), x)
    assert "<b>&'/input" in texts(draw_graph(drawn, title="a < b\x00"))
