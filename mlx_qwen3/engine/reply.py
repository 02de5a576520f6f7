"""Replies as text, on top of the token layer: stop rules, thinking, measurements."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..files.dtypes import dtype_name
from ..model.cache import idle_bytes
from ..model.qwen3 import Qwen3
from ..text.chat_template import Tool
from ..text.streaming import ReplyText
from ..text.tokenizer import Tokenizer
from .bound import BoundAnswer
from .grammar import Grammar
from .logprobs import Logprobs
from .memory import Memory
from .prefix import PrefixStore
from .request import Prompt, ReplyOptions, Request, check_loaded, prepare
from .rows import Row, Steering
from .sampling import SamplingParams
from .scheduler import Scheduler
from .specs import Spec
from .speculative import Drafter, make_drafter
from .thinking import ThinkingBudget


@dataclass(frozen=True)
class Chunk:
    """One token. `text` is the part of the answer that it completes and `thinking` that of the thinking, often one
    of them empty; `finish_reason` is set on the last step: "stop" (an end token or stop string) or "length".
    `drafted` and `accepted` count the draft tokens of the reply so far, those checked and those right; `cached` the
    tokens of the prompt that were not computed, since an earlier prompt began with them. `part` is what the token
    belongs to: "thinking", "answer", "" while that is open, or "tag": tags, end tokens and the line breaks after a tag.
    `logprobs` are those of the token, if they were asked for.
    """

    token: int
    text: str = ""
    thinking: str = ""
    finish_reason: str | None = None
    drafted: int = 0
    accepted: int = 0
    cached: int = 0
    part: str = ""
    logprobs: Logprobs | None = None


@dataclass
class Result:
    """A reply with its measurements; times in seconds, rates in tokens per second.

    `tokens` are all that were generated, the end token with them; `accepted_tokens` of them came from
    `drafted_tokens` that were guessed and checked (speculative decoding). `cached_tokens` of the prompt were known from
    earlier prompts; `prefill_tps` counts the others. `peak_memory_gb` is MLX's, in 10^9 bytes. `logprobs` has one
    element for each token, if they were asked for.
    """

    text: str = ""
    thinking: str = ""
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    ttft_s: float = 0.0
    prefill_tps: float = 0.0
    decode_tps: float = 0.0
    peak_memory_gb: float = 0.0
    dtype: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    logprobs: list[Logprobs] = field(default_factory=list)


class Collector:
    """Collects the steps of one reply. The time starts when the Collector is made."""

    def __init__(self, model: Qwen3, request: Request):
        self._result = Result(
            prompt_tokens=len(request.ids),
            dtype=dtype_name(model.norm.weight.dtype),
            sampling={name: value for name, value in asdict(request.sampling).items() if value != ()},
        )
        self._times = [time.perf_counter()]
        self._idle = 0
        mx.reset_peak_memory()

    def add(self, step: Chunk) -> None:
        self._times.append(time.perf_counter())
        if step.finish_reason or len(self._times) % 64 == 2:  # now and then: Ctrl-C may end the reply at any token
            self._idle = idle_bytes()
        self._result.tokens.append(step.token)
        self._result.text += step.text
        self._result.thinking += step.thinking
        self._result.finish_reason = step.finish_reason
        self._result.cached_tokens = step.cached
        self._result.logprobs += [step.logprobs] if step.logprobs else []
        self._result.drafted_tokens, self._result.accepted_tokens = step.drafted, step.accepted

    def interrupt(self) -> None:
        """Note that the user ended the reply."""
        self._result.finish_reason = "interrupted"

    def result(self) -> Result:
        """What was collected so far."""
        start, times = self._times[0], self._times[1:]
        if not times:
            return self._result
        ttft, decoding = times[0] - start, times[-1] - times[0]
        return replace(
            self._result,
            thinking=self._result.thinking.strip("\n"),
            generation_tokens=len(times),
            ttft_s=ttft,
            prefill_tps=(self._result.prompt_tokens - self._result.cached_tokens) / ttft,
            decode_tps=(len(times) - 1) / decoding if len(times) > 1 else 0.0,
            peak_memory_gb=(mx.get_peak_memory() - self._idle) / 1e9,
        )


class Speaker:
    """Turns the tokens of one row into chunks."""

    def __init__(self, tokenizer: Tokenizer, request: Request, drafter: Drafter | None = None):
        steering: list[Steering] = []
        if (budget := request.thinking_budget) is not None:
            steering.append(ThinkingBudget(tokenizer, budget, request.opens_thinking, request.begun))
        if request.grammar:
            steering.append(BoundAnswer(request.grammar, request.may_think, request.opens_thinking))
        self.row = Row(
            request.ids,
            request.sampling,
            request.max_tokens,
            tokenizer.stop_ids,
            request.number,
            steering,
            drafter,
            logprobs=request.logprobs,
            adapter=request.adapter,
        )
        self._text = ReplyText(tokenizer, request.stop, request.opens_thinking, request.begun)
        self._count = 0

    def say(self, token: int) -> Chunk:
        """The chunk of the next token. The row ends if a stop string is complete."""
        self._count += 1
        ended = token in self.row.stop_ids
        last = ended or self._count == self.row.max_tokens
        thinking, answer = self._text.add(token, last)
        reason = "stop" if ended or self._text.stopped else "length" if last else None
        self.row.ended = self.row.ended or reason is not None
        drafter = self.row.drafter
        drafts = (drafter.drafted, drafter.accepted) if drafter else (0, 0)
        scores = self.row.scores[self._count - 1] if self.row.logprobs is not None else None
        return Chunk(token, answer, thinking, reason, *drafts, self.row.cached, self._text.part, scores)


def run(
    model: Qwen3,
    tokenizer: Tokenizer,
    request: Request,
    draft: Qwen3 | None = None,
    lookup: bool | None = None,
    prefixes: PrefixStore | None = None,
    kv_bits: int | None = None,
    memory: Memory | None = None,
) -> Iterator[Chunk]:
    """The reply to a prepared request, step by step.

    `draft` and `lookup` are those of `make_drafter`, `kv_bits` that of `Qwen3.make_cache`. `prefixes` may hold the
    beginning of the prompt, and gets the keys and values of this reply when it ends. `memory` limits the bytes of
    prefixes beside the reply.
    """
    drafter = make_drafter(model, [request.ids], draft, lookup, tokenizer.size)
    speaker = Speaker(tokenizer, request, drafter)
    scheduler = Scheduler(model, tokenizer.size, prefixes=prefixes, kv_bits=kv_bits, memory=memory)
    scheduler.add(speaker.row)
    try:
        for _, event in scheduler.run():
            if isinstance(event, Exception):
                raise event
            yield (chunk := speaker.say(event))
            if chunk.finish_reason:
                return
    finally:
        if prefixes:
            for _ in scheduler.close():
                pass


def stream(
    model: Qwen3,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    sampling: SamplingParams | None = None,
    max_tokens: int | None = None,
    thinking: bool | None = None,
    stop: str | Sequence[str] | None = None,
    tools: Sequence[Tool] | None = None,
    chat_template: str | Path | None = None,
    template_args: Mapping[str, Any] | None = None,
    continue_final_message: bool | str = False,
    literal_content: bool = False,
    thinking_budget: int | None = None,
    logprobs: int | None = None,
    grammar: Grammar | Spec | None = None,
    draft: Qwen3 | None = None,
    lookup: bool | None = None,
    kv_bits: int | None = None,
) -> Iterator[Chunk]:
    """The reply to a prompt, step by step as it is made. The options are those of `generate`."""
    options = ReplyOptions(
        sampling,
        max_tokens,
        thinking,
        stop,
        tools,
        chat_template,
        template_args,
        continue_final_message,
        literal_content,
        thinking_budget,
        logprobs,
        grammar,
    )
    check_loaded(model, tokenizer, draft)
    yield from run(model, tokenizer, prepare(model.config, tokenizer, prompt, options), draft, lookup, kv_bits=kv_bits)


def generate(
    model: Qwen3,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    sampling: SamplingParams | None = None,
    max_tokens: int | None = None,
    thinking: bool | None = None,
    stop: str | Sequence[str] | None = None,
    tools: Sequence[Tool] | None = None,
    chat_template: str | Path | None = None,
    template_args: Mapping[str, Any] | None = None,
    continue_final_message: bool | str = False,
    literal_content: bool = False,
    thinking_budget: int | None = None,
    logprobs: int | None = None,
    grammar: Grammar | Spec | None = None,
    draft: Qwen3 | None = None,
    lookup: bool | None = None,
    kv_bits: int | None = None,
) -> Result:
    """The reply to a prompt, collected.

    prompt: a user's message, a list of messages, or token ids, which skip the chat template: a list, or an array (L,).
    sampling: by default the checkpoint's settings, with a new seed.
    max_tokens: the most tokens to make; by default generation_config's, or what the context has room for.
    thinking: True or False; None leaves it to the chat template.
    stop: one string or several; the reply ends before the first of them.
    tools: JSON schemas, or Python functions with type hints and a docstring.
    chat_template: the name of one of the checkpoint's templates, a file, or the text of a template.
    template_args: further variables of the chat template.
    continue_final_message: the reply continues the last message, its `content` if True, else the field of that name;
    the result holds the continuation alone.
    literal_content: `<|im_end|>` and other control tokens in messages, tools and variables stay text.
    thinking_budget: the most tokens of thinking. Then the block is closed with the sentence that Qwen documents, and
    the answer follows. The tokens of that sentence count as tokens of the reply.
    logprobs: the number of alternatives, 0 to 20: the result has the log-probability of each token and of its
    alternatives. They are the model's own, before penalties, temperature and filters.
    grammar: JsonSchema(schema), JsonObject(), Regex(pattern) or Lark(text) bind the answer, after any thinking.
    draft: a smaller model of the same tokenizer whose guesses are checked.
    lookup: guesses from prompt and reply: while that is faster (None), always (True) or never (False). With a draft
    model there is no lookup. Guesses make a reply faster and change no token.
    kv_bits: stores keys and values in 8 or 4 bits, which saves memory and changes replies a little.
    Raises PromptError for a prompt that this model cannot take, UsageError for an option that it cannot honour.
    """
    options = ReplyOptions(
        sampling,
        max_tokens,
        thinking,
        stop,
        tools,
        chat_template,
        template_args,
        continue_final_message,
        literal_content,
        thinking_budget,
        logprobs,
        grammar,
    )
    check_loaded(model, tokenizer, draft)
    request = prepare(model.config, tokenizer, prompt, options)
    collector = Collector(model, request)
    for step in run(model, tokenizer, request, draft, lookup, kv_bits=kv_bits):
        collector.add(step)
    return collector.result()
