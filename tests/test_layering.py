"""The modules keep to the order of DESIGN.md: each imports only from groups below its own."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mlx_qwen3"
GROUPS = [
    {"errors", "config", "blas", "watch", "terminal", "kernels", "writing"},
    {"model", "cache", "rope", "chat_template", "tokenizer", "sampling", "checkpoint", "attention"},
    {"weights", "hub", "streaming", "numerics", "passes", "step"},
    {"quantize", "values", "loading", "speculative", "decoding"},
    {"generation", "behaviour", "transform", "staging"},
    {"shards"},
    {"plan", "parity"},
    {"certificate"},
    {"convert", "verify"},
    {"reference", "inspect.statistics", "inspect.steps"},
    {"inspect.rules", "inspect.probe"},
    {"inspect.tensors", "inspect.numbers", "inspect.compare"},
    {"inspect.report"},
    {"inspect.tables"},
    {"inspect.output", "inspect.pictures"},
    {"inspect.page"},
    {"inspect.files"},
    {"inspect"},
    {"bench.options", "bench.roofline", "bench.machine", "bench.workers", "bench.workers.serve"},
    {"bench.process", "bench.report", "bench.workers.on_mlx", "bench.workers.limits"},
    {"bench.outputs", "bench.whole", "bench.workers.ours", "bench.workers.peer_mlx_lm"},
    {"bench.workers.peer_torch", "bench.workers.peer_reference"},
    {"bench.session", "bench.tables", "bench.pictures"},
    {"bench.files"},
    {"bench.baseline"},
    {"bench"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
# A module may import from its own group only where this says so.
WITHIN = {
    ("config", "errors"),
    ("blas", "errors"),
    ("terminal", "errors"),
    ("writing", "errors"),
    ("model", "cache"),
    ("model", "rope"),
    ("tokenizer", "chat_template"),
    ("decoding", "speculative"),
}
ONLY_IN = {
    "click": {"cli"},
    "torch": {"reference", "inspect.compare", "parity", "bench.workers.peer_torch", "bench.workers.peer_reference"},
    "transformers": {"parity", "bench.workers.peer_torch"},
    "mlx_lm": {"bench.workers.peer_mlx_lm"},
    "jinja2": {"chat_template"},
    "huggingface_hub": {"hub"},
    "matplotlib": {"inspect.pictures", "bench.pictures"},
}


def imports(module: str) -> tuple[set[str], set[str]]:
    """(modules of this package, packages of others) that a module imports anywhere."""
    ours, others = set(), set()
    path = PACKAGE.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    folders = source.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folders[: len(folders) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            ours |= {".".join((*base, name)) for name in names} - {"__version__"}
        elif isinstance(node, ast.ImportFrom):
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
    return ours, others


def group(module: str) -> int:
    return next(level for level, names in enumerate(GROUPS) if module in names)


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = sorted(name_of(path) for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    ours, others = imports(module)
    for other in ours:
        assert group(other) < group(module) or (module, other) in WITHIN, f"{module} imports {other}"
    for package, allowed in ONLY_IN.items():
        assert package not in others or module in allowed, f"{module} imports {package}"


def test_every_module_has_a_group():
    assert set(MODULES) == set().union(*GROUPS)
