"""The engine: many requests at once, on one thread that owns every MLX object."""

import atexit
import math
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from types import TracebackType

from ..errors import EngineError, UsageError
from ..model.kv_format import kv_format
from ..model.qwen3 import Qwen3
from ..text.tokenizer import Tokenizer
from .adapters import Named, adapted_models, check_adapter
from .memory import Memory, budget_bytes, set_limits
from .prefix import PREFIX_BYTES, PrefixStore, model_key
from .prefix_folder import FOLDER_BYTES, PrefixFolder
from .reply import Chunk, Speaker
from .request import Prompt, ReplyOptions, Request, check_loaded, prepare
from .rows import Row
from .scheduler import MAX_GAP, Scheduler
from .speculative import check_vocabulary, make_drafter
from .threads import note_thread

Event = Chunk | Exception | None  # a chunk, the error that ended the reply, or its end after `cancel`


@dataclass(frozen=True)
class Load:
    """How busy an engine is: replies that are running, and requests that have no token yet."""

    running: int
    waiting: int
    prefix_bytes: int


class Reply:
    """The reply to one request. Iterate it for its chunks, in any thread and at any pace."""

    def __init__(self, speaker: Speaker, wake: threading.Condition, listener: Callable[[Event], None] | None = None):
        self._speaker, self._wake = speaker, wake
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._hear = listener or self._events.put
        self._complete = False  # the last event is in the queue
        self._over = False  # and was read

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        """The next chunk, once it is made. Raises the error that ended the reply, if one did."""
        event = None if self._over else self._events.get()
        self._over = not isinstance(event, Chunk) or event.finish_reason is not None
        if event is None:
            raise StopIteration
        if isinstance(event, StopIteration):  # of a row's own code; raised here it would look like the end
            raise RuntimeError("the code of a reply raised StopIteration") from event
        if isinstance(event, Exception):
            raise event
        return event

    def cancel(self) -> None:
        """End the reply: its iteration at once, its row at the next step."""
        with self._wake:
            self._speaker.row.ended = True
            self._put(None)
            self._wake.notify()

    def _put(self, event: Event) -> None:
        if self._complete:
            return
        self._complete = not isinstance(event, Chunk) or event.finish_reason is not None
        try:
            self._hear(event)
        except Exception as error:  # of the listener
            self._speaker.row.ended = True
            self._put(error)


