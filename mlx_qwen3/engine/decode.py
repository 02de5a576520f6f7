"""The token layer: decode on token ids, for one prompt or a batch of different lengths."""

from collections.abc import Collection, Iterator, Sequence
from itertools import takewhile

import mlx.core as mx

from ..errors import PromptError, UsageError
from ..files.config import Qwen3Config
from ..model import kernels
from ..model.qwen3 import Qwen3
from .runner import decode_step, prefill
from .sampling import Sampler, SamplingParams
from .speculative import Drafter, make_drafter
from .threads import any_thread


class _Replies:
    """Replies under way: a cache, a step that the device computes, and the tokens known so far."""

    def __init__(self, model: Qwen3, prompts: Sequence[Sequence[int]], sampler: Sampler, stop_ids: Collection[int]):
        ids, padding = _left_padded(prompts)
        self._model, self._step, self._stop_ids = model, decode_step(model), stop_ids
        self.sampler = sampler
        self._cache = model.make_cache(len(prompts), padding)
        self._known = 0  # tokens of every reply
        self._last: list[int] = []
        self.running = set(range(len(prompts)))
        self.coming: mx.array | None = sampler.next(prefill(model, ids, self._cache), 0)
        mx.async_eval(self.coming)

    def step(self, ahead: bool) -> list[int]:
        """The next token of every reply; `ahead`, the one after it is computed while the caller has this one."""
        if self.coming is None:
            self.coming = self._following(mx.array(self._last, mx.int32), self._known)
        mx.async_eval(self.coming)
        # Python builds the next step while the device computes this one, and hands it over when that is done: the
        # cache is written in place only if no unfinished work holds its buffers, and is copied otherwise.
        following = self._following(self.coming, self._known + 1) if ahead else None
        tokens = self.sampler.known(self.coming, self._known, self.running)
        self._note(tokens)
        self.coming = following if self.running else None
        if self.coming is not None and kernels.on_gpu():
            mx.async_eval(self.coming)  # on a CPU this waits for most of the step, and the caller for this token
        return tokens

    def check(self, drafts: Sequence[int]) -> list[int]:
        """The next tokens of a single reply, from one pass over its last token and drafts of what follows."""
        fed = [*self._last, *drafts]
        tokens = self.sampler.check(self._model(mx.array([fed]), self._cache)[0], self._known, fed)
        ended = next((i for i, token in enumerate(tokens, 1) if token in self._stop_ids), len(tokens))
        self._cache.trim(len(fed) - ended)
        for token in tokens[:ended]:
            self._note([token])
        return tokens[:ended]

    def _following(self, tokens: mx.array, position: int) -> mx.array:
        return self.sampler.next(self._step(tokens, self._cache), position)

    def _note(self, tokens: list[int]) -> None:
        self._known += 1
        self._last = tokens
        self.running -= {row for row in self.running if tokens[row] in self._stop_ids}


@any_thread
def decode(
    model: Qwen3,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    vocabulary: int | None = None,
    *,
    max_tokens: int | None = None,
    stop_ids: Collection[int] = (),
    drafter: Drafter | None = None,
) -> Iterator[list[int]]:
    """The next token of every prompt, again and again; prompts may differ in length.

    Ends when every reply has had a stop id, at `max_tokens`, or at the end of the context. Ids from `vocabulary` up are
    never chosen: the embedding's padding rows stand for no text. A `drafter`, made for a single prompt, makes it faster
    and changes no token.
    """
    room = model.config.context_length - max(map(len, prompts))
    left = room if max_tokens is None else min(max_tokens, room)
    size = model.config.vocab_size
    sampler = Sampler(sampling, prompts, size if vocabulary is None else min(vocabulary, size))
    replies = _Replies(model, prompts, sampler, stop_ids)
    while left > 0 and replies.running:
        drafts = drafter.propose(left - 1, sampler) if drafter and replies.coming is None else []
        if drafter and drafts:
            tokens = replies.check(drafts)
            drafter.checked(len(drafts), len(tokens) - 1)
            fresh = [[token] for token in tokens]
        else:
            fresh = [replies.step(ahead=left > 1 and not (drafter and drafter.expects()))]
        left -= len(fresh)
        for row in fresh:
            if drafter:
                drafter.add(row[0])
            yield row


def generate_batch(
    model: Qwen3,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    stop_ids: Collection[int] = (),
    sampling: SamplingParams | None = None,
    vocabulary: int | None = None,
    draft: Qwen3 | None = None,
    lookup: bool | None = None,
) -> list[list[int]]:
    """New token ids for every prompt of token ids, up to `max_tokens` or a stop id, which is left out.

    Greedy unless `sampling` says otherwise; a row then gets the tokens it would get alone. `draft` and `lookup` are
    those of `make_drafter`. Raises PromptError for a prompt that is empty or does not fit.
    """
    prompts = [[int(token) for token in prompt] for prompt in prompts]  # of any array or sequence
    for prompt in prompts:
        check_prompt(prompt, max_tokens, model.config)
    if not prompts:
        return []
    steps = decode(
        model,
        prompts,
        sampling or SamplingParams(temperature=0),
        vocabulary,
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        drafter=make_drafter(model, prompts, draft, lookup, vocabulary),
    )
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
