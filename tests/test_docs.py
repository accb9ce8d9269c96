"""The documentation names everything that is public, and names nothing that is not there."""

import importlib
import importlib.util
import inspect
import re
import types
from pathlib import Path

import pytest

import bitjax
from bitjax import data, methods, models, quantizers, solvers
from bitjax.launch.registry import METHODS, QUANTIZERS
from bitjax.launch.registry import MODELS as MODEL_FACTORIES
from configs import base
from experiments.gallery import MOST

DOCS = Path(__file__).parent.parent / "docs"
MADE = ("_build", "notebooks", "tables")  # by `make docs`
PAGES = {p.relative_to(DOCS).as_posix(): p.read_text("utf-8") for p in DOCS.rglob("*.md")}
PAGES = {name: text for name, text in PAGES.items() if not name.startswith(MADE)}
README = (DOCS.parent / "README.md").read_text("utf-8")
OUTSIDE = ("README.md", "CONTRIBUTING.md", "results/README.md")
DIRECTIVE = re.compile(r"^\.\. (?:auto\w+|py:\w+):: ([\w.]+)", re.MULTILINE)
ROLE = re.compile(r"\{py:(?:func|class|obj)\}`~?([\w.]+)`")
DOCUMENTED = {name: page for page, text in PAGES.items() for name in DIRECTIVE.findall(text)}


def resolve(name: str) -> object:
    """What a name in full stands for; attributes before modules, as `bitjax.budget` is both."""
    top, *rest = name.split(".")
    found: object = importlib.import_module(top)
    for i, part in enumerate(rest, 2):
        if not hasattr(found, part):
            importlib.import_module(".".join(name.split(".")[:i]))
        found = getattr(found, part)
    return found


def exported(module: types.ModuleType) -> dict[str, object]:
    """The names that a package offers, modules left aside."""
    values = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
    return {name: value for name, value in values.items() if not inspect.ismodule(value)}


@pytest.mark.parametrize("module", [bitjax, quantizers, solvers, methods, models, data])
def test_every_public_name_is_in_the_reference(module):
    known = {id(resolve(name)) for name in DOCUMENTED}
    missing = [name for name, value in exported(module).items() if id(value) not in known]
    assert not missing, f"add {missing} of {module.__name__} to a page of docs/api or docs/methods"


def test_every_documented_name_is_there_and_documented_once():
    for name in DOCUMENTED:
        resolve(name)
    names = [name for text in PAGES.values() for name in DIRECTIVE.findall(text)]
    assert sorted(names) == sorted(set(names))


def test_links_to_names_lead_to_documented_ones():
    links = {(page, name) for page, text in PAGES.items() for name in ROLE.findall(text)}
    assert not {(page, name) for page, name in links if name not in DOCUMENTED}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_has_a_page_with_its_factory_and_a_config(name):
    page = f"methods/{name}.md"
    assert DOCUMENTED.get(f"bitjax.methods.{name}") == page
    configs = re.findall(r"`(configs/\w+/\w+\.py)", PAGES[page])
    assert configs and all((DOCS.parent / path).is_file() for path in configs)


@pytest.mark.parametrize("factory", [*QUANTIZERS.values(), *MODEL_FACTORIES.values()])
def test_everything_that_a_config_may_name_is_in_the_reference(factory):
    assert id(factory) in {id(resolve(name)) for name in DOCUMENTED}


def test_every_key_of_a_config_is_in_the_configuration_reference():
    page = PAGES["guides/configuration.md"]

    def keys(config, prefix="config."):
        for key, value in config.items():
            yield from keys(value, f"{prefix}{key}.") if hasattr(value, "items") else [prefix + key]

    missing = [key for key in keys(base.get_config()) if f"`{key}`" not in page]
    assert not missing


DOCSTRING = r"""One line of |x| * y, and of `a*b`.

With u = |x|:

  q = clip(u * 2)

$$\min_x
x^2$$

Kinds:
  one: the first, of
    two lines.
  two: the second.

| a | b |
|---|---|
| 1 | x_ |

Args:
  *args: of |x|.

Source: a paper, and
  more of it.
"""


def test_plain_docstrings_become_markup_with_nothing_lost():
    path = DOCS / "_ext" / "house_docstrings.py"
    spec = importlib.util.spec_from_file_location("house_docstrings", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.convert(DOCSTRING)
    assert r"One line of \|x\| \* y, and of ``a*b``." in found
    assert "::\n\n   q = clip(u * 2)\n" in found
    assert ".. math::\n\n   \\min_x\n   x^2\n" in found
    assert "* ``one``: the first, of two lines.\n* ``two``: the second." in found
    assert "   * - a\n     - b\n   * - 1\n     - x\\_" in found
    assert "Args:\n  *args: of \\|x\\|." in found
    assert "**Source:** a paper, and more of it." in found


def test_pages_name_only_files_that_are_there():
    for page, text in PAGES.items():
        for path in re.findall(r"`((?:bitjax|configs|experiments|benchmarks)/[\w/]+\.\w+)", text):
            assert (DOCS.parent / path).exists(), f"{page} names {path}"


def test_a_guide_opens_with_a_command_or_code():
    guides = {n: t for n, t in PAGES.items() if n.startswith("guides/") and "index" not in n}
    late = []
    for name, text in {**guides, "quickstart.md": PAGES["quickstart.md"]}.items():
        lines = text.splitlines()
        first = next(i for i, line in enumerate(lines) if line.startswith("```"))
        if first > 12 or lines[first] not in ("```", "```pycon", "```python"):
            late.append(name)
    assert not late, f"the first block must be a command or code, in line 12 at last: {late}"


def test_pictures_are_small_and_each_is_shown_on_a_page():
    pictures = [*(DOCS / "images").iterdir(), *DOCS.parent.glob("results/*.png")]
    shown = "\n".join(PAGES.values())
    for path in pictures:
        assert path.stat().st_size <= MOST, f"{path.name}: make pictures"
        assert path.name in shown, f"no page shows {path.name}"


def test_the_readme_fits_into_800_words_and_opens_with_picture_commands_and_code():
    assert len(README.split()) <= 800
    opening = README.partition("\n## ")[0]
    assert opening.count("![") == README.count("![") == 1
    assert "bitjax train " in opening and "bitjax compare " in opening and ">>> " in opening
    assert len(opening.splitlines()) <= 40


def test_the_map_in_the_readme_and_contributing_names_every_room():
    rooms = {path.parent.name + "/" for path in (DOCS.parent / "bitjax").glob("*/__init__.py")}
    guide = (DOCS.parent / "CONTRIBUTING.md").read_text("utf-8")
    assert not {room for room in rooms if f"`bitjax/{room}`" not in README}
    assert not {room for room in rooms if f"`{room}`" not in guide}


@pytest.mark.parametrize("name", OUTSIDE)
def test_links_of_pages_outside_docs_lead_to_files(name):
    page = DOCS.parent / name
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    assert links
    assert not [link for link in links if not (page.parent / link).exists()]
