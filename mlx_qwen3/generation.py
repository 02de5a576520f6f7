"""Prefill and decode on token ids; on top of them replies as text: templates, stop rules, thinking.

B batch, L tokens, V vocabulary
"""

import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np

from .cache import KVCache
from .config import Qwen3Config
from .errors import PromptError, UsageError
from .model import Qwen3
from .sampling import SamplingParams, penalize, sample
from .streaming import MarkerScanner, ThinkingSplitter
from .tokenizer import StreamDecoder, Tokenizer

# Tokens of one forward pass, which bound the memory of activations. MLX's CPU also keeps the scores of the pass, as a
# GPU's fused attention does not: at 8,192 tokens passes of 512 take a third of the memory and no more time.
PREFILL_CHUNK = {mx.gpu: 2048, mx.cpu: 512}

Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]  # a user's message | a conversation | token ids


# The token layer


def prefill_chunk() -> int:
    """Tokens of one pass on the default device."""
    return PREFILL_CHUNK[mx.default_device().type]


def prefill(model: Qwen3, ids: mx.array, cache: KVCache, chunk: int | None = None) -> mx.array:
    """Feed token ids (B, L) to the cache, `chunk` at a time; logits (B, V) of the last position only."""
    L, chunk = ids.shape[1], chunk or prefill_chunk()
    for start in range(0, L - chunk, chunk):
        model.hidden(ids[:, start : start + chunk], cache)
        mx.eval(cache.arrays)  # nothing else of this chunk is needed, so its last MLP and norm are never computed
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
    key = mx.random.key(sampling.seed)
    seen = _seen(prompts, vocabulary) if sampling.repetition_penalty != 1 else None
    logits = prefill(model, ids, cache)
    while True:
        key, step = mx.random.split(key)
        logits = logits[:, :vocabulary]
        if seen is not None:
            logits = penalize(logits, seen, sampling.repetition_penalty)
        tokens = sample(logits, sampling, step)
        if seen is not None:
            seen = mx.put_along_axis(seen, tokens[:, None], mx.array(True), axis=-1)
        yield tokens.tolist()  # type: ignore[misc]
        logits = model(tokens[:, None], cache)[:, 0]


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
    check_options(max_tokens, ())
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


# The text layer


@dataclass(frozen=True)
class Request:
    """A checked prompt with everything that decides the reply."""

    ids: list[int]
    sampling: SamplingParams
    max_tokens: int
    stop: tuple[str, ...]
    opens_thinking: bool


@dataclass(frozen=True)
class Step:
    """One token. `text` is the part of the answer that it completes and `thinking` that of the thinking, often one
    of them empty; `finish_reason` is set on the last step: "stop" (an end token or stop string) or "length".
    """

    token: int
    text: str = ""
    thinking: str = ""
    finish_reason: str | None = None


@dataclass
class Result:
    """A reply with its measurements; times in seconds, rates in tokens per second.

    `tokens` are all that were generated, the end token with them. `peak_memory_gb` is MLX's, in 10^9 bytes.
    """

    text: str = ""
    thinking: str = ""
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_tokens: int = 0
    generation_tokens: int = 0
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
            dtype=str(model.norm.weight.dtype).removeprefix("mlx.core."),
            sampling=asdict(request.sampling),
        )
        self._times = [time.perf_counter()]
        mx.reset_peak_memory()

    def add(self, step: Step) -> None:
        self._times.append(time.perf_counter())
        self._result.tokens.append(step.token)
        self._result.text += step.text
        self._result.thinking += step.thinking
        self._result.finish_reason = step.finish_reason

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
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}; expected 1 or more")
    return stop


def default_sampling(tokenizer: Tokenizer, thinking: bool | None = None, **changes: Any) -> SamplingParams:
    """The checkpoint's sampling settings with a fresh seed; `changes` replace single ones, None changes nothing."""
    chosen = {"seed": secrets.randbits(32)} | {name: value for name, value in changes.items() if value is not None}
    return replace(SamplingParams.from_generation_config(tokenizer.generation_config, thinking is not False), **chosen)


def run(model: Qwen3, tokenizer: Tokenizer, request: Request) -> Iterator[Step]:
    """The reply to a prepared request, step by step."""
    decoder, stops = StreamDecoder(tokenizer), MarkerScanner(request.stop)
    splitter = ThinkingSplitter(request.opens_thinking)
    tokens = decode(model, [request.ids], request.sampling, tokenizer.size)
    for count in range(1, request.max_tokens + 1):
        [token] = next(tokens)
        ended = token in tokenizer.stop_ids
        last = ended or count == request.max_tokens
        piece = ("" if ended else decoder.add(token)) + (decoder.flush() if last else "")
        piece, stopped = stops.feed(piece)
        if last and not stopped:
            piece += stops.held
        thinking, text = splitter.feed(piece)
        if last or stopped:
            rest = splitter.flush()
            reason = "stop" if ended or stopped else "length"
            yield Step(token, text + rest[1], thinking + rest[0], reason)
            return
        yield Step(token, text, thinking)


def stream(model: Qwen3, tokenizer: Tokenizer, prompt: Prompt, **options: Any) -> Iterator[Step]:
    """The reply to a prompt, step by step as it is made; the options are those of `prepare`."""
    yield from run(model, tokenizer, prepare(model.config, tokenizer, prompt, **options))


def generate(model: Qwen3, tokenizer: Tokenizer, prompt: Prompt, **options: Any) -> Result:
    """The reply to a prompt, collected; the options are those of `prepare`."""
    request = prepare(model.config, tokenizer, prompt, **options)
    collector = Collector(model, request)
    for step in run(model, tokenizer, request):
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
