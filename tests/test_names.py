"""The public names of the package."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import mlx_qwen3

NAMES = """
Certificate Chunk Engine Grammar GrammarCompiler JsonObject JsonSchema Lark Qwen3 Qwen3Error Qwen3Warning Regex Reply
ReplyOptions Request Result SamplingParams Tokenizer ToolChoice convert generate load stream
""".split()


def test_the_exported_names():
    assert mlx_qwen3.__all__ == NAMES == dir(mlx_qwen3)
    assert all(getattr(mlx_qwen3, name) for name in NAMES)


def test_nothing_else_is_there():
    with pytest.raises(AttributeError, match="has no attribute 'Step'"):
        mlx_qwen3.Step  # noqa: B018


@pytest.mark.parametrize("name", [name for name in NAMES if name.islower()])
def test_a_function_is_not_a_module(name):
    """`import mlx_qwen3.convert` must not import something that is not a module."""
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"mlx_qwen3.{name}")
    assert callable(getattr(mlx_qwen3, name))


def test_star_import_and_lazy_names():
    """The import alone brings neither MLX nor NumPy: they come with the first name."""
    program = (
        "import sys, mlx_qwen3; assert not {'mlx.core', 'numpy', 'tokenizers', 'click'} & set(sys.modules); "
        "from mlx_qwen3 import *; assert generate and 'mlx.core' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent.parent)
