"""A row: one reply at the level of tokens, and what steers its next token besides the model."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from .logprobs import Logprobs
from .sampling import SamplingParams
from .speculative import Drafter


class Steering(Protocol):
    """Something that limits or replaces the tokens of one row, such as a thinking budget or a grammar."""

    def waits(self) -> bool:
        """Whether the next step needs the last token before it is built; if so, no step is built ahead."""

    def allowed(self) -> np.ndarray | None:
        """The ids that the next token may be, (V,) bool for those of the tokenizer; None allows all."""

    def settle(self, token: int) -> int:
        """The token that replaces the chosen one; often it is the same."""


@dataclass(eq=False)
class Row:
    """The state of one reply. `tokens` are the known ones, including a stop token."""

    prompt: Sequence[int]
    sampling: SamplingParams
    max_tokens: int
    stop_ids: Collection[int] = ()
    number: int = 0  # decides the row's random keys, with the seed and the position
    steering: Sequence[Steering] = ()
    drafter: Drafter | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: int | None = None  # how many alternatives to note for each token; None notes nothing
    scores: list[Logprobs] = field(default_factory=list)  # of each token, if it asks
    adapter: str | None = None  # by which its model differs from the base
    cached: int = 0  # tokens of the prompt whose keys and values were known
    ended: bool = False  # by a stop id or the limit, or from outside

    @property
    def length(self) -> int:
        """Tokens of prompt and reply."""
        return len(self.prompt) + len(self.tokens)

    @property
    def left(self) -> int:
        """Tokens that may still be chosen."""
        return self.max_tokens - len(self.tokens)

    def waits(self) -> bool:
        return any(part.waits() for part in self.steering)

    def allowed(self) -> np.ndarray | None:
        masks = [mask for part in self.steering if (mask := part.allowed()) is not None]
        return np.logical_and.reduce(masks) if masks else None

    def take(self, token: int) -> int:
        """Add the next token, as it was chosen or as steering replaces it. Returns it."""
        for part in self.steering:
            token = part.settle(token)
        self.tokens.append(token)
        if self.drafter:
            self.drafter.add(token)
        self.ended = self.ended or token in self.stop_ids or self.left <= 0
        return token
