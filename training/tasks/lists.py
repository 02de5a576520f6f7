"""Sort, reverse and count lists of numbers, words and letters."""

from __future__ import annotations

import random

from training.example import Example, ask, pick, say
from training.words import NOUNS, ZH_NOUNS, made_up

UP = (
    "Sort {x}.",
    "Sort these {kind}: {x}",
    "Put these {kind} in order: {x}",
    "Sort the {kind} {x}.",
    "Order these {kind}: {x}.",
    "Please sort: {x}",
    "sort {x}",
    "Sort this list: {x}",
    "Arrange in order: {x}.",
)
UP_NUMBERS = (
    "Sort {x} from smallest to largest.",
    "Sort in ascending order: {x}",
    "Sort {x} in ascending order.",
    "Put {x} in increasing order.",
    "Arrange these numbers from low to high: {x}.",
)
UP_WORDS = (
    "Sort {x} alphabetically.",
    "Put these words in alphabetical order: {x}",
    "Sort from A to Z: {x}",
    "Sort these words alphabetically: {x}.",
    "Alphabetical order: {x}",
)
DOWN_NUMBERS = (
    "Sort {x} from largest to smallest.",
    "Sort in descending order: {x}",
    "Sort {x} in descending order.",
    "Put {x} in decreasing order.",
    "Arrange these numbers from high to low: {x}.",
)
UP_ZH = ("请排序：{x}", "把{x}从小到大排序。", "从小到大排列：{x}", "将这些数字按升序排列：{x}", "排序：{x}")
DOWN_ZH = ("把{x}从大到小排序。", "从大到小排列：{x}", "将这些数字按降序排列：{x}")
REVERSE = (
    "Reverse {x}.",
    "Reverse this list: {x}",
    "Reverse the list {x}.",
    "Say these backwards: {x}",
    "Write {x} in reverse order.",
    "Put {x} in reverse order.",
    "Reverse the order of {x}.",
    "reverse: {x}",
    "Reverse these {kind}: {x}.",
    "Turn this list around: {x}",
    "List {x} backwards.",
)
REVERSE_ZH = ("把{x}倒过来。", "反转：{x}", "请把列表{x}反过来。", "倒序写出：{x}", "将{x}倒序排列。")
COUNT = (
    "How many {kind} are in this list: {x}?",
    "How many {kind} are there: {x}?",
    "Count the {kind}: {x}",
    "Count these {kind}: {x}.",
    "How many {kind} do you see? {x}",
    "How many {kind} are in {x}?",
    "Count: {x}",
    "Count the {kind} in the list {x}.",
    "How many items are in {x}?",
)
COUNT_ZH = ("这里有几个词：{x}？", "{x}，一共有几个？", "数一数：{x}", "列表{x}里有几项？")
TIMES = (
    "How many times does {w} appear in: {x}?",
    "How often does {w} appear in {x}?",
    "Count {w} in: {x}",
    "How many times is {w} in this list: {x}?",
)
LETTERS = (
    "How many letters are in the word {w}?",
    "How many letters does {w} have?",
    "Count the letters in {w}.",
    "How many letters are in {w}?",
    "How many letters does the word {w} have?",
)
EXTREME = {"largest": max, "biggest": max, "smallest": min, "highest": max, "lowest": min, "greatest": max}
EXTREMES = (
    "What is the {e} of {x}?",
    "Which number is the {e}: {x}?",
    "Find the {e} number: {x}",
    "What is the {e} number in {x}?",
    "{e} of {x}?",
)


def joined(rng: random.Random, items: list[str], zh: bool = False) -> str:
    """The list as people write it: commas mostly, sometimes spaces, brackets or a final `and`."""
    style = rng.random()
    if zh:
        return ("、" if style < 0.5 else ", " if style < 0.8 else "，").join(items)
    if style < 0.65:
        return ", ".join(items)
    if style < 0.78:
        return " ".join(items)
    if style < 0.88:
        return "[" + ", ".join(items) + "]"
    if style < 0.94:
        return ",".join(items)
    return ", ".join(items[:-1]) + " and " + items[-1]


