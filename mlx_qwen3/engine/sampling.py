"""How the next token of a reply is chosen: the settings, and the state that they need."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import ConfigError, HealthError, UsageError
from ..files.reading import short
from ..files.values import to_mlx
from . import generation_config
from .filters import BROKEN, Chooser
from .penalties import Penalties, has_penalty


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the next token; the defaults are Qwen3's own for thinking.

    temperature: 0 is greedy, and so is anything below 1e-6, where float32 can no longer tell probabilities apart.
    top_k: keep the k most probable ids, and all that are equal to the k-th (of at most 128 ids, or 2 k if that is
        more); 0 is off.
    top_p: keep the fewest ids whose probabilities reach p; 1 is off.
    min_p: keep the ids whose probability is at least `min_p` times the largest one; 0 is off.
    repetition_penalty: divides logits above 0 and multiplies logits below 0 of every token that occurs in the prompt or
        the reply, once even if it occurs often; 1 is off. As in transformers.
    presence_penalty: is subtracted from the logit of every token that occurs in the reply; the prompt does not count.
    frequency_penalty: is subtracted once for each time that the token occurs in the reply. As in vLLM, both -2 to 2.
    seed: the same seed and prompt give the same tokens.
    logit_bias: is added to the logits of single ids before everything else, -100 (practically never) to 100; a mapping,
        or pairs.
    """

    temperature: float = 0.6
    top_k: int = 20
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Any = ()

    def __post_init__(self) -> None:
        """Raises UsageError that names the setting."""
        for name, (valid, expected) in RANGES.items():
            value = getattr(self, name)
            number = isinstance(value, Integral if name in ("top_k", "seed") else Real)
            if isinstance(value, bool) or not number or not valid(value):
                raise UsageError(f"{name} is {short(repr(value))}; expected {expected}")
            if not isinstance(value, int | float):  # of NumPy, say, which JSON does not take
                object.__setattr__(self, name, int(value) if isinstance(value, Integral) else float(value))

        object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-6

    @classmethod
    def from_generation_config(cls, raw: Mapping[str, Any], thinking: bool) -> "SamplingParams":
        """The checkpoint's own settings, and Qwen's defaults for those that it does not have.

        Raises ConfigError for a setting that is malformed or cannot be honoured; see `generation_config`.
        """
        generation_config.check(raw)
        given = {name: raw[name] for name in generation_config.SAMPLING if raw.get(name) is not None}
        try:
            return replace(cls(**given), **generation_config.sampling_overrides(raw, thinking))
        except UsageError as error:
            raise ConfigError(f"{error} in generation_config.json; correct or remove it there") from None


def _pairs(bias: Any) -> tuple[tuple[int, float], ...]:
    """A bias as pairs in the order of ids. Raises UsageError if it is something else."""
    expected = "expected token ids with numbers from -100 to 100"
    try:
        pairs = dict(bias.items() if isinstance(bias, Mapping) else bias)
        found = {int(token): float(value) for token, value in pairs.items()}
    except (TypeError, ValueError):
        raise UsageError(f"logit_bias is {bias!r}; {expected}") from None
    for token, value in found.items():
        if token < 0 or not -100 <= value <= 100:
            raise UsageError(f"logit_bias has {value!r} for the id {token}; {expected}")
    return tuple(sorted(found.items()))


RANGES: dict[str, tuple[Any, str]] = {
    "temperature": (lambda x: 0 <= x <= 1e30, "a number from 0 (greedy) to 1e30"),
    "top_k": (lambda x: 0 <= x < 2**31, "an integer from 0 (off) to 2^31 - 1"),
    "top_p": (lambda x: 0 < x <= 1, "a number in (0, 1] (1 is off)"),
    "min_p": (lambda x: 0 <= x <= 1, "a number in [0, 1] (0 is off)"),
    "repetition_penalty": (lambda x: 1e-6 <= x <= 1e6, "a number from 1e-6 to 1e6 (1 is off)"),
    "seed": (lambda x: 0 <= x < 2**64, "an integer in [0, 2^64)"),
    "presence_penalty": (lambda x: -2 <= x <= 2, "a number in [-2, 2] (0 is off)"),
    "frequency_penalty": (lambda x: -2 <= x <= 2, "a number in [-2, 2] (0 is off)"),
}


SETTINGS = tuple(setting.name for setting in fields(SamplingParams))  # by name


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
