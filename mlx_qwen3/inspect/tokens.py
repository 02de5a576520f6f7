"""The tokens that go through the model: a prompt or random ones, and the reply before a decode step.

B batch, L tokens of a prompt, N tokens of a reply
"""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..engine.decode import check_prompt, decode, generate_batch
from ..engine.request import default_sampling
from ..errors import UsageError
from ..files.checkpoint import Checkpoint
from ..files.values import to_mlx
from ..model.qwen3 import Qwen3
from ..text.tokenizer import Tokenizer
from .options import Options

SEED = 0  # of the random tokens, and of a reply's sampling unless another is given
LENGTH = 16  # random tokens by default; a few tokens already give stable numbers, and a CPU needs only seconds


@dataclass(frozen=True)
class Prompts:
    ids: mx.array  # (B, L)
    words: str  # where they come from
    tokenizer: Tokenizer | None  # random tokens need none


@dataclass(frozen=True)
class Reply:
    """The beginnings of the replies to B prompts, and the token that comes after each."""

    tokens: list[list[int]]  # (B, N)
    following: list[int]  # (B,)


def prompts_for(checkpoint: Checkpoint, options: Options) -> Prompts:
    """Raises CheckpointError if a prompt has no tokenizer, and PromptError or UsageError if options do not fit it."""
    prompts = _prompts(checkpoint, options)
    length, context = prompts.ids.shape[1], checkpoint.config.context_length
    if options.decode is not None and (steps := context - length - 1) < options.decode:
        raise UsageError(
            f"--decode is {options.decode}, but after {length} prompt tokens the context of {context} has room for "
            f"{max(0, steps)} steps; give a smaller number or a shorter prompt"
        )
    return prompts


def _prompts(checkpoint: Checkpoint, options: Options) -> Prompts:
    config = checkpoint.config
    if options.prompt is None:
        has_tokenizer = any(name in checkpoint for name in ("tokenizer.json", "vocab.json"))
        tokenizer = Tokenizer(checkpoint) if has_tokenizer else None
        shape = (options.batch or 1, options.length or LENGTH)
        ids = np.random.default_rng(SEED).integers(0, _known(tokenizer, config.vocab_size), shape)
        return Prompts(to_mlx(ids), f"random tokens [{shape[0]}, {shape[1]}], seed {SEED}", tokenizer)
    tokenizer = Tokenizer(checkpoint)
    text, way = options.prompt, "as it is: this checkpoint has no default chat template"
    if tokenizer.has_chat_template or options.chat_template is not None:
        messages, way = [{"role": "user", "content": text}], "in the chat template"
        text = tokenizer.apply_chat_template(messages, chat_template=options.chat_template)
    prompt = tokenizer.encode(text)
    check_prompt(prompt, 1, config)
    return Prompts(mx.array([prompt]), f"the prompt {way}, [1, {len(prompt)}] tokens", tokenizer)


def reply_to(model: Qwen3, prompts: Prompts, options: Options) -> Reply:
    """The first `options.decode` tokens of the replies: those of `generate` to a prompt, greedy ones to random tokens.

    Raises UsageError if no decode step comes after them.
    """
    assert options.decode is not None
    count = options.decode
    ids: list[list[int]] = prompts.ids.tolist()  # type: ignore[assignment]
    if options.prompt is None or prompts.tokenizer is None:
        vocabulary = _known(prompts.tokenizer, model.config.vocab_size)
        rows = generate_batch(model, ids, max_tokens=count + 1, vocabulary=vocabulary)
    else:
        rows = [_generated(model, ids[0], prompts.tokenizer, options, count + 1)]
    return Reply([row[:count] for row in rows], [row[count] for row in rows])


def token_texts(prompts: Prompts, reply: Reply | None) -> tuple[str, ...]:
    """The text of each token of the first row, or the bytes of a part of a character. Empty without a tokenizer."""
    if prompts.tokenizer is None:
        return ()
    ids: list[list[int]] = prompts.ids.tolist()  # type: ignore[assignment]
    tokens = ids[0] + (reply.tokens[0] if reply else [])
    return tuple(_readable(prompts.tokenizer.token_bytes(token)) for token in tokens)


def _readable(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in data)


def _generated(model: Qwen3, prompt: list[int], tokenizer: Tokenizer, options: Options, count: int) -> list[int]:
    seed = SEED if options.seed is None else options.seed
    sampling = default_sampling(tokenizer, temperature=options.temperature, seed=seed)
    tokens = list(decode(model, prompt, sampling, tokenizer.size, max_tokens=count, stop_ids=tokenizer.stop_ids))
    if (made := len(tokens)) < count:
        remedy = f"give at most {made - 1}" if made > 1 else "leave it out"
        raise UsageError(f"--decode is {options.decode}, but the reply ends with its token {made}; {remedy}")
    return tokens


def _known(tokenizer: Tokenizer | None, vocabulary: int) -> int:
    """The ids that stand for text."""
    return min(tokenizer.size, vocabulary) if tokenizer else vocabulary
