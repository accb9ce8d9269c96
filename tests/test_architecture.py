"""Imports go one way, each file has one room, and what is public is documented."""

import ast
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent

# From the ground up. A file imports its own layer and those before it; several names on one floor
# are siblings, of which none imports another. A name is a folder of bitjax/ or a file in it.
LAYERS = [
    ("configs",),
    ("checks",),
    ("quantizers",),
    ("solvers",),
    ("variables", "rules", "extras", "files"),
    ("costs",),
    ("program",),
    ("frameworks",),
    ("bottleneck", "two_step", "diagnostics", "export"),
    ("contents",),
    ("methods",),
    ("models", "data"),
    ("runs",),
    ("training", "report"),
    ("launch",),
    ("cli",),
    ("__main__", "experiments"),
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FLAX = {"frameworks", "models"}  # the only rooms that know it
NAMES_FLAX = {"bitjax/launch/registry.py", "bitjax/training/work.py"}  # a Linen module as a type
BELOW_CLI = set(RANK) - {"cli", "__main__", "experiments"}
BELOW_LAUNCH = BELOW_CLI - {"launch"}
SLOW = {"grain", "tensorflow_datasets", "sklearn"}  # 1 to 2 s each

MOST_LINES, MOST_MEDIAN = 350, 150  # of a file, and of the file in the middle
MOST_CODE = 60  # lines of a function without its docstring, comments and blank lines
LONG_FUNCTIONS = {"solvers", "quantizers"}  # one algorithm beside its paper may be longer
SECTIONS = re.compile(r"^ *(Args|Returns|Raises):", re.MULTILINE)

FILES = sorted(
    p for top in ("bitjax", "experiments", "configs") for p in ROOT.glob(f"{top}/**/*.py")
)
OURS = [p for p in FILES if p.relative_to(ROOT).parts[0] == "bitjax"]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def holds_for(files: list[Path]) -> Callable[[Callable[[Path], None]], Callable[[], None]]:
    """Makes a rule about one file a test of all of them, which says every file that breaks it."""

    def of_rule(rule: Callable[[Path], None]) -> Callable[[], None]:
        def test():
            broken = []
            for path in files:
                try:
                    rule(path)
                except AssertionError as error:
                    broken.append(f"{name_of(path)}: {error}")
            assert not broken, "\n".join(broken)

        return test

    return of_rule


@cache
def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function, by its full name."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}, line {node.lineno}: a relative import"
            # `from bitjax import solvers` imports bitjax.solvers.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def tops(modules: set[str]) -> set[str]:
    return {module.split(".")[0] for module in modules}


def layer(module: str) -> str | None:
    """The layer a module of ours is in; None for others and for bitjax itself."""
    parts = module.split(".")
    name = parts[1] if parts[0] == "bitjax" and len(parts) > 1 else parts[0]
    return name if name in RANK else None


def layer_of(path: Path) -> str | None:
    return layer(".".join(path.relative_to(ROOT).with_suffix("").parts))


@holds_for(FILES)
def test_imports_go_one_way(path):
    modules = imported(path)
    assert not tops(modules) & {"tensorflow", "tensorflow_cpu"}
    if path.relative_to(ROOT).parts[0] == "configs":
        assert all(m.startswith(("ml_collections.", "re", "bitjax.configs.")) for m in modules)
        return
    own = layer_of(path)
    if own is None:
        assert name_of(path) == "bitjax/__init__.py", "which layer is this? Add it to LAYERS"
        return
    above = {m for m in modules if (other := layer(m)) and RANK[other] > RANK[own]}
    assert not above, f"{name_of(path)} is in {own} and imports {sorted(above)}"
    beside = {
        m for m in modules if (other := layer(m)) and other != own and RANK[other] == RANK[own]
    }
    assert not beside, f"{name_of(path)} is in {own} and imports its siblings' {sorted(beside)}"
    if own in BELOW_CLI:
        whole = {m for m in modules if m.split(".")[0] == "bitjax" and layer(m) is None}
        whole -= {"bitjax", "bitjax.__version__"} if own == "launch" else set()
        assert not whole, f"{name_of(path)} imports {sorted(whole)}: name the file it is in"


@holds_for(OURS)
def test_libraries_stay_on_their_floors(path):
    own, libraries = layer_of(path), tops(imported(path))
    if own == "quantizers":
        # Their own layer, the standard library's types, and arrays.
        allowed = {"jax", "numpy", "collections", "typing", "functools", "math", "dataclasses"}
        assert not libraries - allowed - {"bitjax"}, "quantizers know only arrays"
    if own not in FLAX and name_of(path) not in NAMES_FLAX:
        assert "flax" not in libraries, f"{name_of(path)}: {own} knows no Flax"
    if own in BELOW_LAUNCH:
        assert "ml_collections" not in libraries, "a ConfigDict stops at launch/"
    if own in BELOW_CLI:
        assert "absl" not in libraries, "flags are the command line's"


@holds_for([p for p in OURS if layer_of(p) in BELOW_CLI])
def test_messages_below_the_command_line_name_no_flags_and_no_commands(path):
    bad = []
    for node in ast.walk(tree_of(path)):
        says = isinstance(node, ast.Raise) or (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", getattr(node.func, "attr", ""))
            in ("print", "warning", "info", "error", "warn")
        )
        for text in ast.walk(node) if says else ():
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                if re.search(r"(^|[\s`'\"(])--\w|python -m ", text.value):
                    bad.append(f"{name_of(path)}:{text.lineno} {text.value!r}")
    assert not bad, "\n".join(bad)


def test_no_module_is_hidden_by_a_public_name():
    modules = {p.stem for p in ROOT.glob("bitjax/*.py")} | {p.name for p in ROOT.glob("bitjax/*/")}
    public = {
        alias.asname or alias.name
        for node in ast.walk(tree_of(ROOT / "bitjax/contents.py"))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert not modules & public


def test_files_do_not_import_each_other_in_circles():
    graph = {}
    for path in OURS:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if path.name == "__init__.py":
            continue  # a package's table of contents
        found = imported(path)
        graph[".".join(parts)] = {
            name for m in found for name in (m, m.rpartition(".")[0]) if name.startswith("bitjax.")
        }
    done: set[str] = set()

    def visit(name, trail):
        if name in trail:
            raise AssertionError(" -> ".join([*trail[trail.index(name) :], name]))
        if name in graph and name not in done:
            for other in sorted(graph[name] - {name}):
                visit(other, [*trail, name])
            done.add(name)

    for name in graph:
        visit(name, [])


@holds_for(OURS)
def test_what_takes_long_to_import_is_imported_where_it_is_used(path):
    top = tree_of(path).body
    names = {a.name for node in top if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module or "" for node in top if isinstance(node, ast.ImportFrom)}
    assert not SLOW & tops(names)


@holds_for(OURS)
def test_what_is_public_has_a_docstring(path):
    tree = tree_of(path)
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


def exported() -> set[tuple[str, str]]:
    """(module, name) of all that a table of contents or a page of the documentation names."""
    found = {
        (node.module or "", alias.name)
        for path in (ROOT / "bitjax/contents.py", *ROOT.glob("bitjax/**/__init__.py"))
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for page in ROOT.glob("docs/*/*.md"):
        for name in re.findall(r"^\.\. auto\w+:: ([\w.]+)", page.read_text(), re.MULTILINE):
            found.add((name.rpartition(".")[0], name.rpartition(".")[2]))
    return found


EXPORTED = exported()


def definitions(body: list[ast.stmt], module: str) -> list[ast.FunctionDef | ast.ClassDef]:
    """What a module defines that nobody exports, with the methods of its classes."""
    found = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (module, node.name) not in EXPORTED:
            found += [node, *definitions(node.body if isinstance(node, ast.ClassDef) else [], "")]
    return found


@holds_for(OURS)
def test_what_nobody_exports_has_no_sections_in_its_docstring(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    bad = [
        f"{name_of(path)}:{node.lineno} {node.name}"
        for node in definitions(tree_of(path).body, module)
        if SECTIONS.search(ast.get_docstring(node) or "")
    ]
    assert not bad, "one line says it; export the name or document it in docs/api for more:\n" + (
        "\n".join(bad)
    )


def code_lines(node: ast.AST, text: list[str]) -> int:
    """Lines of a function without docstrings, comments and blank lines."""
    prose: set[int] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner):
            prose |= set(range(inner.body[0].lineno, (inner.body[0].end_lineno or 0) + 1))
    lines = range(node.lineno, node.end_lineno + 1)
    code = [text[n - 1].strip() for n in lines if n not in prose]
    return sum(bool(line) and not line.startswith("#") for line in code)


@holds_for(OURS)
def test_no_file_and_no_function_is_too_long_to_read(path):
    text = path.read_text().splitlines()
    assert len(text) <= MOST_LINES, f"{name_of(path)} has {len(text)} lines: which idea can leave?"
    if layer_of(path) in LONG_FUNCTIONS:
        return
    long = {
        node.name: count
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef) and (count := code_lines(node, text)) > MOST_CODE
    }
    assert not long, f"{name_of(path)}: lines of code {long}, at most {MOST_CODE}"


def test_the_file_in_the_middle_is_short():
    lengths = sorted(len(path.read_text().splitlines()) for path in OURS)
    assert lengths[len(lengths) // 2] <= MOST_MEDIAN
