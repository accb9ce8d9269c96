"""How Sphinx builds these pages; `make docs` runs it, with warnings as errors."""

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]  # the pages' extensions; experiments, configs

project = "bitjax"
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
html_title = "bitjax"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["bitjax.css"]
html_copy_source = False


def copy_notebooks(app):
    """Notebooks live beside the package; Sphinx reads only what is under docs/."""
    copies = HERE / "notebooks"
    shutil.rmtree(copies, ignore_errors=True)
    copies.mkdir()
    for notebook in sorted(HERE.parent.glob("notebooks/*.ipynb")):
        shutil.copy(notebook, copies)


def setup(app):
    app.connect("config-inited", lambda app, config: copy_notebooks(app))
