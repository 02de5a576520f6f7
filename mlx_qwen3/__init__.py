"""Qwen3 on MLX: `load`, `stream`, `generate`, `convert`."""

from pathlib import Path

from . import blas

blas.preload()  # before the first import of MLX

from .certificate import Certificate
from .convert import convert
from .errors import Qwen3Error
from .generation import Result, Step, generate, stream
from .hub import resolve
from .loading import load_model
from .model import Qwen3
from .sampling import SamplingParams
from .tokenizer import Tokenizer

__version__ = "0.1.0"
__all__ = [
    "Certificate",
    "Qwen3",
    "Qwen3Error",
    "Result",
    "SamplingParams",
    "Step",
    "Tokenizer",
    "convert",
    "generate",
    "load",
    "stream",
]


def load(source: str | Path, dtype: str | None = None) -> tuple[Qwen3, Tokenizer]:
    """Model and tokenizer of a folder, a Hub id or "demo".

    `dtype`: bf16, fp16 or fp32; the default is the checkpoint's on a GPU and float32 on a CPU.
    Raises a subclass of Qwen3Error that names what is wrong and the remedy.
    """
    blas.check()
    folder = resolve(source)
    return load_model(folder, dtype), Tokenizer(folder)
