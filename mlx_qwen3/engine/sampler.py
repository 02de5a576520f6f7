"""Chooses the tokens of replies by their settings, and keeps the state that these need."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np

from ..errors import HealthError
from ..files.values import to_mlx
from .filters import BROKEN, Chooser
from .penalties import Penalties, has_penalty
from .sampling import SamplingParams


class Sampler:
    """Chooses the tokens of a batch of replies, each by its own settings.

    The random numbers of a row depend only on its seed, its number and the position in the reply: not on other rows,
    and not on how many tokens one forward pass makes.
    """

    def __init__(
        self,
        params: SamplingParams | Sequence[SamplingParams],
        prompts: Sequence[Sequence[int]],
        vocabulary: int,
        numbers: Sequence[int] | None = None,
        replies: Sequence[Sequence[int]] | None = None,
    ):
        """`params` for all rows or for each of them; ids from `vocabulary` up are never chosen.

        `numbers` tells rows of one seed apart; the default counts them from 0. `replies` are the tokens that each row
        has said so far.
        """
        rows = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        numbers = range(len(prompts)) if numbers is None else numbers
        self.vocabulary = vocabulary
        self._model = "the model"
        self._streams = [(row.seed, number) for row, number in zip(rows, numbers, strict=True)]
        self._lengths = [len(prompt) for prompt in prompts]
        distinct = rows[:1] if len({replace(row, seed=0) for row in rows}) == 1 else rows
        self._random = not all(row.greedy for row in rows)
        self._params = distinct
        self._chooser = Chooser(distinct, vocabulary)
        self._penalties = Penalties(distinct, prompts, vocabulary, replies) if any(map(has_penalty, rows)) else None

    def next(self, logits: mx.array, position: int | Sequence[int]) -> mx.array:
        """The token of every row, (B,) int32, at its position in the reply, from logits (B, V); see `known`."""
        places: list[tuple[int, int, int]] = []
        if self._random:
            positions = [position] * len(logits) if isinstance(position, int) else position
            places = [(*stream, at) for stream, at in zip(self._streams, positions, strict=True)]
        tokens = self._choose(logits, self._penalties, places)
        if self._penalties:
            self._note(tokens[:, None])
        return tokens

    def known(self, tokens: mx.array, position: int) -> list[int]:
        """The tokens that `next` gave, once they are computed. Raises HealthError if the logits of one are unusable."""
        found: list[int] = tokens.tolist()  # type: ignore[assignment]
        if BROKEN in found:
            raise self.broken(found.index(BROKEN), position)
        return found

    def check(self, logits: mx.array, position: int, fed: Sequence[int]) -> list[int]:
        """The tokens that `next` would choose for a single reply at each position, until a token of `fed` is wrong.

        fed: the last token of the reply and k guesses of what follows; logits (k + 1, V) of the position after each.
        Returns the right guesses and the token after them. Raises HealthError like `known`.
        """
        [stream] = self._streams
        places = [(*stream, position + i) for i in range(len(fed))]
        chosen: list[int] = self._choose(logits, self._along(fed), places).tolist()  # type: ignore[assignment]
        right = next((i for i, guess in enumerate(fed[1:]) if chosen[i] != guess), len(fed) - 1)
        if BROKEN in chosen[: right + 1]:
            raise self.broken(0, position + chosen.index(BROKEN))
        self._note(mx.array([chosen[: right + 1]]))
        return chosen[: right + 1]

    def fork(self, vocabulary: int, model: str) -> "Sampler":
        """An independent copy for `model` (its name in messages), whose vocabulary may be smaller."""
        other = copy.copy(self)
        other._model, other._penalties = model, copy.copy(self._penalties)
        if vocabulary < self.vocabulary:
            other.vocabulary, other._chooser = vocabulary, Chooser(self._params, vocabulary)
            other._penalties = self._penalties.cut(vocabulary) if self._penalties else None
        return other

    def _note(self, tokens: mx.array) -> None:
        """Tokens (B, L) are in the replies from now on."""
        if self._penalties:
            self._penalties.add(tokens)

    def _along(self, fed: Sequence[int]) -> Penalties | None:
        return self._penalties.along(fed[1:]) if self._penalties else None

    def _choose(
        self, logits: mx.array, penalties: Penalties | None, places: Sequence[tuple[int, int, int]]
    ) -> mx.array:
        if logits.shape[1] > self.vocabulary:
            logits = logits[:, : self.vocabulary]
        if penalties:
            logits = penalties(logits)
        return self._chooser(logits, random_keys(places) if self._random else None)

    def broken(self, row: int, position: int) -> HealthError:
        return HealthError(
            f"{self._model} has NaN or infinity in its logits for token {position + 1} of the reply, after "
            f"{self._lengths[row]} prompt tokens: a weight is broken, or numbers overflow (fp16 ends at 65,504, bf16 "
            "and fp32 do not); run `mlx-qwen3 inspect` on its SOURCE to see where it begins"
        )


def random_keys(places: Sequence[tuple[int, int, int]]) -> mx.array:
    """An independent key for each (seed, number of the row, position), (N, 2), by NumPy's hash."""
    words = [np.random.SeedSequence(seed, spawn_key=place).generate_state(2) for seed, *place in places]
    return to_mlx(np.stack(words))