def numbers(rng: random.Random, low: int, high: int) -> list[int]:
    top = rng.choice((9, 20, 99, 99, 99))
    return [rng.randint(0, top) for _ in range(rng.randint(low, high))]


def plain(items: list[str]) -> str:
    return ", ".join(items)


def extreme(rng: random.Random) -> Example:
    values, word = sorted(set(numbers(rng, 3, 6))), rng.choice(list(EXTREME))
    rng.shuffle(values)
    text = rng.choice(EXTREMES).format(e=word, x=joined(rng, [str(v) for v in values]))
    return ask(say(rng, text, False), f"The {word} number is {EXTREME[word](values)}.")


def sort(rng: random.Random) -> Example:
    draw = rng.random()
    if draw < 0.15:
        return extreme(rng)
    if draw < 0.45:
        words = rng.sample(NOUNS, rng.randint(3, 5))
        text = rng.choice(UP + UP_WORDS).format(x=joined(rng, words), kind="words")
        return ask(say(rng, text, False), f"Sorted: {plain(sorted(words))}.")
    values = numbers(rng, 3, 6)
    down = rng.random() < 0.35
    template, zh = pick(rng, DOWN_NUMBERS if down else UP + UP_NUMBERS, DOWN_ZH if down else UP_ZH)
    text = template.format(x=joined(rng, [str(v) for v in values], zh), kind="numbers")
    result = plain([str(v) for v in sorted(values, reverse=down)])
    return ask(say(rng, text, zh), f"排序结果：{result}。" if zh else f"Sorted: {result}.")


def items(rng: random.Random, low: int, high: int) -> tuple[list[str], str]:
    """A random list and what its items are called."""
    count, draw = rng.randint(low, high), rng.random()
    if draw < 0.35:
        return [str(rng.randint(0, 99)) for _ in range(count)], "numbers"
    if draw < 0.5:
        return [rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(count)], "letters"
    if draw < 0.6:
        return [made_up(rng).lower() for _ in range(count)], "words"
    return rng.sample(NOUNS, count), "words"


def reverse(rng: random.Random) -> Example:
    template, zh = pick(rng, REVERSE, REVERSE_ZH)
    values, kind = (rng.sample(ZH_NOUNS, rng.randint(3, 6)), "") if zh and rng.random() < 0.5 else items(rng, 3, 7)
    # the answer repeats made-up names, so the case of the question stays as it is
    text = template.format(x=joined(rng, values, zh), kind=kind)
    result = plain(values[::-1])
    return ask(text, f"倒过来是：{result}。" if zh else f"Reversed: {result}.")


def numbered(values: list[str]) -> str:
    return ", ".join(f"{i} {v}" for i, v in enumerate(values, 1))


def times(rng: random.Random) -> Example:
    words = rng.sample(NOUNS, 3)
    values = [rng.choice(words) for _ in range(rng.randint(3, 8))]
    word = rng.choice(values)
    count = values.count(word)
    text = rng.choice(TIMES).format(w=rng.choice(("{}", '"{}"', "'{}'")).format(word), x=joined(rng, values))
    return ask(
        say(rng, text, False), f"The word {word} appears {count} time{'s' * (count > 1)}.", numbered([word] * count)
    )


def letters(rng: random.Random) -> Example:
    word = rng.choice(NOUNS)
    text = rng.choice(LETTERS).format(w=rng.choice(("{}", '"{}"', "'{}'")).format(word))
    return ask(say(rng, text, False), f"The word {word} has {len(word)} letters.", numbered(list(word)))


def count(rng: random.Random) -> Example:
    draw = rng.random()
    if draw < 0.15:
        return times(rng)
    if draw < 0.3:
        return letters(rng)
    template, zh = pick(rng, COUNT, COUNT_ZH)
    values, kind = (rng.sample(ZH_NOUNS, rng.randint(2, 9)), "") if zh and rng.random() < 0.5 else items(rng, 2, 10)
    if "{kind}" not in template:
        kind = "items"
    text = say(rng, template.format(x=joined(rng, values, zh), kind=kind), zh)
    return ask(text, f"一共有{len(values)}个。" if zh else f"There are {len(values)} {kind}.", numbered(values))
