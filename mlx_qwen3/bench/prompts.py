"""What every contestant gets, and the pause before it does."""

import random
import time

from ..files.config import Qwen3Config

SEED = 0
SETTLE = 0.3  # seconds; after its work OpenMP's threads spin for 0.2, on cores that the next contestant needs


def prompt(config: Qwen3Config, length: int, row: int = 0) -> list[int]:
    """Random token ids, the same for everyone; each row of a batch has its own."""
    return random.Random(SEED + row).choices(range(config.vocab_size), k=length)


def settle() -> None:
    time.sleep(SETTLE)
