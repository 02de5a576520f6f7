"""Qwen3 on MLX: `load`, `stream`, `generate`, `Engine`, `convert`."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import interrupt

if interrupt.is_command():
    interrupt.install()  # before anything that takes time

from . import blas

with interrupt.held():  # or the threads of the library could take the signal
    blas.preload()  # before the first import of MLX

if TYPE_CHECKING:
    from .conversion.certificate import Certificate
    from .conversion.convert import convert
    from .engine.engine import Engine, Reply
    from .engine.grammar import Grammar, GrammarCompiler
    from .engine.reply import Chunk, Result, generate, stream
    from .engine.request import ReplyOptions, Request
    from .engine.sampling import SamplingParams
    from .engine.specs import JsonObject, JsonSchema, Lark, Regex, ToolChoice
    from .errors import Qwen3Error, Qwen3Warning
    from .model.qwen3 import Qwen3
    from .text.tokenizer import Tokenizer

__version__ = "0.1.0"
# Public name -> its module, which is imported at first use: `import mlx_qwen3` does not wait for all of conversion.
_PLACES = {
    "Certificate": "conversion.certificate",
    "Chunk": "engine.reply",
    "Engine": "engine.engine",
    "Grammar": "engine.grammar",
    "GrammarCompiler": "engine.grammar",
    "JsonObject": "engine.specs",
    "JsonSchema": "engine.specs",
    "Lark": "engine.specs",
    "Qwen3": "model.qwen3",
    "Qwen3Error": "errors",
    "Qwen3Warning": "errors",
    "Regex": "engine.specs",
    "Reply": "engine.engine",
    "ReplyOptions": "engine.request",
    "Request": "engine.request",
    "Result": "engine.reply",
    "SamplingParams": "engine.sampling",
    "Tokenizer": "text.tokenizer",
    "ToolChoice": "engine.specs",
    "convert": "conversion.convert",
    "generate": "engine.reply",
    "stream": "engine.reply",
}
__all__ = [
    "Certificate",
    "Chunk",
    "Engine",
    "Grammar",
    "GrammarCompiler",
    "JsonObject",
    "JsonSchema",
    "Lark",
    "Qwen3",
    "Qwen3Error",
    "Qwen3Warning",
    "Regex",
    "Reply",
    "ReplyOptions",
    "Request",
    "Result",
    "SamplingParams",
    "Tokenizer",
    "ToolChoice",
    "convert",
    "generate",
    "load",
    "stream",
]


def load(
    source: str | Path,
    dtype: str | None = None,
    memory: int | str | None = None,
    adapters: Sequence[str | Path] = (),
    weights: str | None = None,
) -> "tuple[Qwen3, Tokenizer]":
    """Model and tokenizer of a folder, a Hub id, "demo" or "demo-moe".

    `dtype`: bf16, fp16 or fp32; the default is the checkpoint's on a GPU and float32 on a CPU.
    `memory`: what the weights may take at most, in bytes or as a text such as 12GB; by default what the machine allows.
    `adapters`: each a folder or Hub id of a PEFT or mlx-lm adapter, or FOLDER=SCALE.
    `weights`: of a quantized model, "packed" or "unpacked" in memory. The default is packed on a GPU. A CPU with a fast
    BLAS multiplies unpacked weights several times faster, so there it is unpacked if that leaves a quarter of `memory`
    free.
    Raises a subclass of Qwen3Error that names what is wrong and the remedy.
    """
    import mlx.core as mx

    from .engine import weights as forms
    from .engine.memory import budget_bytes
    from .errors import warn
    from .files.adapters import check_beside, open_adapter
    from .files.checkpoint import Checkpoint
    from .files.hub import resolve
    from .model import kernels
    from .model.load import Loading
    from .text.tokenizer import Tokenizer

    blas.check()
    checkpoint = Checkpoint(resolve(source))
    opened = [open_adapter(adapter, checkpoint.config) for adapter in adapters]
    budget = budget_bytes(memory)
    chosen = forms.choose([checkpoint], dtype, weights, budget, adapters=opened)
    forms.check(chosen, budget)
    check_beside(checkpoint.folder, opened)
    with Loading(checkpoint, dtype, chosen[0].unpack) as loading:  # meanwhile the tokenizer is parsed
        try:
            tokenizer = Tokenizer(checkpoint)
        except Exception:
            loading.finish(opened)  # its errors come first
            raise
        model = loading.finish(opened)
    slow = blas.late and not kernels.on_gpu() and chosen[0].dtype == mx.float32
    if slow and (advice := blas.advice(model.nbytes)):
        warn(advice)
    return model, tokenizer


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_PLACES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return __all__
