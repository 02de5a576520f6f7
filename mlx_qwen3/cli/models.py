"""Opens the model of a command in two steps: first the checks that need no weights, then the weights."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .options import ModelOptions
from .source import default_source
from .terminal import say

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..model.qwen3 import Qwen3


class Opened:
    """A checkpoint and its tokenizer, and the draft model's checkpoint, before any weight is read."""

    def __init__(self, options: ModelOptions, option: str = "") -> None:
        """`option` is the command's option for a SOURCE, for messages. Raises a subclass of Qwen3Error."""
        from ..engine.request import check_draft
        from ..files import hub
        from ..files.adapters import open_adapter
        from ..files.checkpoint import Checkpoint
        from ..model.kv_format import kv_format
        from ..text.tokenizer import Tokenizer

        self.options = options
        self.source = default_source(option) if options.source is None else options.source
        self.checkpoint = Checkpoint(hub.resolve(self.source))
        self.config, self.tokenizer = self.checkpoint.config, Tokenizer(self.checkpoint)
        self._adapters = [open_adapter(adapter, self.config) for adapter in options.adapters]
        self._draft = None if options.draft is None else Checkpoint(hub.resolve(options.draft))
        kv_format(options.kv_bits, self.config.head_dim)
        if self._draft:
            check_draft(self._draft, self.tokenizer)

    def load(self) -> "tuple[Qwen3, Qwen3 | None]":
        """The model and the draft model. If the weights do not fit, raises MemoryBudgetError before it reads them."""
        from ..engine.memory import budget_bytes, check_checkpoint, set_limits
        from ..model import load as loading

        dtype, budget = self.options.dtype, budget_bytes(self.options.memory)
        check_checkpoint(self.checkpoint, dtype, budget, self._draft, self._adapters)
        set_limits(budget)
        model = loading.load_model(self.checkpoint, dtype, self._adapters)
        draft = loading.load_model(self._draft, dtype) if self._draft else None
        _advise(model, draft)
        return model, draft

    def engine(self, **limits: Any) -> "Engine":
        """Load the model into an engine. `limits` are further options of Engine."""
        from ..engine.engine import Engine

        model, draft = self.load()
        return Engine(model, self.tokenizer, draft=draft, **self._engine_options(), **limits)

    def _engine_options(self) -> Mapping[str, Any]:
        options = self.options
        names = ("memory", "cache_dir", "kv_bits", "lookup")
        return {name: getattr(options, name) for name in names}


def _advise(model: "Qwen3", draft: "Qwen3 | None") -> None:
    """Notes on what makes this model slow here."""
    import mlx.core as mx

    from .. import blas
    from ..engine.speculative import why_no_drafts

    if advice := blas.advice(model.nbytes if model.norm.weight.dtype == mx.float32 else 0):
        say(f"note: {advice}")
    if draft is not None and (reason := why_no_drafts(model, draft)):
        say(f"note: --draft makes no guesses: {reason}")
