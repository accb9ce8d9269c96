"""Imports go one way, and what is public is documented."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A file may import its own layer and those above it; see the map of folders in README.md.
MODULES = {path.stem for path in ROOT.glob("bitjax/*.py")} - {"__init__"}
LAYERS = [
    {"quantizers"},
    {"solvers"},
    MODULES,  # linen.py, rules.py, cost.py, budget.py and the like: what touches Flax modules.
    {"methods"},
    {"models"},
    {"data"},
    {"training"},
    {"export"},
    {"report"},
    {"experiments"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted(
    p for top in ("bitjax", "experiments", "configs") for p in ROOT.glob(f"{top}/**/*.py")
)
PUBLIC = [p for p in FILES if p.parts[len(ROOT.parts)] == "bitjax"]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function, by its full name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}, line {node.lineno}: a relative import"
            # `from bitjax import solvers` imports bitjax.solvers.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer(module: str) -> str | None:
    """The layer a module of ours is in; None for others and for bitjax itself."""
    parts = module.split(".")
    if parts[0] == "bitjax":
        return parts[1] if len(parts) > 1 and parts[1] in RANK else None
    return parts[0] if parts[0] in RANK else None


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_one_way(path):
    modules = imported(path)
    assert not {m for m in modules if m.split(".")[0] in ("tensorflow", "tensorflow_cpu")}
    if path.parts[len(ROOT.parts)] == "configs":
        assert not {m for m in modules if m.split(".")[0] in ("bitjax", "experiments")}
        return
    own = layer(module_of(path))
    if own is None:
        assert name_of(path) == "bitjax/__init__.py", "which layer is this? Add it to LAYERS"
        return
    if own != "experiments":
        whole = {m for m in modules if m.split(".")[0] == "bitjax" and layer(m) is None}
        assert not whole, f"{name_of(path)} imports {sorted(whole)}: name the file it is in"
    upward = {m for m in modules if (other := layer(m)) and RANK[other] > RANK[own]}
    assert not upward, f"{name_of(path)} is in {own} and imports {sorted(upward)}"
    if own == "quantizers":
        # Their own layer, the standard library's types, and arrays.
        allowed = {"jax", "numpy", "collections", "typing", "functools", "math", "dataclasses"}
        others = {m for m in modules if m.split(".")[0] not in allowed and layer(m) != own}
        assert not others, f"quantizers know only arrays; {name_of(path)} imports {sorted(others)}"
    if own == "report":
        # It knows runs by their folders alone, so that it reads those of any model and method.
        files = {"bitjax.training.metrics", "bitjax.training.run_folder", "bitjax.accelerators"}
        known = {m for m in modules if m.split(".")[0] == "bitjax" and layer(m) != own}
        others = {m for m in known if m.rpartition(".")[0] not in files}
        assert not others, f"report reads run folders; {name_of(path)} imports {sorted(others)}"
    if own != "experiments":
        # A ConfigDict stops at experiments/.
        assert not {m for m in modules if m.split(".")[0] == "ml_collections"}


@pytest.mark.parametrize("path", PUBLIC, ids=name_of)
def test_what_takes_long_to_import_is_imported_where_it_is_used(path):
    slow = {"grain", "tensorflow_datasets", "sklearn"}  # 1 to 2 s each
    top = ast.parse(path.read_text()).body
    names = {a.name for node in top if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module or "" for node in top if isinstance(node, ast.ImportFrom)}
    assert not slow & {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", PUBLIC, ids=name_of)
def test_what_is_public_has_a_docstring(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{name_of(path)} does not say what it is for"
    bare = [
        f"{name_of(path)}:{node.lineno} {node.name}"
        for parent in ast.walk(tree)
        if isinstance(parent, ast.Module | ast.ClassDef) and not is_private(parent)
        for node in parent.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not is_private(node)
        and node.name != "setup"  # Flax's, with nothing to say to a caller.
        and not ast.get_docstring(node)
    ]
    assert not bare, "\n".join(bare)


def is_private(node: ast.AST) -> bool:
    return getattr(node, "name", "").startswith("_")
