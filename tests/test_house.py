"""The house of docs/architecture.md: a folder imports only from folders below its own."""

import ast
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from docs.architecture import levels, modules

PACKAGE = Path(__file__).parent.parent / "mlx_qwen3"
# From the roof down. The modules beside the folders (errors, blas, report, progress) lie under all of them.
FOLDERS = ["cli", "server", "bench", "inspect", "conversion", "compare", "engine", "model", "text", "files"]
PUBLIC_ONLY = [folder for folder in ("bench", "server") if (PACKAGE / folder).is_dir()]
ONLY_IN = {
    "click": "cli/",
    "prompt_toolkit": "cli/reader.py",
    "torch": "compare/ bench/workers/peer_",
    "transformers": "compare/ bench/workers/peer_",
    "peft": "compare/ bench/workers/peer_",
    "mlx_lm": "bench/workers/peer_",
    "jinja2": "text/",
    "llguidance": "engine/grammar.py",
    "starlette": "server/",
    "uvicorn": "server/",
    "msgspec": "server/",
    "huggingface_hub": "files/",
    "matplotlib": "drawing.py inspect/pictures inspect/attention_pictures bench/pictures",
}


@cache
def nodes(path: Path) -> list[ast.AST]:
    """The parts of a file. It is read once for all tests."""
    return list(ast.walk(ast.parse(path.read_text())))


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """What a file imports anywhere, as parts: ("mlx_qwen3", "files", "config"), ("numpy",)."""
    here = ("mlx_qwen3", *path.relative_to(PACKAGE).parts[:-1])
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) + 1 - node.level] if node.level else ()
            module = tuple(node.module.split(".")) if node.module else ()
            yield from ([*base, *module, alias.name] for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)


def exported(folder: str) -> set[str]:
    """What a folder's __init__ lists in __all__: names, and modules whose names are public."""
    module = ast.parse((PACKAGE / folder / "__init__.py").read_text())
    lists = [node.value for node in module.body if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"]
    return set(ast.literal_eval(lists[0])) if lists else set()


# Files are written by report.py. Others write no output file: the tensor stream, a lock, and pipes of bench's workers.
WRITERS = {"report.py", "conversion/shards.py", "conversion/staging.py", "bench/workers/serve.py"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_from_folders_below(folder):
    below = FOLDERS[FOLDERS.index(folder) :]
    for path in (PACKAGE / folder).rglob("*.py"):
        for parts in imports(path):
            if parts[0] == "mlx_qwen3" and len(parts) > 1 and parts[1] in FOLDERS:
                assert parts[1] in below, f"{path.relative_to(PACKAGE)} imports {'.'.join(parts)}"


def test_the_modules_under_the_folders_import_none_of_them():
    for path in set(PACKAGE.glob("*.py")) - {PACKAGE / "__init__.py", PACKAGE / "__main__.py"}:
        assert not [parts for parts in imports(path) if len(parts) > 1 and parts[1] in FOLDERS], path.name


@pytest.mark.parametrize("folder", PUBLIC_ONLY)
def test_bench_and_server_use_public_names_only(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        for parts in imports(path):
            if parts[0] == "mlx_qwen3" and len(parts) > 2 and parts[1] in set(FOLDERS) - {folder}:
                found = ".".join(parts)
                assert parts[2] in exported(parts[1]), f"{path.name} imports {found}, which {parts[1]}/ does not export"
        for node in nodes(path):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                owner = ast.unparse(node.value)
                assert owner in ("self", "cls", "os"), f"{path.name} uses {owner}.{node.attr}"  # os._exit is documented


def test_private_names_stay_in_their_module():
    for path in PACKAGE.rglob("*.py"):
        for parts in imports(path):
            private = [part for part in parts if part.startswith("_") and not part.endswith("__")]
            assert parts[0] != "mlx_qwen3" or not private, f"{path.relative_to(PACKAGE)} imports {'.'.join(parts)}"


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if (PACKAGE / folder).is_dir()])
def test_what_a_folder_exports_is_there(folder):
    module = import_module(f"mlx_qwen3.{folder}")
    for name in exported(folder):
        assert hasattr(module, name) or (PACKAGE / folder / f"{name}.py").exists(), name


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_imported_in_its_place(library):
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).as_posix()
        if library in {parts[0] for parts in imports(path)}:
            assert place.startswith(tuple(ONLY_IN[library].split())), f"{place} imports {library}"


def test_every_folder_has_a_place():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= set(FOLDERS)


def writes(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    modes = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
    texts = [m for m in modes if isinstance(m, str) and set(m) <= set("rwaxbt+")]
    opens = name in ("open", "fdopen") and any(set(text) & set("wax+") for text in texts)
    return name in ("write_text", "write_bytes", "NamedTemporaryFile") or opens


def test_one_place_writes_output_files():
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).as_posix()
        calls = [node for node in nodes(path) if isinstance(node, ast.Call) and writes(node)]
        assert not calls or place in WRITERS, f"{place}:{calls[0].lineno} writes a file; use report.py"


def test_arrays_of_numpy_are_handed_over_in_one_way():
    """`mx.array(ndarray)` loses a Ctrl-C; files.values.to_mlx does not. It can be told only if NumPy is in the call."""
    for path in set(PACKAGE.rglob("*.py")) - {PACKAGE / "files" / "values.py"}:
        for node in nodes(path):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "mx.array" and node.args:
                assert not ast.unparse(node.args[0]).startswith("np."), f"{path.name}, line {node.lineno}"


def test_no_module_imports_itself_through_others():
    assert len(levels(modules(PACKAGE.parent))) > 100  # a circle has no levels
