"""The modules keep to the order of DESIGN.md: each imports only from groups below its own."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mlx_qwen3"
GROUPS = [
    {"errors", "config"},
    {"model", "cache", "rope", "tokenizer", "sampling", "checkpoint"},
    {"weights", "hub", "streaming", "numerics"},
    {"quantize"},
    {"generation", "behaviour", "transform", "staging"},
    {"shards"},
    {"plan", "parity"},
    {"certificate"},
    {"convert", "verify"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
# A module may import from its own group only where this says so.
WITHIN = {("config", "errors"), ("model", "cache"), ("model", "rope"), ("hub", "errors")}
ONLY_IN = {
    "click": {"cli"},
    "torch": {"parity"},
    "transformers": {"parity"},
    "jinja2": {"tokenizer"},
    "huggingface_hub": {"hub"},
}


def imports(module: str) -> tuple[set[str], set[str]]:
    """(modules of this package, packages of others) that a module imports anywhere."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            ours |= {node.module} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
    return ours, others


def group(module: str) -> int:
    return next(level for level, names in enumerate(GROUPS) if module in names)


MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    ours, others = imports(module)
    for other in ours:
        assert group(other) < group(module) or (module, other) in WITHIN, f"{module} imports {other}"
    for package, allowed in ONLY_IN.items():
        assert package not in others or module in allowed, f"{module} imports {package}"


def test_every_module_has_a_group():
    assert set(MODULES) == set().union(*GROUPS)
