"""A row: one reply at the level of tokens, and who has a say in its next token beside the model."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from .logprobs import Logprobs
from .sampling import SamplingParams
from .speculative import Drafter


class Steering(Protocol):
    """Something that has a say in the tokens of one row, such as a thinking budget or a grammar."""

    def waits(self) -> bool:
        """Whether the next token depends on the last one by more than the model: no step is then built ahead."""

    def allowed(self) -> np.ndarray | None:
        """The ids that the next token may be, (V,) bool for those of the tokenizer; None allows all."""

    def settle(self, token: int) -> int:
        """The token that takes the place of the chosen one; often it is the same."""


@dataclass(eq=False)
class Row:
    """What the engine knows of one reply. `tokens` are those that are known, the stop token with them."""

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
        """Note the next token, as it was chosen or as it is steered. Returns it."""
        for part in self.steering:
            token = part.settle(token)
        self.tokens.append(token)
        if self.drafter:
            self.drafter.add(token)
        self.ended = self.ended or token in self.stop_ids or self.left <= 0
        return token
