"""Writes a comparison as one page that needs nothing else: data, script and style are inside it.

The script (the files of `page/`, joined) draws everything from the data, and puts text only where
text goes, never as HTML. The page's security policy lets exactly this script run and nothing be
fetched, so that a run's name cannot do either.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from bitjax.report.comparison import Comparison
from bitjax.report.page_data import page_data

_SCRIPTS = ("base", "tables", "axes", "pareto", "map", "detail", "main")

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
script-src 'sha256-{script_hash}'{policy}; style-src 'sha256-{style_hash}'; base-uri 'none'; \
form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1></header>
<main id="main"><noscript>This page draws its tables with JavaScript.</noscript></main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
{reload}</body>
</html>
"""


def page(
    comparison: Comparison,
    commands: Mapping[str, str],
    *,
    title: str = "Comparison of runs",
    beside: str = ".",
    reload: str = "",
) -> str:
    """The whole page as text.

    Args:
      comparison: The comparison to show.
      commands: Shell commands that make a run again, by the run's folder.
      title: Title of the page.
      beside: The folder that the page will be in, to which its links to files are relative.
      reload: A further script, of a page that is served; it may ask the server.
    """
    style = (resources.files("bitjax.report") / "page" / "page.css").read_text("utf-8")
    script = page_script()
    return _PAGE.format(
        title=html.escape(title),
        data=_script_safe(page_data(comparison, commands, beside)),
        script=script,
        style=style,
        script_hash=_hash(script),
        style_hash=_hash(style),
        policy=f" 'sha256-{_hash(reload)}'; connect-src 'self'" if reload else "",
        reload=f"<script>{reload}</script>\n" if reload else "",
    )


def page_script() -> str:
    """The page's script: its files in a scope of their own."""
    folder = resources.files("bitjax.report") / "page"
    parts = [(folder / f"{name}.js").read_text("utf-8") for name in _SCRIPTS]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


def _script_safe(value: Any) -> str:
    # "</script>" or "<!--" inside a string would end the element that holds it.
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
