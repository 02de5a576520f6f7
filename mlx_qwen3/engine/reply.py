"""Replies as text, on top of the token layer: templates, stop rules, thinking, measurements."""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import PromptError, UsageError
from ..files.checkpoint import dtype_name
from ..files.config import Qwen3Config
from ..model.qwen3 import Qwen3
from ..text.streaming import MarkerScanner, ThinkingSplitter
from ..text.tokenizer import StreamDecoder, Tokenizer
from .runner import check_limit, check_prompt, decode
from .sampling import SamplingParams
from .speculative import check_vocabulary, make_drafter

Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]  # a user's message | a conversation | token ids


@dataclass(frozen=True)
class Request:
    """A checked prompt with everything that decides the reply."""

    ids: list[int]
    sampling: SamplingParams
    max_tokens: int
    stop: tuple[str, ...]
    opens_thinking: bool


@dataclass(frozen=True)
class Chunk:
    """One token. `text` is the part of the answer that it completes and `thinking` that of the thinking, often one
    of them empty; `finish_reason` is set on the last step: "stop" (an end token or stop string) or "length".
    `drafted` and `accepted` count the draft tokens of the reply so far, those checked and those right.
    """

    token: int
    text: str = ""
    thinking: str = ""
    finish_reason: str | None = None
    drafted: int = 0
    accepted: int = 0


@dataclass
class Result:
    """A reply with its measurements; times in seconds, rates in tokens per second.

    `tokens` are all that were generated, the end token with them; `accepted_tokens` of them came from
    `drafted_tokens` that were guessed and checked (speculative decoding). `peak_memory_gb` is MLX's, in 10^9 bytes.
    """

    text: str = ""
    thinking: str = ""
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_tokens: int = 0
    generation_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    ttft_s: float = 0.0
    prefill_tps: float = 0.0
    decode_tps: float = 0.0
    peak_memory_gb: float = 0.0
    dtype: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)


class Collector:
    """Gathers the steps of one reply, and times them from its own making on."""

    def __init__(self, model: Qwen3, request: Request):
        self._result = Result(
            prompt_tokens=len(request.ids),
            dtype=dtype_name(model.norm.weight.dtype),
            sampling=asdict(request.sampling),
        )
        self._times = [time.perf_counter()]
        mx.reset_peak_memory()

    def add(self, step: Chunk) -> None:
        self._times.append(time.perf_counter())
        self._result.tokens.append(step.token)
        self._result.text += step.text
        self._result.thinking += step.thinking
        self._result.finish_reason = step.finish_reason
        self._result.drafted_tokens, self._result.accepted_tokens = step.drafted, step.accepted

    def interrupt(self) -> None:
        """Note that the user ended the reply."""
        self._result.finish_reason = "interrupted"

    def result(self) -> Result:
        """What was gathered so far."""
        start, times = self._times[0], self._times[1:]
        if not times:
            return self._result
        ttft, decoding = times[0] - start, times[-1] - times[0]
        return replace(
            self._result,
            thinking=self._result.thinking.strip("\n"),
            generation_tokens=len(times),
            ttft_s=ttft,
            prefill_tps=self._result.prompt_tokens / ttft,
            decode_tps=(len(times) - 1) / decoding if len(times) > 1 else 0.0,
            peak_memory_gb=mx.get_peak_memory() / 1e9,
        )


