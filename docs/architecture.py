"""Prints the import graph of the package's folders, from the imports in its files.

graph: Mermaid for architecture.md, without the arrows that longer paths imply. table: every folder with what it holds
and all that it imports. numbers: modules, lines and levels of the package in ROOT, by default this one.
"""

import argparse
import ast
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "mlx_qwen3"
Graph = dict[str, set[str]]  # name -> what it imports


def imports(path: Path, package: Path, types: bool = True) -> Iterator[tuple[str, ...]]:
    """The names of the package that a file imports anywhere: ("files", "config", "Qwen3Config").

    Without `types`, what only type checkers import is left out.
    """
    here = path.relative_to(package).parts[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not types:
        tree = RunTime().visit(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == PACKAGE):
            base = here[: len(here) + 1 - node.level] if node.level else ()
            module = tuple((node.module or "").split(".")) if node.module else ()
            for alias in node.names:
                yield (*base, *(module if node.level else module[1:]), alias.name)
        elif isinstance(node, ast.Import):
            yield from (tuple(a.name.split(".")[1:]) for a in node.names if a.name.startswith(f"{PACKAGE}."))


class RunTime(ast.NodeTransformer):
    """Drops the blocks `if TYPE_CHECKING:`."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node


def files(root: Path) -> list[Path]:
    return sorted((root / PACKAGE).rglob("*.py"))


def folders(root: Path) -> Graph:
    """Which folder of the package imports which."""
    package = root / PACKAGE
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    graph: Graph = {room: set() for room in rooms}
    for path in files(root):
        if (room := path.relative_to(package).parts[0]) in rooms:
            graph[room] |= {name[0] for name in imports(path, package) if name and name[0] in rooms - {room}}
    return graph


def modules(root: Path) -> Graph:
    """Which module imports which when it runs, a package's __init__ left out."""
    package = root / PACKAGE
    names = {path.relative_to(package).with_suffix("").parts for path in files(root) if path.name != "__init__.py"}
    graph: Graph = {}
    for path in files(root):
        if path.name != "__init__.py":
            own = path.relative_to(package).with_suffix("").parts
            imported = imports(path, package, types=False)
            found = {name[:end] for name in imported for end in range(1, len(name) + 1)} & names - {own}
            graph["/".join(own)] = {"/".join(name) for name in found}
    return graph


def levels(graph: Graph) -> Mapping[str, int]:
    """The level of every node: 1 if it imports no other, else one above the highest that it imports."""
    result: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        result[name] = 1 + max((result[other] for other in graph[name]), default=0)
    return result


def direct(graph: Graph) -> Graph:
    """The arrows that no longer path implies."""

    def reached(name: str) -> set[str]:
        return graph[name].union(*(reached(other) for other in graph[name]))

    return {name: below - set().union(*(reached(other) for other in below)) for name, below in graph.items()}


def draw(root: Path) -> str:
    graph = folders(root)
    order = sorted(graph, key=lambda name: (-levels(graph)[name], name))
    arrows = [f"  {name} --> {other}" for name in order for other in sorted(direct(graph)[name])]
    return "\n".join(["```mermaid", "graph TD", *arrows, "```"])


def table(root: Path) -> str:
    graph = folders(root)
    lines = ["| level | folder | what it holds | imports |", "| ---: | --- | --- | --- |"]
    for name in sorted(graph, key=lambda name: (-levels(graph)[name], name)):
        text = ast.get_docstring(ast.parse((root / PACKAGE / name / "__init__.py").read_text(encoding="utf-8"))) or ""
        first = " ".join(text.split("\n\n")[0].split())
        lines.append(f"| {levels(graph)[name]} | `{name}/` | {first} | {', '.join(sorted(graph[name])) or '-'} |")
    return "\n".join(lines)


def numbers(root: Path) -> str:
    every = files(root)
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in every)
    longest = max((len(path.read_text(encoding="utf-8").splitlines()), path.name) for path in every)
    graph = modules(root)
    return (
        f"{len(graph)} modules, {lines} lines (the longest {longest[1]}, {longest[0]}); "
        f"{len(folders(root))} folders on {max(levels(folders(root)).values(), default=0)} levels; "
        f"the longest chain of imports has {max(levels(graph).values())} modules"
    )


if __name__ == "__main__":
    what = {"graph": draw, "table": table, "numbers": numbers}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=what, help="Which part, see above.")
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, metavar="ROOT", help="Default: this repository.")
    arguments = parser.parse_args()
    print(what[arguments.what](arguments.root))
