"""How Sphinx builds these pages; `make docs` runs it, with warnings as errors."""

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]  # the pages' extensions; experiments, configs

from bitjax import __version__  # noqa: E402  it is found by the path

project = "bitjax"
version = release = __version__
author = "The bitjax authors"
copyright = "The bitjax authors, Apache-2.0"  # noqa: A001  the name is Sphinx's

extensions = [
    "house_docstrings",
    "mathml",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "_ext"]
default_role = "code"

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
nb_render_markdown_format = "myst"  # tables in outputs, too
nb_execution_mode = "off"  # they come with their outputs

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]  # else they are "Variables"
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"bitjax {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["bitjax.css"]
html_js_files = ["offline.js"]
html_copy_source = False


PAGE = """# {title}

{about}

```{{toctree}}
:maxdepth: 1

{names}
```
"""


def copy_pages(app, config):
    """Sphinx reads only what is under docs/; notebooks and results tables live beside it."""
    copy(
        "notebooks",
        sorted(HERE.parent.glob("notebooks/*.ipynb")),
        "Notebooks",
        "The notebooks of the folder `notebooks/`, with the outputs that they were committed with.",
    )
    copy(
        "tables",
        [
            p
            for p in sorted(HERE.parent.glob("results/*.md"))
            if p.stem not in ("README", "lab_book")
        ],
        "Tables",
        "Results tables, each made by one command: `python -m experiments.reproduce NAME`.",
    )


def copy(folder, found, title, about):
    """Copies pages into a folder of docs/ that git ignores, with a page that lists them."""
    copies = HERE / folder
    shutil.rmtree(copies, ignore_errors=True)  # at first there are none
    copies.mkdir()
    for page in found:
        shutil.copy(page, copies)
    names = "\n".join(page.stem for page in found)
    text = PAGE.format(title=title, about=about, names=names)
    if not found:
        text = f"# {title}\n\nThere are none in this version.\n"
    (copies / "index.md").write_text(text, "utf-8")


def setup(app):
    app.connect("config-inited", copy_pages)