class Engine:
    """Runs requests on one model, up to `max_rows` at once:

        with Engine(model, tokenizer) as engine:
            replies = [engine.submit(engine.prepare(text)) for text in texts]
            for chunk in replies[0]: ...

    max_gap: seconds that running replies may wait for a piece of a long prompt, in addition to one step of their own.
    A piece has 16 tokens at least, however long these take.
    prefix_bytes: keys and values of earlier prompts and replies to keep, for prompts that begin alike; 0 keeps none.
    cache_dir: a folder for prefixes that do not fit there, and for the others when the engine closes. The next engine
    of the same model uses them.
    cache_dir_bytes: for the files of all models; those used least recently are removed first.
    kv_bits: stores keys and values in 8 or 4 bits, which saves memory and changes replies a little.
    draft: a smaller model with the same tokenizer that guesses tokens.
    adapters: of PEFT or mlx-lm, by name, each a FOLDER|HUBID[=SCALE]. A request that names one gets the reply of the
    model with this adapter. They share its weights, and rows with the same adapter share a batch.
    lookup: guess from prompt and reply: while that is faster (None), always or never. Guesses are made while a row runs
    alone, and change no token.
    memory: bytes, or a text such as "12GB", for weights, caches, prefixes and activations; by default what Metal
    recommends, CUDA's memory, or the machine's less a tenth. A request waits until it fits. If it gives no max_tokens,
    these are cut to what fits.

    Every method may be called from any thread.
    """

    def __init__(
        self,
        model: Qwen3,
        tokenizer: Tokenizer,
        *,
        max_rows: int = 8,
        max_gap: float = MAX_GAP,
        prefix_bytes: int = PREFIX_BYTES,
        cache_dir: str | Path | None = None,
        cache_dir_bytes: int = FOLDER_BYTES,
        kv_bits: int | None = None,
        memory: int | str | None = None,
        draft: Qwen3 | None = None,
        lookup: bool | None = None,
        adapters: Named | None = None,
    ):
        """Raises OutputError if `cache_dir` cannot be written to, UsageError for what this model cannot honour."""
        _check_number("max_rows", max_rows, 1, "rows", Integral)
        _check_number("max_gap", max_gap, 0, "seconds", Real)
        _check_number("prefix_bytes", prefix_bytes, 0, "bytes", Integral)
        _check_number("cache_dir_bytes", cache_dir_bytes, 0, "bytes", Integral)
        check_loaded(model, tokenizer, draft)
        kv_format(kv_bits, model.config.head_dim)
        if draft is not None:
            check_vocabulary(draft.config, tokenizer.size)
        self._draft, self._lookup = draft, lookup
        self._model, self._tokenizer, self._kv_bits = model, tokenizer, kv_bits
        self._max_rows, self._max_gap, self._prefix_bytes = max_rows, max_gap, prefix_bytes
        self._models = adapted_models(model, adapters or {}, budget_bytes(memory))
        self._memory = Memory(model, memory, max_rows, kv_bits, draft, self._models.values())
        set_limits(self._memory.budget)
        self._folders: dict[str | None, PrefixFolder] = {}
        if cache_dir is not None:
            for name, one in self._models.items():
                self._folders[name] = PrefixFolder(cache_dir, model_key(one, kv_bits), cache_dir_bytes)
        self._scheduler = self._new_scheduler()
        self._replies: dict[Row, Reply] = {}
        self._wake = threading.Condition()  # guards the two below
        self._new: list[Reply] = []
        self._closing: EngineError | None = None
        self._thread = threading.Thread(target=_loop, args=(self,), name="mlx-qwen3 engine", daemon=True)
        self._thread.start()
        atexit.register(_close, weakref.ref(self))

    @property
    def model(self) -> Qwen3:
        return self._model

    @property
    def alive(self) -> bool:
        """Whether the engine takes requests."""
        return self._thread.is_alive() and self._closing is None

    @property
    def load(self) -> Load:
        scheduler = self._scheduler
        waiting = len(self._new) + scheduler.waiting
        return Load(len(scheduler.running), waiting, scheduler.prefixes.nbytes if scheduler.prefixes else 0)

    @property
    def max_rows(self) -> int:
        return self._max_rows

    def prepare(self, prompt: Prompt, options: ReplyOptions | None = None, adapter: str | None = None) -> Request:
        """A checked request, for the model with one of the engine's adapters if one is named.

        Raises PromptError or UsageError for what this model cannot honour.
        """
        check_adapter(adapter, self._models)
        return replace(prepare(self._model.config, self._tokenizer, prompt, options), adapter=adapter)

    def submit(self, request: Request, listener: Callable[[Event], None] | None = None) -> Reply:
        """Begin a reply. Raises EngineError if the engine is closed, MemoryBudgetError if the request can never fit.

        A `listener` gets the events instead of the iteration: each chunk; an error that ends the reply; None if it is
        cancelled. It is called in the engine's thread, which waits for it, or in the one that cancels. If it raises,
        its reply ends, and it gets that error.
        """
        if not isinstance(request, Request):
            raise UsageError(f"a request is of type {type(request).__name__}; submit takes what `prepare` returns")
        check_adapter(request.adapter, self._models)
        limit = self._memory.limit(len(request.ids), request.max_tokens, request.open_ended)
        request = replace(request, max_tokens=limit)
        model = self._models[request.adapter]
        drafter = make_drafter(model, [request.ids], self._draft, self._lookup, self._tokenizer.size)
        reply = Reply(Speaker(self._tokenizer, request, drafter), self._wake, listener)
        with self._wake:
            if not self.alive:
                raise self._closing or EngineError("the thread of the engine has ended; make a new engine")
            self._new.append(reply)
            self._wake.notify()
        return reply

    def close(self, reason: str = "the engine was closed") -> None:
        """End every running reply with an EngineError of this reason, and wait for the thread."""
        with self._wake:
            self._closing = self._closing or EngineError(reason)
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # --- in the engine's thread

    def step(self) -> None:
        """Take in new requests, then make one token for each running row and compute one chunk of a prompt."""
        with self._wake:
            new, self._new = self._new, []
        for reply in new:
            self._replies[reply._speaker.row] = reply
            self._scheduler.add(reply._speaker.row)
        try:
            for row, event in self._scheduler.step():
                self._tell(row, event)
        except Exception as error:  # an error of the scheduler: its replies are lost, but the engine continues
            self._end(self._replies.values(), error)
            self._scheduler = self._new_scheduler()
        self._replies = {row: reply for row, reply in self._replies.items() if not reply._complete}

    def _tell(self, row: Row, event: int | Exception) -> None:
        reply = self._replies.get(row)
        if reply is None or reply._complete:  # it was cancelled, or drafts gave tokens after its end
            return
        try:
            reply._put(event if isinstance(event, Exception) else reply._speaker.say(event))
        except Exception as error:  # of the reply's own text
            row.ended = True
            reply._put(error)

    def _wait(self) -> bool:
        """Wait for work. False if the engine must close."""
        with self._wake:
            while not (self._closing or self._new or self._scheduler.busy):
                self._wake.wait()
            return self._closing is None

    def _end_all(self) -> None:
        """The thread ends: so must every reply, and no request may come after them."""
        with self._wake:
            reason = self._closing = self._closing or EngineError("the engine's thread has ended by an error")
            new, self._new = self._new, []
        self._end([*self._replies.values(), *new], reason)

    def _end(self, replies: Iterable[Reply], error: Exception) -> None:
        for reply in replies:
            reply._speaker.row.ended = True
            reply._put(error)

    def _new_scheduler(self) -> Scheduler:
        kept = self._prefix_bytes or self._folders
        prefixes = PrefixStore(self._prefix_bytes, self._folders) if kept else None
        return Scheduler(
            self._model,
            self._tokenizer.size,
            max_rows=self._max_rows,
            max_gap=self._max_gap,
            prefixes=prefixes,
            kv_bits=self._kv_bits,
            memory=self._memory,
            adapters=self._models,
        )


def _check_number(name: str, value: object, least: int, unit: str, kind: type) -> None:
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value < math.inf:  # type: ignore[operator]
        number = "a whole number" if kind is Integral else "a number"
        raise UsageError(f"{name} is {value!r}; expected {number} of {unit}, {least} or more")


def _loop(engine: Engine) -> None:
    try:
        note_thread()
        while engine._wait():
            engine.step()
    finally:  # whatever happens, nobody waits for a thread that has ended
        engine._end_all()
    for _ in engine._scheduler.close():
        pass
    if engine._scheduler.prefixes:
        engine._scheduler.prefixes.close()


def _close(engine: "weakref.ref[Engine]") -> None:
    # If the thread still computes while the interpreter ends, the process aborts.
    if alive := engine():
        alive.close()
