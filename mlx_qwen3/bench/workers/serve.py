"""One contestant in its process: loads a model once, then answers commands, one JSON object per line."""

import ctypes
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Emit = Callable[[int], None]
EmitOfRow = Callable[[int, int], None]  # the row and its token
SAMPLED = (1, 151936)  # shape of the logits that sampling is timed on; Qwen3's vocabulary
WARM_UP = 3  # draws


class Engine(Protocol):
    """What a contestant can do. Each module of this folder that runs one has a class `Engine`."""

    versions: dict[str, str]
    blas: str
    host_time: bool  # whether the calling thread only prepares work and hands it over, see `generate`

    def load(self, folder: str, dtype: str | None) -> dict[str, Any]:
        """Read a checkpoint, as `dtype` (such as bfloat16) or by default.

        Returns dtype, device, and the bytes that decode reads: weight_bytes, and cache_bytes per token of context.
        """

    def generate(self, ids: list[int], count: int, emit: Emit) -> None:
        """Greedy, by the loop that users run. `emit` gets every token at once. Returns when all threads are idle."""

    def batch(self, prompts: list[list[int]], count: int, emit: EmitOfRow) -> None:
        """`generate` for several prompts at once. Only the contestants whose kind has `batches` are asked."""

    def logits(self, ids: list[int], last: int) -> np.ndarray:
        """Logits of the last positions, float32 (last, vocabulary)."""

    def sampler(self, logits: np.ndarray) -> Callable[[], int] | None:
        """A function that draws one token at Qwen's settings: temperature 0.6, top-k 20, top-p 0.95."""

    def reset_peak(self) -> None: ...

    def peak(self) -> int | None:
        """The most bytes that the framework says it has allocated since `reset_peak`."""

    def limits(self) -> dict[str, float]:
        """What the machine can do, see limits.py. Only this package's engine is asked."""


def step_bytes(sizes: Iterable[tuple[str, int]], tied: bool, settings: Any) -> int:
    """The bytes that a decode step of one row reads, of weights by name: of the experts only the chosen ones.

    settings: an object with the num_experts and num_experts_per_tok of a mixture of experts; other models have neither.
    """
    experts = getattr(settings, "num_experts", 0)
    read = 0
    for name, size in sizes:
        if "experts." in name or "switch_mlp." in name:  # mlx-lm's name
            read += size * settings.num_experts_per_tok // experts
        elif tied or "embed_tokens" not in name:
            read += size
    return read


def main(module: str, blas: str = "") -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print to stdout; the protocol needs it alone
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets Ctrl-C too, and ends its workers
    lines = _lines()
    if blas:
        ctypes.CDLL(blas, mode=ctypes.RTLD_GLOBAL)
    engine: Engine = import_module(f".{module}", __package__).Engine()
    _send(replies, {"versions": engine.versions, "blas": blas or engine.blas})
    while True:
        command, arguments = json.loads(lines.get())
        try:
            _send(replies, COMMANDS[command](engine, **arguments))
        except Exception as error:
            traceback.print_exc()
            _send(replies, {"error": f"{type(error).__name__}: {error}"})


def _send(replies: Any, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def _lines() -> "queue.SimpleQueue[str]":
    """The lines of stdin. When it ends the parent is gone, so the process ends too, whatever it is doing."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    return lines


def load(engine: Engine, folder: str, dtype: str | None, **own: Any) -> dict[str, Any]:
    """`own`: settings that only one of the engines has."""
    began = time.perf_counter()
    model = engine.load(folder, dtype, **own)
    return {"seconds": time.perf_counter() - began, **model}


def generate(engine: Engine, ids: list[int], count: int) -> dict[str, Any]:
    """Tokens, and the seconds from the call to each of them.

    `host_s` is the processor time of this thread per token. Other threads, or the GPU, compute the results, and waiting
    for them costs no processor time. So this is the time of Python, of building the graph and of handing it over.
    """
    tokens: list[int] = []
    times: list[float] = []
    host: list[float] = []

    def emit(token: int) -> None:
        times.append(time.perf_counter())
        host.append(time.thread_time())
        tokens.append(token)

    engine.reset_peak()
    _reset_peak()
    began = time.perf_counter()
    engine.generate(ids, count, emit)
    return {
        "tokens": tokens,
        "seconds": [round(moment - began, 7) for moment in times],
        "host_s": (host[-1] - host[0]) / (count - 1) if engine.host_time and count > 1 else None,
        "peak_bytes": _peak(),
        "framework_peak_bytes": engine.peak(),
    }


def batch(engine: Engine, prompts: list[list[int]], count: int) -> dict[str, Any]:
    """`count` tokens of every row, and the tokens per second of all rows, as long as all run.

    Rows begin one after the other, so each makes some tokens more. The clock runs from the first token of the row that
    begins last until the row that began first is about to end.
    """
    rows = len(prompts)
    tokens: list[list[int]] = [[] for _ in prompts]
    times: list[float] = []
    began = ended = 0  # tokens made until then

    def emit(row: int, token: int) -> None:
        nonlocal began, ended
        if not ended and len(tokens[row]) == count + rows - 1:
            ended = len(times)
        tokens[row].append(token)
        times.append(time.perf_counter())
        if not began and all(tokens):
            began = len(times)

    engine.batch(prompts, count + rows, emit)
    seconds = times[ended - 1] - times[began - 1]
    return {"tokens": [row[:count] for row in tokens], "tps": (ended - began) / seconds if seconds else None}


def logits(engine: Engine, ids: list[int], last: int, file: str) -> dict[str, Any]:
    np.save(file, engine.logits(ids, last))
    return {}


def sampling(engine: Engine, draws: int) -> dict[str, Any]:
    """Seconds of each draw, and the rank of the worst token drawn; rank 0 is the largest logit."""
    values = np.random.default_rng(0).normal(0, 3, SAMPLED).astype(np.float32)
    draw = engine.sampler(values)
    if draw is None:
        return {"seconds": [], "worst_rank": None}
    for _ in range(WARM_UP):
        draw()
    seconds, tokens = [], []
    for _ in range(draws):
        began = time.perf_counter()
        tokens.append(draw())
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds, "worst_rank": max(int((values > values[0, token]).sum()) for token in tokens)}


def limits(engine: Engine) -> dict[str, Any]:
    return engine.limits()


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function for function in (load, generate, batch, logits, sampling, limits)
}


def _reset_peak() -> None:
    """Linux can reset the peak of a process; elsewhere it is always that since the start of the process."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """The most bytes of memory that the process had resident."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
