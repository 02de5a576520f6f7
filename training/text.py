"""The demo's tokenizer (byte-level BPE trained on the corpus) and examples as token ids."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from training.corpus import TASKS, draw, stream
from training.example import Example
from training.words import sentences

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
SHIPPED = Path(__file__).parents[1] / "mlx_qwen3" / "demo" / "tokenizer.json"
# Qwen3's pre-tokenizer: words, single digits, punctuation, white space
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
ADDED = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> "
    "<tool_response> </tool_response> <think> </think>"
).split()
EOS, PAD = "<|im_end|>", "<|endoftext|>"


def sample_texts(seed: int, count: int) -> list[str]:
    """Every text an example shows the model, the tools and plain sentences included; training side only."""
    texts: list[str] = [sentences(random.Random(seed), 3000)]
    for example, _ in islice(stream(seed), count):
        texts += [m["content"] for m in example.messages[-6:]] + [example.thinking, example.answer]
        texts += [repr(tool).replace("'", '"') for tool in example.tools or []]
    # every table entry at least a few times
    rng = random.Random(seed)
    texts += [draw(rng, TASKS[name], False).answer for name in ("capitals", "facts") for _ in range(6000)]
    return texts


def shipped_tokenizer() -> PreTrainedTokenizerFast:
    """The demo's own: another one would change with every word of the corpus, and the weights would not fit it."""
    return wrapped(Tokenizer.from_file(str(SHIPPED)))


def train_tokenizer(seed: int = 0, merged: int = 2500, count: int = 30000) -> PreTrainedTokenizerFast:
    """merged is the vocabulary without the added tokens; those follow it, as in Qwen3."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=merged, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(
        sample_texts(seed, count) + [TEMPLATE.read_text().replace("\\n", "\n"), "\n\n"] * 200, trainer
    )
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    core.add_tokens([AddedToken(t, special=False, normalized=False) for t in ADDED])
    return wrapped(core)


def wrapped(core: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        additional_special_tokens=SPECIAL[1:2] + SPECIAL[3:],
    )
    tokenizer.chat_template = TEMPLATE.read_text()
    return tokenizer


def prompt(tokenizer: Any, example: Example, thinking: bool) -> str:
    return str(
        tokenizer.apply_chat_template(
            example.messages, tools=example.tools, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
    )


def encoded(tokenizer: Any, example: Example, thinking: bool) -> tuple[list[int], int]:
    """Token ids of the whole conversation, and how many of them are prompt: those carry no loss."""
    text = prompt(tokenizer, example, thinking)
    thought = f"<think>\n{example.thinking}\n</think>\n\n" if thinking else ""
    before, after = (
        tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text, f"{thought}{example.answer}{EOS}")
    )
    return before + after, len(before)
