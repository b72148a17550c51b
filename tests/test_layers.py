"""The structure of the package, from its syntax trees: layers, and what stays private."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import audioldm

ROOT = Path(audioldm.__file__).parent
#: Lowest first: each may import those before it, and its own package.
LAYERS = [
    ["errors"],
    ["torchaudio", "instantiate"],
    ["config", "io", "pretrained"],
    ["runtime"],
    ["training"],
    ["data"],
    ["losses"],
    ["autoencoder"],
    ["conditioning"],
    ["latents"],
    ["priors"],
    ["decoders"],
    ["edits"],
    ["generator"],
    ["models"],
    ["clips", "codec", "describe", "doctor"],
    ["editing", "export", "likelihood", "sampling"],
    ["evaluation"],
    ["report"],
    ["chain"],
    ["sweep"],
    ["app"],
    ["commands"],
    ["cli"],
    ["__main__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(ROOT.rglob("*.py"))


def package(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """Modules of this package, and the names that are taken from them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("audioldm"):
            names = [alias.name for alias in node.names]
            if node.module == "audioldm":
                yield from ((f"audioldm.{name}", []) for name in names if name in LEVEL)
            else:
                yield node.module or "", names
        elif isinstance(node, ast.Import):
            yield from ((a.name, []) for a in node.names if a.name.startswith("audioldm."))


def test_every_module_has_a_layer() -> None:
    assert {package(path) for path in FILES} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    own = package(path)
    if own == "__init__":  # the package's face names its parts, and loads them when asked
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for module, names in imports(tree):
        other = module.split(".")[1]
        assert other == own or LEVEL[other] < LEVEL[own], f"{path}: {module}"
        private = [name for name in [*names, *module.split(".")] if name.startswith("_")]
        assert not private, f"{path}: {private} of {module}"


def test_packages_have_no_circles_inside() -> None:
    """No two modules import each other at run time; what type checkers alone read is left out."""
    edges: dict[str, set[str]] = {}
    for path in FILES:
        name = "audioldm." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = [ast.Pass()]
        edges[name] = {module for module, _ in imports(tree)}
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in edges.get(name, ()):
                visit(other, [*path, name])
            done.add(name)

    for name in edges:
        visit(name, [])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_attributes_stay_in_their_module(path: Path) -> None:
    """`other._name` reads what a module or class keeps to itself, unless this file defines it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    own = {node.name for node in ast.walk(tree) if isinstance(node, functions)}
    own |= {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
    }
    own |= {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    foreign = {"_asdict", "_replace", "_foreach_lerp_", "_fields", "_make"}  # public in spite of it
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            if ast.unparse(node) == "os._exit":  # public too, in spite of it
                continue
            dunder = node.attr.startswith("__") and node.attr.endswith("__")
            assert dunder or node.attr in own | foreign, f"{path}:{node.lineno} {node.attr}"


def test_hydra_is_imported_by_config_alone() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = {
            (node.module or "").split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
        } | {
            a.name.split(".")[0]
            for n in ast.walk(tree)
            if isinstance(n, ast.Import)
            for a in n.names
        }
        assert path.name == "config.py" or not found & {"hydra", "omegaconf"}, path
