"""The models of a server: loaded when they are asked for, as many as fit, and let go when nobody has used them."""

import asyncio
import gc
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from .. import load
from ..engine.engine import Engine
from ..engine.memory import budget_bytes
from ..engine.request import Prompt, ReplyOptions, Request
from ..engine.threads import note_thread
from ..engine.weights import check, choose
from ..errors import EngineError, UsageError
from ..files.adapters import open_adapter
from ..files.blank import clear_cache
from ..files.checkpoint import Checkpoint
from ..files.hub import resolve
from ..files.sizes import gigabytes
from ..model.qwen3 import Qwen3
from ..text.tokenizer import Tokenizer
from .errors import ApiError

LOG = logging.getLogger("mlx_qwen3.server")
# Of the budget, for the caches of one model: two models are loaded together only if each has as much.
LEAST_CACHE = 0.05


@dataclass
class Loaded:
    """A model in memory, and the one of its adapters that is meant. Those of one model share its engine and `counts`.

    `users` are the requests that hold the model.
    """

    name: str
    model: Qwen3
    tokenizer: Tokenizer
    engine: Engine
    memory: int
    created: int = field(default_factory=lambda: int(time.time()))
    users: int = 0
    used: float = field(default_factory=time.monotonic)
    adapter: str | None = None
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def replies(self) -> int:
        """Replies under way, of the model and all its adapters."""
        return self.counts["replies"]

    @replies.setter
    def replies(self, number: int) -> None:
        self.counts["replies"] = number

    def prepare(self, prompt: Prompt, options: ReplyOptions) -> Request:
        """A checked request. Raises PromptError or UsageError for what this model cannot honour."""
        return self.engine.prepare(prompt, options, self.adapter)


