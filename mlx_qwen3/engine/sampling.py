"""From logits to a token. The order is that of transformers: penalty, temperature, top-k, top-p, min-p."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import ConfigError, UsageError

# Settings of generation_config.json that would change the output and are not implemented, with their neutral values.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0.0,),
    "typical_p": (1.0,),
    "top_h": (),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "diversity_penalty": (0.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "guidance_scale": (1.0,),
    "bad_words_ids": ([],),
    "sequence_bias": ([], {}),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "stop_strings": ([],),
    "max_time": (),
    "dola_layers": (),
    "force_words_ids": ([],),
    "constraints": ([],),
    "watermarking_config": (),
}


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the next token; the defaults are Qwen3's own for thinking. `temperature=0` is greedy, and so is
    one below 1e-6, where float32 has no probabilities left to tell apart.

    `top_k=0` and `top_p=1` switch their filter off. The same seed and prompt give the same tokens.
    """

    temperature: float = 0.6
    top_k: int = 20
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UsageError that names the setting."""
        for name, (valid, expected) in RANGES.items():
            value = getattr(self, name)
            number = isinstance(value, int) or (isinstance(value, float) and name not in ("top_k", "seed"))
            if isinstance(value, bool) or not number or not valid(value):
                raise UsageError(f"{name} is {value!r}; expected {expected}")

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-6

    @classmethod
    def from_generation_config(cls, raw: Mapping[str, Any], thinking: bool) -> "SamplingParams":
        """The checkpoint's own settings; Qwen's defaults where it brings none.

        generation_config.json carries the values for thinking only, so a sampling checkpoint is switched to Qwen's
        other ones where thinking is off. `do_sample: false` is greedy.
        """
        for name, neutral in NEUTRAL.items():
            if raw.get(name) is not None and raw[name] not in neutral:
                raise ConfigError(f"{name} is {raw[name]!r} in generation_config.json; not supported, remove it")
        names = {field.name for field in fields(cls)} - {"seed"}
        settings = {name: value for name, value in raw.items() if name in names and value is not None}
        if raw and not raw.get("do_sample", False):
            settings["temperature"] = 0.0
        elif not thinking:
            settings |= {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0}
        try:
            return cls(**settings)
        except UsageError as error:
            raise ConfigError(f"generation_config.json: {error}") from None


RANGES: dict[str, tuple[Any, str]] = {
    "temperature": (lambda x: 0 <= x < float("inf"), "a number >= 0 (0 is greedy)"),
    "top_k": (lambda x: x >= 0, "an integer >= 0 (0 is off)"),
    "top_p": (lambda x: 0 < x <= 1, "a number in (0, 1] (1 is off)"),
    "min_p": (lambda x: 0 <= x <= 1, "a number in [0, 1] (0 is off)"),
    "repetition_penalty": (lambda x: 0 < x < float("inf"), "a number > 0 (1 is off)"),
    "seed": (lambda x: 0 <= x < 2**64, "an integer in [0, 2^64)"),
}


class Sampler:
    """Chooses the tokens of a batch of replies; the same seed, prompt and place in the reply draw the same.

    What is random about a token hangs on the seed, its row and its position alone, and not on how many tokens one
    forward pass made.
    """

    def __init__(self, params: SamplingParams, prompts: Sequence[Sequence[int]], vocabulary: int):
        """Ids from `vocabulary` up are never chosen."""
        self.vocabulary = vocabulary
        self._params = params
        self._seen = None if params.repetition_penalty == 1 else _seen(prompts, vocabulary)

    def next(self, logits: mx.array, position: int) -> mx.array:
        """The token of every row, (B,), at one position of their replies, from logits (B, V)."""
        tokens = self._choose(logits, self._seen, [(row, position) for row in range(len(logits))])
        self._note(tokens[:, None])
        return tokens

    def check(self, logits: mx.array, position: int, fed: Sequence[int]) -> list[int]:
        """What `next` would choose for a single reply, one position after the other, as far as `fed` is right.

        fed: the last token of the reply and k guesses of what follows; logits (k + 1, V) behind each of them. Returns
        the right guesses and the token behind them.
        """
        places = [(0, position + i) for i in range(len(fed))]
        chosen: list[int] = self._choose(logits, self._seen_along(fed), places).tolist()  # type: ignore[assignment]
        right = next((i for i, guess in enumerate(fed[1:]) if chosen[i] != guess), len(fed) - 1)
        self._note(mx.array([chosen[: right + 1]]))
        return chosen[: right + 1]

    def fork(self) -> "Sampler":
        """One that goes on from here by itself."""
        return copy.copy(self)  # arrays are replaced, never written

    def _note(self, tokens: mx.array) -> None:
        """Tokens (B, any) are in the replies from now on."""
        if self._seen is not None:
            self._seen = mx.put_along_axis(self._seen, tokens, mx.array(True), axis=-1)

    def _seen_along(self, fed: Sequence[int]) -> mx.array | None:
        """What every row of a check has seen, (k + 1, V): row i the guesses up to its own."""
        if self._seen is None:
            return None
        tokens = mx.array([[fed[j if j <= i else 0] for j in range(len(fed))] for i in range(len(fed))])
        rows = mx.broadcast_to(self._seen, (len(fed), self.vocabulary))
        return mx.put_along_axis(rows, tokens, mx.array(True), axis=-1)

    def _choose(self, logits: mx.array, seen: mx.array | None, places: list[tuple[int, int]]) -> mx.array:
        logits = logits[:, : self.vocabulary]
        if seen is not None:
            logits = penalize(logits, seen, self._params.repetition_penalty)
        keys = None if self._params.greedy else random_keys(self._params.seed, places)
        return sample(logits, self._params, keys)


def random_keys(seed: int, places: Sequence[tuple[int, int]]) -> mx.array:
    """An independent key for each (row, position), (N, 2), by numpy's hash: one needs no other before it."""
    words = [np.random.SeedSequence(seed, spawn_key=place).generate_state(2) for place in places]
    return mx.array(np.stack(words))


