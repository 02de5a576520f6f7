"""Log-probabilities of tokens, for the rows that ask for them.

They are the model's own: computed from its logits before penalties, bias, masks and temperature, over all its ids.

R rows that ask, V vocabulary, k alternatives
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..errors import UsageError
from ..files.settings import is_int
from .filters import candidates

MOST = 20  # alternatives, as in OpenAI's API


@dataclass(frozen=True)
class Logprobs:
    """The log-probability of one token, in nats. `top` has the most probable ids at its place with theirs."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Scores:
    """The log-probabilities of one step, for the rows that ask. Nothing is computed for the others."""

    def __init__(self, logits: mx.array, tokens: mx.array, asked: Sequence[int | None], vocabulary: int):
        """logits (B, V) and tokens (B,) of a step; how many alternatives each slot wants, None if it does not ask."""
        slots = [slot for slot, wanted in enumerate(asked) if wanted is not None]
        self._row = {slot: row for row, slot in enumerate(slots)}
        self._wanted = asked
        which = mx.array(slots)
        kept = logits[which].astype(mx.float32)
        self._all = kept - mx.logsumexp(kept, axis=-1, keepdims=True)  # (R, V)
        self._tokens = tokens[which]
        self._chosen = mx.take_along_axis(self._all, self._tokens[:, None].astype(mx.int32), axis=-1)[:, 0]
        most = max(wanted or 0 for wanted in asked)
        _, self._values, self._ids = candidates(self._all[:, :vocabulary], max(1, min(most, vocabulary)))

    @property
    def arrays(self) -> list[mx.array]:
        """The arrays to evaluate together with the step."""
        return [self._all, self._chosen, self._values, self._ids]

    def of(self, slot: int, token: int) -> Logprobs:
        """Those of the token that a slot got. Steering may have replaced the chosen token by it."""
        row, wanted = self._row[slot], self._wanted[slot] or 0
        same = self._tokens[row].item() == token
        logprob = self._chosen[row] if same else self._all[row, token]
        ids, values = self._ids[row, :wanted].tolist(), self._values[row, :wanted].tolist()
        return Logprobs(float(logprob.item()), tuple(zip(ids, values, strict=True)))  # type: ignore[arg-type]


def check_count(count: object) -> None:
    """Raises UsageError if `count` is not a number of alternatives."""
    if count is not None and (not is_int(count) or not 0 <= count <= MOST):
        raise UsageError(f"logprobs is {count!r}; expected how many alternatives to list, 0 to {MOST}")