class Pool:
    """Models by name. Its methods belong to the event loop."""

    def __init__(
        self,
        sources: Mapping[str, str],
        *,
        dtype: str | None = None,
        weights: str | None = None,
        memory: int | str | None = None,
        idle: float | None = None,
        options: Mapping[str, Any] | None = None,
        adapters: Mapping[str, str] | None = None,
    ):
        """`sources` are SOURCEs by name; the first is the default. `memory` is for all of them, `idle` in seconds.
        dtype and weights: as in `load`.

        `adapters` of the first, by name, each FOLDER|HUBID[=SCALE], are models too, which share its weights.
        Raises SourceError or another error of a checkpoint or adapter that cannot be read, MemoryBudgetError for one
        that does not fit, and UsageError for a name that two models would have.
        """
        self.names = (*sources, *(adapters or {}))
        taken = {*sources, *sources.values()}
        if twice := [name for name in adapters or () if name in taken]:
            raise UsageError(f"two models would be named {twice[0]!r}; give the adapter another name")
        self._dtype, self._idle, self._options = dtype, idle, dict(options or {})
        self._folders = {name: resolve(source) for name, source in sources.items()}
        # A SOURCE names its model too; if it is given twice, the first.
        self._others = {source: name for name, source in reversed(list(sources.items()))}
        checkpoints = {name: Checkpoint(folder) for name, folder in self._folders.items()}
        self._context = {name: checkpoint.config.context_length for name, checkpoint in checkpoints.items()}
        base = checkpoints[self.names[0]]
        self._adapters = {name: open_adapter(adapter, base.config) for name, adapter in (adapters or {}).items()}
        self._budget = budget_bytes(memory)
        chosen = choose(
            list(checkpoints.values()), dtype, weights, self._budget, adapters=list(self._adapters.values())
        )
        self._weights = dict(zip(checkpoints, chosen, strict=True))
        self.most, self._share = self._places()
        self._loaded: dict[str, Loaded] = {}
        self._lock = asyncio.Lock()  # of who loads or unloads
        self._freed = asyncio.Event()  # somebody has let a model go
        self._waits = False  # for one to be free
        self._thread = ThreadPoolExecutor(1, "mlx-qwen3 loader", initializer=note_thread)
        self._created = int(time.time())
        self._closing: str | None = None

    @property
    def loaded(self) -> list[Loaded]:
        return list(self._loaded.values())

    def base(self, name: str) -> str:
        """The model of which this one is an adapter, or the name itself."""
        return self.names[0] if name in self._adapters else name

    def context(self, name: str) -> int:
        return self._context[self.base(name)]

    def created(self, name: str) -> int:
        loaded = self._loaded.get(self.base(name))
        return loaded.created if loaded else self._created

    def check_name(self, name: str | None) -> str:
        """The name of a model, the default's for none. Raises ApiError for one that is not there."""
        if name is None:
            return self.names[0]
        known = name if name in self.names else self._others.get(name)
        if known is None:
            message = f"there is no model {name[:200]!r}; this server has {', '.join(self.names)}"
            raise ApiError(404, message, "model", "model_not_found")
        return known

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[Loaded]:
        """A model, loaded if it is not, which stays as long as the block.

        Raises ApiError for a name that is not there, EngineError once the pool is closed.
        """
        chosen = self.check_name(name)
        loaded = self._loaded.get(self.base(chosen))
        if loaded is None or not loaded.engine.alive or self._waits or self._closing:
            async with self._lock:
                loaded = await self._get(self.base(chosen))
        loaded.users += 1  # nothing is awaited between finding it and this, so it is not unloaded there
        try:
            yield replace(loaded, name=chosen, adapter=chosen) if chosen in self._adapters else loaded
        finally:
            loaded.users -= 1
            loaded.used = time.monotonic()
            self._freed.set()

    async def close(self, reason: str) -> None:
        """End every reply with this reason, and let all models go."""
        self._closing = reason
        for loaded in self.loaded:
            await self._in_thread(partial(loaded.engine.close, reason))
        self._loaded.clear()
        self._thread.shutdown(wait=False)

    async def watch(self) -> None:
        """Let models go that have been idle for too long; runs until it is cancelled."""
        while self._idle is not None:
            await asyncio.sleep(min(self._idle / 4, 10.0))
            async with self._lock:
                for loaded in self.loaded:
                    if not loaded.users and time.monotonic() - loaded.used > self._idle:
                        await self._unload(loaded, "idle")

    # --- with the lock held

    async def _get(self, name: str) -> Loaded:
        while True:
            if self._closing is not None:
                raise EngineError(self._closing)
            if (loaded := self._loaded.get(name)) is not None:
                if not loaded.engine.alive:  # its thread has ended by an error; the model is as it was
                    LOG.error("the engine of %s has ended; a new one takes its place", name)
                    loaded.engine = self._engine(name, loaded.model, loaded.tokenizer, loaded.memory)
                return loaded
            if len(self._loaded) < self.most:
                return await self._load(name)
            idle = [loaded for loaded in self.loaded if not loaded.users]
            if idle:
                await self._unload(min(idle, key=lambda loaded: loaded.used), "to make room")
            else:
                self._waits = True
                try:
                    self._freed.clear()
                    await self._freed.wait()
                finally:
                    self._waits = False

    async def _load(self, name: str) -> Loaded:
        start = time.perf_counter()
        weights = self._weights[name]
        memory = weights.nbytes + self._share

        def run() -> tuple[Qwen3, Tokenizer]:
            return load(self._folders[name], self._dtype, memory, weights=weights.name)

        model, tokenizer = await self._in_thread(run)
        engine = await self._in_thread(partial(self._engine, name, model, tokenizer, memory))
        loaded = Loaded(name, model, tokenizer, engine, memory)
        self._loaded[name] = loaded
        if weights.note:
            LOG.info("%s: %s", name, weights.note)
        LOG.info("loaded %s, %s, in %.1f s", name, gigabytes(weights.nbytes), time.perf_counter() - start)
        return loaded

    async def _unload(self, loaded: Loaded, why: str) -> None:
        del self._loaded[loaded.name]
        await self._in_thread(loaded.engine.close)
        name = loaded.name
        del loaded
        await self._in_thread(_free)
        LOG.info("unloaded %s, %s", name, why)

    def _engine(self, name: str, model: Qwen3, tokenizer: Tokenizer, memory: int) -> Engine:
        adapters = self._adapters if name == self.names[0] else {}
        return Engine(model, tokenizer, memory=memory, adapters=adapters, **self._options)

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _places(self) -> tuple[int, int]:
        """(how many models may be in memory at once, bytes that each of them has beside its weights)

        As many as fit whichever they are, each with a fair share of what the weights leave.
        """
        sizes = sorted((weights.nbytes for weights in self._weights.values()), reverse=True)
        for name, weights in self._weights.items():
            check([weights], self._budget, f"the weights of {name}")
        for count in range(len(sizes), 0, -1):
            share = (self._budget - sum(sizes[:count])) // count
            if share >= LEAST_CACHE * self._budget or count == 1:
                return count, share
        raise AssertionError("there is a model")


def _free() -> None:
    gc.collect()
    with suppress(RuntimeError):
        clear_cache()
