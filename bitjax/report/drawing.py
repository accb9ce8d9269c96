"""Draws a deployed model's graph as SVG, with the bits of every tensor at its edge.

The style is Netron's (https://netron.app): a box for each operation, its kind in the head, what it
holds below. Boxes stand in the order in which they run; an edge that passes boxes runs beside them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bitjax.export.nodes import DEQUANTIZE, LOOKUP, QUANTIZE, Graph, Node

_TITLES = {"conv_general_dilated": "Conv", "dot_general": "MatMul", QUANTIZE: "Quantize",
           DEQUANTIZE: "Dequantize", LOOKUP: "Lookup", "": "float32"}  # fmt: skip
_HEADS = {"Conv": "#335588", "MatMul": "#335588", "Quantize": "#33663f", "Dequantize": "#33663f",
          "Lookup": "#33663f", "float32": "#6c4f47", "Input": "#5f6672",
          "Output": "#5f6672"}  # fmt: skip
_LINE, _CHAR, _PAD, _GAP, _LANE = 17, 6.7, 10, 36, 26  # of text and boxes, in pixels
_OPS = 4  # of a module that are named
_LONGEST = 60  # letters of a line; a name's end tells more than its beginning
_INTEGERS, _FLOATS = "#0072b2", "#8a8f98"
_FONT = "font-family='system-ui,-apple-system,Segoe UI,Helvetica,Arial,sans-serif' font-size='12'"


class _Box(NamedTuple):
    """One box: what it is, its lines, the numbers of the arrays it reads and gives."""

    title: str
    lines: tuple[str, ...]
    ins: tuple[int, ...]
    outs: tuple[int, ...]

    @property
    def height(self) -> int:
        return _LINE * (1 + len(self.lines)) + (17 if self.lines else 8)


class _Edge(NamedTuple):
    """One edge: rows of its two boxes, its label, its bits (32 are float), its lane."""

    first: int
    last: int
    label: str
    bits: float
    lane: int  # 0: straight down


def draw_graph(graph: Graph, title: str = "") -> str:
    """A deployed model's graph as an SVG picture, with bits on its edges.

    Integers are blue, the thicker the more bits they have; floats are grey. What stands between
    products and quantizers, such as scales and normalisations, is one box.

    Args:
      graph: What `bitjax.export.graph.graph_of` gave.
      title: What the picture shows, for who cannot see it.

    Returns:
      The text of an SVG file, which needs nothing else.

    Example:
      >>> import bitjax as bj, flax.linen as nn, jax
      >>> from bitjax.export.graph import graph_of
      >>> model = bj.Quantized(nn.Dense(2), [bj.rule(".*", bj.lsq(bits=4))])
      >>> x = jax.numpy.ones((1, 3))
      >>> fixed = bj.deploy(model, model.init(jax.random.key(0), x), x)
      >>> text = draw_graph(graph_of(fixed, x))
      >>> text[:4], "N×3 · 4 bits" in text, text.count("Quantize")
      ('<svg', True, 1)
    """
    boxes = _boxes(graph)
    edges = _edges(graph, boxes)
    boxes = [box._replace(lines=tuple(map(_cut, box.lines))) for box in boxes]
    texts = [(box.title, *box.lines) for box in boxes]
    width = int(max(_CHAR * len(text) for lines in texts for text in lines)) + 2 * _PAD
    tops = [_PAD]
    for box in boxes:
        tops.append(tops[-1] + box.height + _GAP)
    lanes = max((edge.lane for edge in edges), default=0)
    label = int(max((_CHAR * len(e.label) for e in edges), default=0))
    right = max(label / 2 - width / 2 + 40, lanes and lanes * _LANE + _PAD)
    left = _PAD
    whole, height = left + width + int(max(right, 0)) + label // 2 + _PAD, tops[-1] - _GAP + _PAD
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{whole}' height='{height}' "
        f"viewBox='0 0 {whole} {height}' role='img' {_FONT}>",
        f"<title>{_safe(title or 'Graph of a quantized model')}</title>",
        f"<rect width='{whole}' height='{height}' fill='#ffffff'/>",
    ]
    parts += [_drawn_edge(edge, boxes, tops, left, width) for edge in edges]
    parts += [_drawn(box, left, top, width) for box, top in zip(boxes, tops, strict=False)]
    return "\n".join([*parts, "</svg>\n"])


def _boxes(graph: Graph) -> list[_Box]:
    """A box for each input, product, quantizer, run of other operations, and output."""
    runs: list[list[Node]] = []
    for node in graph.nodes:
        if node.op in _TITLES or not runs or runs[-1][0].op in _TITLES:
            runs.append([])
        runs[-1].append(node)
    found = [_Box("Input", (name,), (), (i,)) for i, name in graph.inputs.items()]
    for run in runs:
        outs = tuple(i for node in run for i in node.outs)
        ins = dict.fromkeys(i for node in run for i in node.ins)
        ins = tuple(i for i in ins if i not in outs and i not in graph.constants)
        alone = run[0].op in _TITLES
        title, lines = ("", _lines_of(run)) if not alone else (run[0].op, _about(graph, run[0]))
        found.append(_Box(_TITLES[title], lines, ins, outs))
    return [*found, *(_Box("Output", (), (i,), ()) for i in graph.outputs)]


def _lines_of(run: Sequence[Node]) -> tuple[str, ...]:
    """The operations of a run, a line for each module in it."""
    lines: list[tuple[str, list[str]]] = []
    for node in run:
        if not lines or lines[-1][0] != node.name:
            lines.append((node.name, []))
        lines[-1][1].append(node.op)
    texts = []
    for name, ops in lines:
        more = f" and {len(ops) - _OPS} more" if len(ops) > _OPS else ""
        texts.append(f"{name}{': ' if name else ''}{', '.join(ops[:_OPS])}{more}")
    return tuple(texts)


def _about(graph: Graph, node: Node) -> tuple[str, ...]:
    """What a product or a quantizer holds: its name, and the kernel with its bits."""
    lines = [node.name] if node.name else []
    kernels = {kernel.number: kernel for kernel in graph.kernels.values()}
    for number in node.ins:
        if number in kernels and node.op not in (QUANTIZE, DEQUANTIZE, LOOKUP):
            bits = _bits_text(kernels[number].bits)
            lines.append(f"kernel {_times(graph.constants[number].shape)} · {bits}")
        elif number in graph.constants and "accumulator" not in node.params:
            lines.append(f"constant {_times(graph.constants[number].shape)}")
    return tuple(lines)


def _edges(graph: Graph, boxes: Sequence[_Box]) -> list[_Edge]:
    """From each box to those that read it; edges that pass boxes have lanes of their own."""
    bits = {node.outs[0]: np.asarray(node.params["bits"]) for node in graph.nodes
            if node.op in (QUANTIZE, LOOKUP)}  # fmt: skip
    sums = {node.outs[0] for node in graph.nodes if "accumulator" in node.params}
    made = {i: row for row, box in enumerate(boxes) for i in box.outs}
    edges: list[_Edge] = []
    free: list[int] = []  # the row from which each lane is free again
    for last, box in enumerate(boxes):
        for number in box.ins:
            first, lane = made[number], 0
            if last > first + 1:
                lane = next((k for k, row in enumerate(free, 1) if row <= first), len(free) + 1)
                free[lane - 1 : lane] = [last]
            kind = _bits_text(bits[number]) if number in bits else "sums" * (number in sums)
            shape = _shape_text(graph, number)
            label = f"{shape} · {kind}" if kind else shape
            width = float(np.mean(bits[number])) if number in bits else 32.0
            edges.append(_Edge(first, last, label, width, lane))
    return edges


def _bits_text(bits: Any) -> str:
    """'3 bits', or '2 to 5 bits' where channels differ."""
    least, most = (f"{float(f(bits)):g}" for f in (np.min, np.max))
    return f"{least if least == most else f'{least} to {most}'} bit{'' if most == '1' else 's'}"


def _shape_text(graph: Graph, number: int) -> str:
    """A tensor's shape, its batch called N."""
    value = graph.values[number]
    return _times("N" if grows else n for n, grows in zip(value.shape, value.growth, strict=True))