def sample(logits: mx.array, params: SamplingParams, keys: mx.array | None) -> mx.array:
    """One token id per row, (B,), from logits (B, V) whose repetition penalty is applied, with keys (B, 2)."""
    if params.greedy:
        return mx.argmax(logits, axis=-1)
    draw = mx.vmap(lambda row, key: mx.random.categorical(row, key=key))
    if params.top_k == 0 and params.top_p == 1 and params.min_p == 0:
        return draw(_cooled(logits, mx.max(logits, axis=-1, keepdims=True), params), keys)
    values, ids = candidates(logits, params.top_k)
    values = min_p(top_p(_cooled(values, values[:, :1], params), params.top_p), params.min_p)
    return mx.take_along_axis(ids, draw(values, keys)[:, None], axis=-1)[:, 0]


def _cooled(logits: mx.array, largest: mx.array, params: SamplingParams) -> mx.array:
    """Divided by the temperature, as float32; without the largest, since a low temperature must not overflow."""
    return (logits.astype(mx.float32) - largest.astype(mx.float32)) / params.temperature


BLOCK = 128  # neighbouring logits of which only the largest is looked at first


def candidates(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """The k largest logits of each row, largest first, and their ids, (B, k); all where k is 0."""
    if not 0 < k < logits.shape[-1]:
        ids = mx.argsort(-logits, axis=-1)
        return mx.take_along_axis(logits, ids, axis=-1), ids
    ids = _largest(logits, k)
    values = mx.take_along_axis(logits, ids, axis=-1)
    order = mx.argsort(-values, axis=-1)
    return mx.take_along_axis(values, order, axis=-1), mx.take_along_axis(ids, order, axis=-1)


def _largest(logits: mx.array, k: int) -> mx.array:
    """Ids of the k largest, in any order.

    They lie in the k blocks with the largest maxima, so only those, and what is left behind the last whole block, have
    to be partitioned: a hundredth of Qwen3's vocabulary.
    """
    B, V = logits.shape
    whole = V // BLOCK * BLOCK
    if whole <= 4 * k * BLOCK:
        return mx.argpartition(logits, -k, axis=-1)[:, -k:]
    maxima = mx.max(logits[:, :whole].reshape(B, -1, BLOCK), axis=-1)
    blocks = mx.argpartition(maxima, -k, axis=-1)[:, -k:]
    ids = (blocks[..., None] * BLOCK + mx.arange(BLOCK, dtype=mx.uint32)).reshape(B, -1)
    rest = mx.broadcast_to(mx.arange(whole, V, dtype=mx.uint32), (B, V - whole))
    ids = mx.concatenate([ids, rest], axis=-1)
    best = mx.argpartition(mx.take_along_axis(logits, ids, axis=-1), -k, axis=-1)[:, -k:]
    return mx.take_along_axis(ids, best, axis=-1)


def top_p(values: mx.array, p: float) -> mx.array:
    """Keep the fewest values, sorted from the largest, whose probabilities reach p; the rest become -inf."""
    if p == 1:  # off: rounding in the sum must not cut the tail
        return values
    before = mx.cumsum(mx.softmax(values, axis=-1), axis=-1, inclusive=False)
    return mx.where(before < max(p, 1e-30), values, -mx.inf)  # the first stays, even where p is 0 in float32


def min_p(values: mx.array, p: float) -> mx.array:
    """Keep the values with at least p times the probability of the first, the largest; the rest become -inf."""
    probabilities = mx.softmax(values, axis=-1)
    return mx.where(probabilities >= p * probabilities[:, :1], values, -mx.inf)


def penalize(logits: mx.array, seen: mx.array, penalty: float) -> mx.array:
    """Repetition penalty (arXiv 1909.05858): logits (B, V) of tokens already `seen` (B, V) bool move down."""
    return mx.where(seen, mx.where(logits > 0, logits / penalty, logits * penalty), logits)


def _seen(prompts: Sequence[Sequence[int]], vocabulary: int) -> mx.array:
    """Which ids every prompt holds, (B, vocabulary) bool."""
    seen = np.zeros((len(prompts), vocabulary), bool)
    for row, prompt in zip(seen, prompts, strict=True):
        row[[token for token in prompt if token < vocabulary]] = True
    return mx.array(seen)
