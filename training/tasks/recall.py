"""Something told earlier in the conversation, with other turns or long notes between, asked for at the end."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from training.example import Example, Message, ask, exact, say
from training.words import COLORS, NAMES, NOUNS, ZH_NAMES, made_up, name, number, sentences

# Lengths of the text between telling and asking, in characters (about 4 to a token), and their shares.
GAPS = ((0, 200, 0.55), (200, 900, 0.28), (900, 2600, 0.11), (2600, 6000, 0.06))
OKAY, READ = "Thank you, I will remember that.", "Thank you, I have read it."
ZH_OKAY = "好的，我记住了。"


@dataclass(frozen=True)
class Fact:
    told: tuple[str, ...]
    asked: tuple[str, ...]
    answer: str
    value: Callable[[random.Random], str]
    reply: str = OKAY
    zh: bool = False


def code(rng: random.Random) -> str:
    return number(rng, 6)


FACTS = (
    Fact(
        (
            "My name is {v}.",
            "I am {v}.",
            "Hello, my name is {v}.",
            "Hi, I'm {v}.",
            "Call me {v}.",
            "My name's {v}",
            "I am called {v}.",
        ),
        (
            "What is my name?",
            "What's my name?",
            "Do you remember my name?",
            "Who am I?",
            "Tell me my name.",
            "What am I called?",
            "my name?",
        ),
        "Your name is {v}.",
        name,
        "Nice to meet you, {v}.",
    ),
    Fact(
        (
            "My number is {v}.",
            "The number is {v}.",
            "Remember the number {v}.",
            "Please remember this number: {v}.",
            "My favorite number is {v}.",
            "The number to remember is {v}",
        ),
        (
            "What is the number?",
            "What was the number?",
            "Which number did I tell you?",
            "What number did I give you?",
            "Tell me the number.",
            "Do you remember the number?",
            "What is my number?",
        ),
        "The number is {v}.",
        code,
    ),
    Fact(
        (
            "The code is {v}.",
            "My code is {v}.",
            "The secret code is {v}.",
            "The door code is {v}.",
            "Remember the code {v}.",
            "My PIN is {v}.",
        ),
        (
            "What is the code?",
            "What was the code?",
            "What is my code?",
            "Tell me the code.",
            "Do you remember the code?",
            "Which code did I tell you?",
        ),
        "The code is {v}.",
        code,
    ),
    Fact(
        ("My room number is {v}.", "I am in room {v}.", "My room is {v}.", "I stay in room {v}."),
        ("What is my room number?", "Which room am I in?", "What room am I in?", "Do you remember my room number?"),
        "Your room number is {v}.",
        lambda r: number(r, 4),
    ),
    Fact(
        ("I am {v} years old.", "My age is {v}.", "I'm {v}.", "I turned {v} today."),
        ("How old am I?", "What is my age?", "Do you remember my age?"),
        "You are {v} years old.",
        lambda r: str(r.randint(5, 99)),
    ),
    Fact(
        ("I live in {v}.", "My city is {v}.", "My home is in {v}.", "I come from {v}."),
        (
            "Where do I live?",
            "What is my city?",
            "Which city do I live in?",
            "Where do I come from?",
            "Where is my home?",
        ),
        "You live in {v}.",
        lambda r: made_up(r),
    ),
    Fact(
        ("My favorite color is {v}.", "I like the color {v}.", "I love {v}.", "The color I like best is {v}."),
        (
            "What is my favorite color?",
            "Which color do I like?",
            "What color do I like?",
            "Do you remember my favorite color?",
        ),
        "Your favorite color is {v}.",
        lambda r: r.choice(COLORS),
    ),
    Fact(
        ("My dog is called {v}.", "I have a dog named {v}.", "My dog's name is {v}.", "The name of my dog is {v}."),
        (
            "What is my dog called?",
            "What is the name of my dog?",
            "What's my dog's name?",
            "Do you remember my dog's name?",
        ),
        "Your dog is called {v}.",
        name,
    ),
    Fact(
        (
            "The password is {v}.",
            "My password is {v}.",
            "Remember the password {v}.",
            "The secret word is {v}.",
            "Remember the word {v}.",
        ),
        (
            "What is the password?",
            "What is my password?",
            "What was the secret word?",
            "Tell me the password.",
            "Which word did I tell you?",
        ),
        "The password is {v}.",
        lambda r: r.choice(NOUNS) if r.random() < 0.5 else made_up(r).lower(),
    ),
    Fact(
        ("我叫{v}。", "我的名字是{v}。", "你好，我叫{v}。", "我是{v}。"),
        ("我叫什么名字？", "我的名字是什么？", "你记得我的名字吗？", "我是谁？"),
        "你叫{v}。",
        lambda r: r.choice(ZH_NAMES) if r.random() < 0.7 else r.choice(NAMES),
        "很高兴认识你，{v}。",
        True,
    ),
    Fact(
        ("密码是{v}。", "我的密码是{v}。", "请记住密码{v}。"),
        ("密码是什么？", "我的密码是多少？", "你记得密码吗？"),
        "密码是{v}。",
        code,
        ZH_OKAY,
        True,
    ),
    Fact(
        ("数字是{v}。", "请记住数字{v}。", "我的号码是{v}。"),
        ("数字是多少？", "我的号码是多少？", "我告诉你的数字是什么？"),
        "数字是{v}。",
        code,
        ZH_OKAY,
        True,
    ),
)
NOTES = (
    "Here is a note: {}",
    "Read this: {}",
    "Please read this text: {}",
    "A story: {}",
    "Note: {}",
    "Here is some text. {}",
)


def told(rng: random.Random, fact: Fact, value: str) -> list[Message]:
    text = rng.choice(fact.told).format(v=value)
    return [{"role": "user", "content": text}, {"role": "assistant", "content": fact.reply.format(v=value)}]


def note(rng: random.Random, count: int | None = None) -> Example:
    """Text to be read only: the long turns between telling and asking."""
    return ask(rng.choice(NOTES).format(sentences(rng, count or rng.randint(1, 12))), READ)


def acknowledge(rng: random.Random) -> Example:
    """The reply when something is told."""
    if rng.random() < 0.12:
        return note(rng)
    fact = rng.choice(FACTS)
    value = fact.value(rng)
    return ask(rng.choice(fact.told).format(v=value), fact.reply.format(v=value), key=f"told {value}")


def filler(rng: random.Random, length: int, quick: Callable[[random.Random], Example]) -> list[Message]:
    """Turns of about `length` characters in all: short questions, or long notes when much has to be filled."""
    turns: list[Message] = []
    size = 0
    while size < length:
        example = (
            note(rng, min(24, max(1, (length - size) // 60))) if rng.random() < min(0.9, length / 3000) else quick(rng)
        )
        new: list[Message] = [*example.messages, {"role": "assistant", "content": example.answer}]
        size += sum(len(m["content"]) + 20 for m in new)
        turns += new
    return turns


def gap(rng: random.Random) -> int:
    low, high, _ = rng.choices(GAPS, [share for *_, share in GAPS])[0]
    return rng.randint(low, high)


def not_told(rng: random.Random, messages: list[Message], facts: list[Fact]) -> Example:
    """A question about something that was not told."""
    fact = rng.choice([f for f in FACTS if f.answer[:8] not in {g.answer[:8] for g in facts}])
    text = say(rng, rng.choice(fact.asked), fact.zh)
    answer = "你还没有告诉我。" if fact.zh else "You have not told me that."
    history = [] if rng.random() < 0.5 else messages
    return Example(
        [*history, {"role": "user", "content": text}],
        answer,
        "",
        None,
        f"not told {text} {len(history)}",
        exact(answer),
    )


def recall(rng: random.Random, quick: Callable[[random.Random], Example]) -> Example:
    """One to three facts told; one asked for after the gap. `quick` makes the short turns between."""
    facts = rng.sample(FACTS, rng.choice((1, 1, 2, 3)))
    values = [f.value(rng) for f in facts]
    length = gap(rng)
    messages = filler(rng, rng.randint(0, 200), quick) if rng.random() < 0.3 else []
    for fact, value in zip(facts, values, strict=True):
        messages += told(rng, fact, value)
        if rng.random() < 0.3:
            messages += filler(rng, min(length, 150), quick)
    messages += filler(rng, length, quick)
    if rng.random() < 0.1:
        return not_told(rng, messages, facts)
    i = rng.randrange(len(facts))
    messages.append({"role": "user", "content": say(rng, rng.choice(facts[i].asked), facts[i].zh)})
    answer = facts[i].answer.format(v=values[i])
    return Example(messages, answer, "", None, "recall " + " ".join(values), exact(answer))
