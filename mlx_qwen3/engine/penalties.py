"""Changes to the logits before the temperature: a bias for single ids, and penalties for tokens that occurred before.

The repetition penalty is that of transformers, presence and frequency penalties are vLLM's. The bias comes first.

B rows, V vocabulary
"""

import copy
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..files.values import to_mlx
from .sampling import SamplingParams


def has_penalty(params: SamplingParams) -> bool:
    penalties = params.repetition_penalty, params.presence_penalty, params.frequency_penalty
    return penalties != (1, 0, 0) or bool(params.logit_bias)


class Penalties:
    """The tokens of each row so far, and the penalties for repeating them.

    Arrays are replaced and never written to, so a shallow copy is independent.
    """

    def __init__(
        self,
        params: Sequence[SamplingParams],
        prompts: Sequence[Sequence[int]],
        vocabulary: int,
        replies: Sequence[Sequence[int]] | None = None,
    ):
        """`params` has one element per row, or a single one for all rows; `replies` are the tokens so far."""
        self._repetition, self._presence, self._frequency = (
            _column([getattr(row, f"{name}_penalty") for row in params], off)
            for name, off in (("repetition", 1), ("presence", 0), ("frequency", 0))
        )
        self._bias = _bias(params, vocabulary)
        self._prompted = _prompted(prompts, vocabulary)  # (B, V) bool
        counts = np.zeros(self._prompted.shape, np.int32)
        for row, reply in zip(counts, replies or (), strict=False):
            np.add.at(row, [token for token in reply if token < vocabulary], 1)
        self._counts = to_mlx(counts)  # of the generated tokens

    def __call__(self, logits: mx.array) -> mx.array:
        """The logits (B, V) after the penalties, in float32."""
        logits = logits.astype(mx.float32)
        if self._bias is not None:
            logits = logits + self._bias
        said = self._counts > 0
        if self._repetition is not None:
            lowered = mx.where(logits < 0, logits * self._repetition, logits / self._repetition)
            logits = mx.where(said | self._prompted, lowered, logits)
        if self._frequency is not None:
            logits = logits - self._frequency * self._counts
        return logits if self._presence is None else logits - self._presence * said

    def add(self, tokens: mx.array) -> None:
        """Tokens (B, L) are in the replies from now on."""
        rows = mx.broadcast_to(mx.arange(len(tokens))[:, None], tokens.shape)
        self._counts = self._counts.at[rows, tokens].add(1)

    def along(self, guesses: Sequence[int]) -> "Penalties":
        """The penalties for a pass over a single row and k guesses: k + 1 rows, row i with the first i guesses."""
        pairs = [(row, guess) for row in range(len(guesses) + 1) for guess in guesses[:row]]
        other = copy.copy(self)
        other._counts = mx.broadcast_to(self._counts, (len(guesses) + 1, self._counts.shape[1]))
        if pairs:
            rows, tokens = mx.array(pairs).T
            other._counts = other._counts.at[rows, tokens].add(1)
        return other

    def cut(self, vocabulary: int) -> "Penalties":
        """The same penalties for logits of only the first `vocabulary` ids."""
        other = copy.copy(self)
        other._prompted, other._counts = self._prompted[:, :vocabulary], self._counts[:, :vocabulary]
        other._bias = None if self._bias is None else self._bias[:, :vocabulary]
        return other


def _column(values: list[float], off: float) -> mx.array | None:
    return None if all(value == off for value in values) else mx.array(values, mx.float32)[:, None]


def _bias(params: Sequence[SamplingParams], vocabulary: int) -> mx.array | None:
    """What is added to each logit, (B, V) or (1, V); None if it is nothing."""
    if not any(row.logit_bias for row in params):
        return None
    bias = np.zeros((len(params), vocabulary), np.float32)
    for values, row in zip(bias, params, strict=True):
        for token, amount in row.logit_bias:
            values[token] = amount
    return to_mlx(bias)


def _prompted(prompts: Sequence[Sequence[int]], vocabulary: int) -> mx.array:
    """Which ids each prompt holds, (B, V) bool; an id of the embedding's padding rows is in none."""
    prompted = np.zeros((len(prompts), vocabulary), bool)
    for row, prompt in zip(prompted, prompts, strict=True):
        row[[token for token in prompt if token < vocabulary]] = True
    return to_mlx(prompted)
