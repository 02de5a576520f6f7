"""Opens the model of a command in two steps: first the checks that need no weights, then the weights."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..errors import Qwen3Error
from .options import ModelOptions
from .source import default_source
from .terminal import say

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.request import Request
    from ..model.load import Loading
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
        self.config, self._loading = self.checkpoint.config, self._begin()
        self.tokenizer = Tokenizer(self.checkpoint)
        self._adapters = [open_adapter(adapter, self.config) for adapter in options.adapters]
        self._draft = None if options.draft is None else Checkpoint(hub.resolve(options.draft))
        kv_format(options.kv_bits, self.config.head_dim)
        if self._draft:
            check_draft(self._draft, self.tokenizer)

    def _begin(self) -> "Loading | None":
        """Begin to read the weights, so that the tokenizer is parsed meanwhile. What is wrong is left to `load`.

        None if a draft model shares its memory.
        """
        from ..engine import weights
        from ..engine.memory import budget_bytes, set_limits
        from ..model.load import Loading

        options = self.options
        if options.draft is not None:
            return None
        with suppress(Qwen3Error):
            budget = budget_bytes(options.memory)
            chosen = weights.choose([self.checkpoint], options.dtype, options.weights, budget)
            weights.check(chosen, budget)
            set_limits(budget)
            return Loading(self.checkpoint, options.dtype, chosen[0].unpack)
        return None

    def load(self, requests: "Sequence[Request]" = ()) -> "tuple[Qwen3, Qwen3 | None]":
        """The model and the draft model, as they serve these requests.

        If the weights do not fit, raises MemoryBudgetError before it reads them.
        """
        from ..engine import weights
        from ..engine.memory import budget_bytes, set_limits
        from ..files.adapters import check_beside
        from ..model.load import Loading, load_model

        options, budget = self.options, budget_bytes(self.options.memory)
        checkpoints = [self.checkpoint, *([self._draft] if self._draft else [])]
        room = self._room(requests)
        chosen = weights.choose(checkpoints, options.dtype, options.weights, budget, room, self._adapters)
        weights.check(chosen, budget, "the weights of both models" if self._draft else "the weights")
        for note in dict.fromkeys(one.note for one in chosen if one.note):
            say(f"note: {note}")
        set_limits(budget)
        check_beside(self.checkpoint.folder, self._adapters)
        loading, self._loading = self._loading, None
        if loading is None or loading.unpack != chosen[0].unpack:
            loading = None  # frees its memory first
            loading = Loading(self.checkpoint, options.dtype, chosen[0].unpack)
        model = loading.finish(self._adapters)
        draft = load_model(self._draft, options.dtype, unpack=chosen[1].unpack) if self._draft else None
        _advise(model, draft)
        return model, draft

    def _room(self, requests: "Sequence[Request]") -> int:
        """The bytes that the largest request takes beside the weights."""
        from ..engine.memory import Costs, Memory
        from ..model.load import compute_dtype

        dtype, kv_bits = self.options.dtype, self.options.kv_bits
        draft = Costs(self._draft.config, compute_dtype(self._draft, dtype)) if self._draft else None
        memory = Memory(Costs(self.config, compute_dtype(self.checkpoint, dtype), kv_bits), draft=draft)
        sizes = ((len(request.ids), 1 if request.open_ended else request.max_tokens) for request in requests)
        return max((memory.row(prompt, tokens) for prompt, tokens in sizes), default=0)

    def engine(self, requests: "Sequence[Request]" = (), **limits: Any) -> "Engine":
        """Load the model into an engine, as it serves these requests. `limits` are further options of Engine."""
        from ..engine.engine import Engine

        model, draft = self.load(requests)
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
