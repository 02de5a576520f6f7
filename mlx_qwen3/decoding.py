"""The token layer: decode on token ids, for one prompt or a batch of different lengths."""

from collections.abc import Collection, Iterator, Sequence
from itertools import takewhile

import mlx.core as mx

from .config import Qwen3Config
from .errors import PromptError, UsageError
from .model import Qwen3
from .passes import prefill, step
from .sampling import Sampler, SamplingParams


def decode(
    model: Qwen3,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    vocabulary: int | None = None,
    *,
    max_tokens: int | None = None,
    stop_ids: Collection[int] = (),
) -> Iterator[list[int]]:
    """The next token of every prompt, again and again; prompts may differ in length.

    Ends when every reply has had a stop id, at `max_tokens`, or at the end of the context. Ids from `vocabulary` up are
    never chosen: the embedding's padding rows stand for no text.
    """
    ids, padding = _left_padded(prompts)
    room = model.config.context_length - ids.shape[1]
    limit = room if max_tokens is None else min(max_tokens, room)
    size = model.config.vocab_size
    sampler = Sampler(sampling, prompts, size if vocabulary is None else min(vocabulary, size))
    cache = model.make_cache(len(prompts), padding)
    running = set(range(len(prompts)))
    coming = sampler.next(prefill(model, ids, cache), 0)
    mx.async_eval(coming)
    for position in range(1, limit + 1):
        # Python builds the next step while the device computes this one, and hands it over when that is done: the
        # cache is written in place only if no unfinished work holds its buffers, and is copied otherwise.
        following = sampler.next(step(model, coming, cache), position) if position < limit else None
        tokens: list[int] = coming.tolist()  # type: ignore[assignment]
        running -= {row for row in running if tokens[row] in stop_ids}
        if following is None or not running:
            yield tokens
            return
        mx.async_eval(following)
        yield tokens
        coming = following


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
    if not prompts:
        return []
    greedy = SamplingParams(temperature=0)
    steps = decode(model, prompts, sampling or greedy, vocabulary, max_tokens=max_tokens, stop_ids=stop_ids)
    return [list(takewhile(lambda token: token not in stop_ids, reply)) for reply in zip(*steps, strict=True)]


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
