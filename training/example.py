"""One training or evaluation example, the held-out split, and the small surface changes people type."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
Message = dict[str, Any]

# One key in HELD_OUT is never trained on; the evaluation draws only from those.
HELD_OUT = 12


@dataclass(frozen=True)
class Example:
    """What the model is asked, what it should think and answer, and how an answer is judged.

    messages end with a user or tool message. thinking is the text inside <think>, "" if there is
    nothing to work out. key decides the split: two examples with one key are always on the same side.
    """

    messages: list[Message]
    answer: str
    thinking: str = ""
    tools: list[dict[str, Any]] | None = None
    key: str = ""
    check: Callable[[str], bool] = field(default=lambda text: False)


def exact(answer: str) -> Callable[[str], bool]:
    """A check that the whole answer, apart from outer white space, is this text."""
    return lambda text: text.strip() == answer


def ask(text: str, answer: str, thinking: str = "", key: str | None = None) -> Example:
    """A single-turn example; without a key of its own it is split by the question's wording."""
    return Example(
        [{"role": "user", "content": text}],
        answer,
        thinking,
        None,
        wording(text) if key is None else key,
        exact(answer),
    )


def wording(text: str) -> str:
    """The question without case, spaces and outer punctuation, so that no trivial variant crosses the split."""
    return re.sub(r"\s+", " ", text.lower()).strip(" .?!。？！")


def held_out(key: str) -> bool:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % HELD_OUT == 0


PREFIXES = (
    "Please tell me: ",
    "Tell me, ",
    "Can you tell me: ",
    "Hi! ",
    "Hello, ",
    "Question: ",
    "Quick question: ",
    "Hey, ",
    "I want to know: ",
    "Please answer: ",
    "OK, ",
    "Now: ",
)
SUFFIXES = (" Thanks.", " Thank you!", " please", ", please.", " Please answer.")
ZH_PREFIXES = ("请问，", "请告诉我：", "你好，", "问题：", "我想知道，", "请回答：", "那么，")


def vary(rng: random.Random, text: str) -> str:
    """Surface changes that leave the meaning alone: case, punctuation, politeness, stray spaces."""
    if rng.random() < 0.12:
        text = text.lower()
    if rng.random() < 0.2:
        text = text.rstrip(".?!")
    if rng.random() < 0.15:
        text = rng.choice(PREFIXES) + text
    if rng.random() < 0.06:
        text = text + rng.choice(SUFFIXES)
    if rng.random() < 0.05:
        text = rng.choice((" " + text, text + " ", text + "\n", text + "?", text + "!"))
    return text


def vary_zh(rng: random.Random, text: str) -> str:
    if rng.random() < 0.2:
        text = text.rstrip("。？！?")
    if rng.random() < 0.15:
        text = rng.choice(ZH_PREFIXES) + text
    if rng.random() < 0.2:
        text = text.replace("？", "?")
    return text


def pick(rng: random.Random, english: Sequence[T], chinese: Sequence[T], share: float = 0.22) -> tuple[T, bool]:
    """A template and whether it is Chinese."""
    zh = rng.random() < share
    return rng.choice(chinese if zh else english), zh


def say(rng: random.Random, text: str, zh: bool) -> str:
    return vary_zh(rng, text) if zh else vary(rng, text)