def _times(shape: Any) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _drawn(box: _Box, left: int, top: int, width: int) -> str:
    """A box with its head and its lines."""
    colour = _HEADS.get(box.title, "#333333")
    head = _LINE + 8
    parts = [
        f"<rect x='{left}' y='{top}' width='{width}' height='{box.height}' rx='5' fill='{colour}'/>"
    ]
    if box.lines:
        parts.append(
            f"<rect x='{left + 1}' y='{top + head}' width='{width - 2}' "
            f"height='{box.height - head - 1}' rx='4' fill='#ffffff'/>"
        )
    for k, text in enumerate((box.title, *box.lines)):
        y = top + _LINE * (k + 1) + (7 if k else 0)
        style = "fill='#1c1e21'" if k else "fill='#ffffff' font-weight='600'"
        parts.append(f"<text x='{left + _PAD}' y='{y}' {style}>{_safe(text)}</text>")
    return "".join(parts)


def _drawn_edge(
    edge: _Edge, boxes: Sequence[_Box], tops: Sequence[int], left: int, width: int
) -> str:
    """An edge from the foot of a box to the head of another, and its label behind the first."""
    middle, begin = left + width / 2, tops[edge.first] + boxes[edge.first].height
    end = tops[edge.last]
    colour = _FLOATS if edge.bits >= 32 else _INTEGERS
    thick = 1.2 if edge.bits >= 32 else 1 + edge.bits / 2
    if edge.lane:
        side, bend = left + width + edge.lane * _LANE - 8, _GAP / 2
        start, into = left + width - 14, left + width - 14
        path = (
            f"M{start},{begin} C{start},{begin + bend} {side},{begin} {side},{begin + bend} "
            f"L{side},{end - bend} C{side},{end} {into},{end - bend} {into},{end - 6}"
        )
        tip, label = into, ""
    else:
        path, tip = f"M{middle:g},{begin} L{middle:g},{end - 6}", middle
        label = (
            f"<text x='{middle + 9:g}' y='{(begin + end) / 2 + 4:g}' fill='{colour}'>"
            f"{_safe(edge.label)}</text>"
        )
    arrow = f"<path d='M{tip - 4:g},{end - 7} h8 l-4,7 z' fill='{colour}'/>"
    return (
        f"<path d='{path}' fill='none' stroke='{colour}' stroke-width='{thick:g}'/>{arrow}{label}"
    )


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"…{text[1 - _LONGEST :]}"


def _safe(text: str) -> str:
    """Text for SVG; control characters, which XML does not allow, are left out."""
    return html.escape(re.sub(r"[\x00-\x1f\x7f]", "", text))
