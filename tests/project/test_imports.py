"""The modules of the package import each other in one direction, as docs/architecture.md says."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import trio_agentmail

PACKAGE = Path(trio_agentmail.__file__).parent


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "not TYPE_CHECKING")


def import_statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports at run time, those inside functions included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not is_type_checking(child):
            yield from import_statements(child)


def imported(path: Path, statement: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
        return
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    base = package[: len(package) - statement.level + 1] if statement.level else []
    name = ".".join([*base, *filter(None, [statement.module])])
    yield name
    yield from (f"{name}.{alias.name}" for alias in statement.names)


def import_graph(paths: list[Path]) -> dict[str, set[str]]:
    modules = {module_name(path) for path in paths}
    graph = {}
    for path in paths:
        found = {
            name for statement in import_statements(ast.parse(path.read_text())) for name in imported(path, statement)
        }
        graph[module_name(path)] = (found & modules) - {module_name(path)}
    return graph


def test_the_modules_of_the_package_have_no_import_cycle() -> None:
    graph = import_graph(sorted(PACKAGE.rglob("*.py")))
    # The root imports public names on first use, and modules import them from where they are defined.
    assert "trio_agentmail._frames" in graph["trio_agentmail._websocket"]
    assert "trio_agentmail._supervisor" in graph["trio_agentmail._stream"]  # imported in a function
    list(TopologicalSorter(graph).static_order())


def test_an_import_cycle_would_be_found() -> None:
    graph = import_graph(sorted(PACKAGE.rglob("*.py")))
    graph["trio_agentmail._frames"].add("trio_agentmail._stream")
    with pytest.raises(CycleError):
        list(TopologicalSorter(graph).static_order())
