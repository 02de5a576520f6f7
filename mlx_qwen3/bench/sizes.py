"""Default sizes of prompts and replies: the largest that end in about a minute, by a short reply of each contestant.

A library without a fast matrix product needs a minute for 512 tokens that others compute in a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..files.config import Qwen3Config
from .options import Contestant, Options, tokens_made
from .process import Worker
from .prompts import SETTLE, prompt
from .rounds import FEWEST

SMALLER = (((16, 128), 32), ((16, 64), 16), ((16,), 8))  # lengths of prompts, tokens of a reply: after the default
TRIED = 16  # tokens of the prompt of the trial
REPLIES = 2 + FEWEST  # of each size: one is compared, and its logits are computed again


@dataclass(frozen=True)
class Speed:
    """Of one contestant, in seconds."""

    prompt_token: float
    step: float


def fitting(
    options: Options, entries: Sequence[Contestant], workers: Sequence[Worker], config: Qwen3Config, seconds: float
) -> Options:
    """The options, with smaller sizes if those that they have would take more than so many seconds."""
    speeds = [_tried(worker, prompt(config, TRIED)) for worker in workers]
    chosen = options
    for lengths, made in SMALLER:
        if needed(chosen, entries, speeds) <= seconds:
            break
        chosen = replace(chosen, prompt_tokens=lengths, generate=made)
    return chosen


def needed(options: Options, entries: Sequence[Contestant], speeds: Sequence[Speed]) -> float:
    """About how many seconds all replies take, with the fewest rounds."""
    once = 0.0
    for entry, speed in zip(entries, speeds, strict=True):
        for length in options.prompt_tokens:
            made = tokens_made(entry.kind, length, options.generate)
            passes = made if entry.kind.limited else 1  # without a cache, every token is a pass over the prompt
            once += passes * length * speed.prompt_token + made * speed.step + SETTLE
        for rows in options.rows if entry.kind.batches else ():
            once += rows * min(options.prompt_tokens) * speed.prompt_token + options.generate * speed.step + SETTLE
    return REPLIES * once


def _tried(worker: Worker, ids: list[int]) -> Speed:
    """The second of two replies, because the first also compiles and warms up; of a slow contestant the first."""
    for _ in range(2):
        seconds = worker.ask("generate", ids=ids, count=3)["seconds"]
        if seconds[-1] > 2:
            break
    return Speed(seconds[0] / len(ids), (seconds[-1] - seconds[0]) / max(len(seconds) - 1, 1))
