"""Equations as MathML, made by docutils while the pages are built: no script, no network.

An equation that docutils cannot read is a warning, and so stops the build.
"""

import html
import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

# Only what \left and \right made, the ends of a row, is to grow with its content.
_FENCE = re.compile(r"(<mrow>\s*)?<mo[^>]*>([(){}\[\]|‖⌊⌋⌈⌉])</mo>(?!\s*</mrow>)")
LOGGER = logging.getLogger(__name__)


def setup(app):
    app.add_html_math_renderer(
        "mathml", inline_renderers=(inline, None), block_renderers=(display, None)
    )
    return {"parallel_read_safe": True}


def inline(self, node):
    self.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def display(self, node):
    self.body.append(f'<div class="math">{_mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def _mathml(node, as_block):
    tex = node.astext()
    try:
        return _FENCE.sub(_fixed, tex2mathml(tex, as_block=as_block))
    except MathError as error:
        LOGGER.warning("an equation cannot be read: %s: %s", error, tex, location=node)
        return html.escape(tex)


def _fixed(found):
    opening, fence = found.groups()
    return found[0] if opening else f'<mo stretchy="false">{fence}</mo>'
