"""Decoding on token ids: one prompt token by token, or many prompts to the end."""

from collections.abc import Collection, Iterator, Sequence

from ..errors import HealthError, PromptError, UsageError
from ..files.config import Qwen3Config
from ..files.settings import is_int
from ..model.qwen3 import Qwen3
from .batch import SIZES
from .bound import BoundAnswer
from .grammar import Grammar
from .rows import Row
from .sampling import SamplingParams
from .scheduler import Scheduler
from .speculative import Drafter, make_drafter


def decode(
    model: Qwen3,
    prompt: Sequence[int],
    sampling: SamplingParams,
    vocabulary: int | None = None,
    *,
    max_tokens: int | None = None,
    stop_ids: Collection[int] = (),
    drafter: Drafter | None = None,
) -> Iterator[int]:
    """The tokens of a reply to a prompt of token ids, one by one.

    Ends after a stop id, at `max_tokens`, or at the end of the context. Ids from `vocabulary` up are never chosen: the
    embedding's padding rows stand for no text. A `drafter` makes it faster and changes no token.
    Raises HealthError if the logits of a token are unusable.
    """
    room = model.config.context_length - len(prompt)
    limit = room if max_tokens is None else min(max_tokens, room)
    if limit < 1:
        return
    scheduler = Scheduler(model, _known_ids(model, vocabulary))
    scheduler.add(Row(prompt, sampling, limit, stop_ids, drafter=drafter))
    for _, event in scheduler.run():
        if isinstance(event, Exception):
            raise event
        yield event


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
    kv_bits: int | None = None,
    grammar: Grammar | None = None,
) -> list[list[int]]:
    """New token ids for every prompt of token ids, up to `max_tokens` or a stop id, which is left out.

    Greedy by default; with `sampling` a row gets the tokens that it would get alone. `draft` and `lookup` are
    those of `make_drafter`, `kv_bits` that of `Qwen3.make_cache`. A `grammar` binds every reply, from its first
    token on. Raises PromptError for a prompt that is empty or does not fit, HealthError if the logits of a reply are
    unusable.
    """
    prompts = [[int(token) for token in prompt] for prompt in prompts]  # of any array or sequence
    for prompt in prompts:
        check_prompt(prompt, max_tokens, model.config)
    if not prompts:
        return []
    sampling = sampling or SamplingParams(temperature=0)
    if grammar:
        stop_ids, vocabulary = {*stop_ids, *grammar.tokenizer.stop_ids}, grammar.tokenizer.size
    drafter = make_drafter(model, prompts, draft, lookup, vocabulary)
    scheduler = Scheduler(model, _known_ids(model, vocabulary), max_rows=SIZES[-1], kv_bits=kv_bits)
    rows = [Row(prompt, sampling, max_tokens, stop_ids, number) for number, prompt in enumerate(prompts)]
    for row in rows:
        row.drafter = drafter
        row.steering = [BoundAnswer(grammar, may_think=False)] if grammar else []
        scheduler.add(row)
    for row, event in scheduler.run():
        if isinstance(event, HealthError):
            raise HealthError(f"prompt {row.number + 1}: {event}")
        if isinstance(event, Exception):
            raise event
    return [[token for token in row.tokens if token not in stop_ids] for row in rows]


def _known_ids(model: Qwen3, vocabulary: int | None) -> int:
    size = model.config.vocab_size
    return size if vocabulary is None else min(vocabulary, size)


def check_prompt(ids: Sequence[int], max_tokens: int, config: Qwen3Config) -> None:
    """Raises PromptError if prompt and answer do not fit the context, or an id is not of the vocabulary."""
    check_ids(ids, config)
    check_limit(max_tokens)
    context = config.context_length
    if len(ids) >= context:
        raise PromptError(f"the prompt has {len(ids)} tokens, which fill the context of {context}; shorten it")
    if len(ids) + max_tokens > context:
        raise PromptError(
            f"{len(ids)} prompt tokens and max_tokens {max_tokens} exceed the context of {context}; "
            f"set max_tokens to {context - len(ids)} or less"
        )


def check_ids(ids: Sequence[int], config: Qwen3Config) -> None:
    """Raises PromptError if there is none, or one is not of the vocabulary."""
    if not ids:
        raise PromptError("the prompt is empty; give at least one token")
    if not 0 <= min(ids) <= max(ids) < config.vocab_size:
        wrong = next(i for i in ids if not 0 <= i < config.vocab_size)
        raise PromptError(
            f"token id {wrong} is outside the vocabulary of {config.vocab_size}; is it of this tokenizer?"
        )


def check_limit(max_tokens: object) -> None:
    """Raises UsageError if it is not a limit."""
    if not is_int(max_tokens) or max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens!r}; expected 1 or more")
