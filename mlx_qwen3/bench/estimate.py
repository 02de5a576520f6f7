"""About how long a measurement takes, from the sizes of model and prompts, before anything has run.

The speeds are those of a slow laptop. It is a guess: after the first round the clock says what it measured.

N bytes of the weights
"""

from collections.abc import Sequence
from dataclasses import replace

from ..files.config import Qwen3Config
from .mixes import ARRIVAL, MIXES, SHARES
from .options import Contestant, Options, tokens_made
from .prompts import SETTLE
from .roofline import prefill_operations
from .rounds import BUDGET, FEWEST
from .serving_report import Serving
from .sizes import SMALLER

START = 3.0  # seconds until a contestant's libraries are loaded
READ = 1e9  # bytes per second, from a file
COPY = 3e10  # bytes per second, from memory
FLOPS = 3e11
PROCESS = 32  # tokens of a whole process
QUESTION = 50  # tokens of a short prompt


def of_replies(options: Options, entries: Sequence[Contestant], config: Qwen3Config, N: int) -> float:
    """Seconds of a whole run."""
    if options.fit:
        lengths, made = SMALLER[-1]
        smallest = of_replies(replace(options, prompt_tokens=lengths, generate=made, fit=False), entries, config, N)
        return max(BUDGET, smallest)
    start = len(entries) * (START + N / READ)
    once = sum(_reply(options, entry, config, N, length) for entry in entries for length in options.prompt_tokens)
    for rows in options.rows:
        prompts = rows * prefill_operations(config, min(options.prompt_tokens)) / FLOPS
        once += sum(entry.kind.batches for entry in entries) * (prompts + options.generate * N / COPY + SETTLE)
    process = len(entries) * (START + PROCESS * N / COPY)
    return _all_rounds(options.repeat, start + 2 * once, once + process, start)


def of_servers(serving: Serving, servers: int, config: Qwen3Config, N: int) -> float:
    """Seconds of a whole run."""
    tokens = serving.options.generate * sum(SHARES) / len(SHARES)
    once = prefill_operations(config, ARRIVAL) / FLOPS + len(MIXES) * len(serving.clients) * SETTLE
    for mix in MIXES:
        prompts = prefill_operations(config, QUESTION) * mix.turns * sum(serving.clients)
        prompts += prefill_operations(config, mix.prefix) * len(serving.clients) if mix.prefix else 0
        once += prompts / FLOPS + mix.turns * len(serving.clients) * tokens * N / COPY
    return _all_rounds(serving.options.repeat, servers * (START + N / READ), servers * once)


def _all_rounds(repeat: int | None, before: float, once: float, each: float = 0.0) -> float:
    """`each`: seconds more for every round, if their number is given."""
    if repeat is None:
        return max(BUDGET, before + (FEWEST if once < BUDGET / 2 else 1) * once)
    return before + repeat * (once + each)


def _reply(options: Options, entry: Contestant, config: Qwen3Config, N: int, length: int) -> float:
    made = tokens_made(entry.kind, length, options.generate)
    passes = made if entry.kind.limited else 1  # without a cache, every token is a pass over the prompt
    return passes * prefill_operations(config, length) / FLOPS + made * N / COPY + SETTLE