def prepare(
    config: Qwen3Config,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    sampling: SamplingParams | None = None,
    max_tokens: int | None = None,
    thinking: bool | None = None,
    stop: str | Sequence[str] = (),
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> Request:
    """Render, encode and check a prompt; needs no weights, so that a bad one fails before they are read.

    A string is one user message, a list of messages a conversation, a list of ids the prompt as it is. The defaults:
    the checkpoint's sampling, `max_tokens` by generation_config or to the end of the context, thinking as the template
    has it.
    Raises PromptError, or UsageError for a setting that this checkpoint cannot honour.
    """
    if tokenizer.size > config.vocab_size:
        raise PromptError(
            f"the tokenizer has {tokenizer.size} ids, the model {config.vocab_size}; one is of another model"
        )
    stop = check_options(max_tokens, stop)
    ids = _encode(tokenizer, prompt, tools, thinking)
    opens = tokenizer.opens_thinking(ids)
    if thinking is not None and not tokenizer.can_switch_thinking and thinking != opens:
        raise UsageError(f"this checkpoint's chat template cannot switch thinking {'on' if thinking else 'off'}")
    if max_tokens is None:
        max_tokens = _default_limit(tokenizer.generation_config, len(ids), config.context_length)
    check_prompt(ids, max_tokens, config)
    sampling = sampling or default_sampling(tokenizer, thinking)
    return Request(ids, sampling, max_tokens, stop, opens)


def check_options(max_tokens: int | None, stop: str | Sequence[str]) -> tuple[str, ...]:
    """The stop strings as a tuple. Raises UsageError for what no prompt and no model could honour."""
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if "" in stop:
        raise UsageError("a stop string is empty; it would stop every reply before it begins")
    if max_tokens is not None:
        check_limit(max_tokens)
    return stop


def check_draft(folder: Path, config: Qwen3Config, tokenizer: Tokenizer) -> None:
    """Raises UsageError where the model in a folder has another vocabulary; needs no weights."""
    check_vocabulary(config, Qwen3Config.from_folder(folder))
    if not tokenizer.speaks_like(Tokenizer(folder)):
        raise UsageError("the draft model's tokenizer has other tokens; give a smaller model of the same family")


def default_sampling(tokenizer: Tokenizer, thinking: bool | None = None, **changes: Any) -> SamplingParams:
    """The checkpoint's sampling settings with a fresh seed; `changes` replace single ones, None changes nothing."""
    chosen = {"seed": secrets.randbits(32)} | {name: value for name, value in changes.items() if value is not None}
    return replace(SamplingParams.from_generation_config(tokenizer.generation_config, thinking is not False), **chosen)


def run(
    model: Qwen3, tokenizer: Tokenizer, request: Request, draft: Qwen3 | None = None, lookup: bool | None = None
) -> Iterator[Chunk]:
    """The reply to a prepared request, step by step; `draft` and `lookup` are those of `make_drafter`."""
    drafter = make_drafter(model, [request.ids], draft, lookup)
    decoder, stops = StreamDecoder(tokenizer), MarkerScanner(request.stop)
    splitter = ThinkingSplitter(request.opens_thinking)
    steps = decode(
        model,
        [request.ids],
        request.sampling,
        tokenizer.size,
        max_tokens=request.max_tokens,
        stop_ids=tokenizer.stop_ids,
        drafter=drafter,
    )
    for count, [token] in enumerate(steps, 1):
        ended = token in tokenizer.stop_ids
        last = ended or count == request.max_tokens
        piece = ("" if ended else decoder.add(token)) + (decoder.flush() if last else "")
        piece, stopped = stops.feed(piece)
        if last and not stopped:
            piece += stops.held
        thinking, text = splitter.feed(piece)
        drafts = (drafter.drafted, drafter.accepted) if drafter else (0, 0)
        if last or stopped:
            rest = splitter.flush()
            reason = "stop" if ended or stopped else "length"
            yield Chunk(token, text + rest[1], thinking + rest[0], reason, *drafts)
            return
        yield Chunk(token, text, thinking, None, *drafts)


def stream(
    model: Qwen3,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    draft: Qwen3 | None = None,
    lookup: bool | None = None,
    **options: Any,
) -> Iterator[Chunk]:
    """The reply to a prompt, step by step as it is made.

    `draft`, a smaller model of the same vocabulary, and `lookup`, which finds its guesses in prompt and reply, make it
    faster and change no token: `lookup` is on while it pays (None), always (True) or never (False), and gives way to a
    draft model. The other options are those of `prepare`.
    """
    yield from run(model, tokenizer, prepare(model.config, tokenizer, prompt, **options), draft, lookup)


def generate(
    model: Qwen3,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    draft: Qwen3 | None = None,
    lookup: bool | None = None,
    **options: Any,
) -> Result:
    """The reply to a prompt, collected; the options are those of `stream`."""
    request = prepare(model.config, tokenizer, prompt, **options)
    collector = Collector(model, request)
    for step in run(model, tokenizer, request, draft, lookup):
        collector.add(step)
    return collector.result()


def _default_limit(generation_config: Mapping[str, Any], prompt: int, context: int) -> int:
    """New tokens that max_new_tokens, else max_length, of generation_config.json and the context leave room for."""
    limits = [context - prompt]
    if (new := generation_config.get("max_new_tokens")) is not None:
        limits.append(new)
    elif (length := generation_config.get("max_length")) is not None:
        limits.append(length - prompt)
    return max(1, min(limits))


def _encode(
    tokenizer: Tokenizer, prompt: Prompt, tools: Sequence[Mapping[str, Any]] | None, thinking: bool | None
) -> list[int]:
    messages: list[Any] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if all(isinstance(item, int) for item in messages):  # also an empty prompt, which check_prompt refuses
        if tools is not None or thinking is not None:
            raise UsageError("tools and thinking are settings of the chat template, which a raw prompt does not pass")
        return messages
    if not all(isinstance(item, Mapping) and isinstance(item.get("role"), str) for item in messages):
        raise PromptError("a prompt is a string, a list of messages with a role each, or a list of token ids")
    return tokenizer.encode(tokenizer.apply_chat_template(messages, tools=tools, enable_thinking=thinking))
