"""How the next token of a reply is chosen: the settings."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

from ..errors import ConfigError, UsageError
from ..files.reading import short
from . import generation_config


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
