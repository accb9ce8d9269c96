"""Equations as MathML, made by docutils while the pages are built: no script, no network.

An equation that docutils cannot read is a warning, and so stops the build.
"""

import html

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)


def setup(app):
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None),
                               block_renderers=(display, None))
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
        return tex2mathml(tex, as_block=as_block)
    except MathError as error:
        LOGGER.warning("an equation cannot be read: %s: %s", error, tex, location=node)
        return html.escape(tex)


