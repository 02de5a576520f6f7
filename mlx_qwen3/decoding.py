"""The token layer: prefill and decode on token ids, for one prompt or a batch of different lengths.

B batch, L tokens, V vocabulary
"""

from collections.abc import Collection, Iterator, Sequence

import mlx.core as mx
import numpy as np

from .cache import KVCache
from .config import Qwen3Config
from .errors import PromptError, UsageError
from .model import Qwen3
from .sampling import SamplingParams, penalize, sample
from .step import decode_step

# Tokens of one forward pass, which bound the memory of activations. MLX's CPU also keeps the scores of the pass, as a
# GPU's fused attention does not: at 8,192 tokens passes of 512 take a third of the memory and no more time.
PREFILL_CHUNK = {mx.gpu: 2048, mx.cpu: 512}


def prefill_chunk() -> int:
    """Tokens of one pass on the default device."""
    return PREFILL_CHUNK[mx.default_device().type]


def prefill(model: Qwen3, ids: mx.array, cache: KVCache, chunk: int | None = None) -> mx.array:
    """Feed token ids (B, L) to the cache, `chunk` at a time; logits (B, V) of the last position only."""
    L, chunk = ids.shape[1], chunk or prefill_chunk()
    for start in range(0, L - chunk, chunk):
        model.hidden(ids[:, start : start + chunk], cache)
        mx.eval(cache.buffers)  # nothing else of this chunk is needed, so its last MLP and norm are never computed
    rest = ids[:, (L - 1) // chunk * chunk :]
    return model.logits(model.hidden(rest, cache)[:, -1:])[:, 0]


def decode(
    model: Qwen3, prompts: Sequence[Sequence[int]], sampling: SamplingParams, vocabulary: int | None = None
) -> Iterator[list[int]]:
    """The next token of every prompt, again and again without end; prompts may differ in length.

    Ids from `vocabulary` up are never chosen: the embedding's padding rows stand for no text.
    """
    ids, padding = _left_padded(prompts)
    cache = model.make_cache(len(prompts), padding)
    vocabulary = model.config.vocab_size if vocabulary is None else min(vocabulary, model.config.vocab_size)
    key = step = mx.random.key(sampling.seed)
    seen = _seen(prompts, vocabulary) if sampling.repetition_penalty != 1 else None
    logits = prefill(model, ids, cache)
    forward = decode_step(model)
    while True:
        if not sampling.greedy:  # which would never evaluate its keys, and let them pile up
            key, step = mx.random.split(key)
        logits = logits[:, :vocabulary]
        if seen is not None:
            logits = penalize(logits, seen, sampling.repetition_penalty)
        tokens = sample(logits, sampling, step)
        if seen is not None:
            seen = mx.put_along_axis(seen, tokens[:, None], mx.array(True), axis=-1)
        yield tokens.tolist()  # type: ignore[misc]
        logits = forward(tokens, cache)


def generate_batch(
    model: Qwen3,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    stop_ids: Collection[int] = (),
    sampling: SamplingParams | None = None,
    vocabulary: int | None = None,
) -> list[list[int]]:
    """New token ids for every prompt of token ids, up to `max_tokens` or a stop id, which is left out.

    Greedy unless `sampling` says otherwise; a row gets the tokens it would get alone. Raises PromptError for a
    prompt that is empty or does not fit.
    """
    for prompt in prompts:
        check_prompt(prompt, max_tokens, model.config)
    replies: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    steps = decode(model, prompts, sampling or SamplingParams(temperature=0), vocabulary)
    for _ in range(max_tokens if prompts else 0):
        tokens = next(steps)
        open_rows -= {row for row in open_rows if tokens[row] in stop_ids}
        for row in open_rows:
            replies[row].append(tokens[row])
        if not open_rows:
            break
    return replies


def check_prompt(ids: Sequence[int], max_tokens: int, config: Qwen3Config) -> None:
    """Raises PromptError where prompt and answer do not fit the context, or an id is not of the vocabulary."""
    if not ids:
        raise PromptError("the prompt is empty; give at least one token")
    check_limit(max_tokens)
    context = config.context_length
    if len(ids) >= context:
        raise PromptError(f"the prompt has {len(ids)} tokens, which fill the context of {context}; shorten it")
    if len(ids) + max_tokens > context:
        raise PromptError(
            f"{len(ids)} prompt tokens and max_tokens {max_tokens} exceed the context of {context}; "
            f"set max_tokens to {context - len(ids)} or less"
        )
    if not 0 <= min(ids) <= max(ids) < config.vocab_size:
        wrong = next(i for i in ids if not 0 <= i < config.vocab_size)
        raise PromptError(
            f"token id {wrong} is outside the vocabulary of {config.vocab_size}; is it of this tokenizer?"
        )


def check_limit(max_tokens: int) -> None:
    """Raises UsageError where it is no limit."""
    if max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}; expected 1 or more")


def _left_padded(prompts: Sequence[Sequence[int]]) -> tuple[mx.array, list[int]]:
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    return mx.array([[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)]), padding


def _seen(prompts: Sequence[Sequence[int]], vocabulary: int) -> mx.array:
    """Which ids every prompt holds, (B, vocabulary) bool."""
    seen = np.zeros((len(prompts), vocabulary), bool)
    for row, prompt in zip(seen, prompts, strict=True):
        row[[token for token in prompt if token < vocabulary]] = True
    return mx.array(seen)
