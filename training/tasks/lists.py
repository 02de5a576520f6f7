"""Sort, reverse and count lists of numbers, words and letters."""

from __future__ import annotations

import random

from training.example import Example, ask, pick, say
from training.words import ADJECTIVES, COLORS, NOUNS, VERBS, ZH_NOUNS, made_up

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
    "Can you sort {x}?",
    "Sort: {x}",
    "Sort the list {x}.",
    "Put {x} in order.",
)
UP_NUMBERS = (
    "Sort {x} from smallest to largest.",
    "Sort in ascending order: {x}",
    "Sort {x} in ascending order.",
    "Put {x} in increasing order.",
    "Arrange these numbers from low to high: {x}.",
    "Sort from low to high: {x}",
    "Put these numbers in order from smallest to largest: {x}.",
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
    "Sort from high to low: {x}",
    "Put these numbers in order from largest to smallest: {x}.",
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
    "Reverse the list: {x}",
    "Reverse the following list: {x}",
    "Can you reverse {x}?",
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
    "How many {kind} are in the list {x}?",
    "Count the items: {x}",
    "How many {kind} does this list have: {x}?",
)
COUNT_ZH = ("这里有几个词：{x}？", "{x}，一共有几个？", "数一数：{x}", "列表{x}里有几项？")
LETTERS = (
    "How many letters are in the word {w}?",
    "How many letters does {w} have?",
    "Count the letters in {w}.",
    "How many letters are in {w}?",
    "How many letters does the word {w} have?",
    "How many letters in {w}?",
    "How many letters are there in {w}?",
    "Number of letters in {w}?",
    "{w}: how many letters?",
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
    if style < 0.7:
        return ", ".join(items)
    if style < 0.8:
        return " ".join(items)
    if style < 0.87:
        return "[" + ", ".join(items) + "]"
    if style < 0.91:
        return ",".join(items)
    return ", ".join(items[:-1]) + " and " + items[-1]


def numbers(rng: random.Random, low: int, high: int) -> list[int]:
    """Different numbers of one or two digits, in any order."""
    top = rng.choice((9, 20, 99, 99, 99))
    return rng.sample(range(top + 1), rng.randint(low, high))


def plain(items: list[str]) -> str:
    return ", ".join(items)


def aligned(values: list[int]) -> list[str]:
    """All have the same number of digits, so that two are compared digit by digit."""
    width = len(str(max(values)))
    return [f"{v:0{width}}" for v in values]


def picks(left: list[str], down: bool = False, most: int = 9) -> str:
    """The working of a sort: one line for each choice, with what is left to choose from, and the choice."""
    left, lines = list(left), list[str]()
    while left and len(lines) < most:
        pick = max(left) if down else min(left)
        lines.append(f"- {' '.join(left)}: {pick}")
        left.remove(pick)
    return "\n".join(lines)


def extreme(rng: random.Random) -> Example:
    values, word = numbers(rng, 3, 5), rng.choice(list(EXTREME))
    text = rng.choice(EXTREMES).format(e=word, x=joined(rng, [str(v) for v in values]))
    choose = EXTREME[word]
    return ask(
        say(rng, text, False), f"The {word} number is {choose(values)}.", picks(aligned(values), choose is max, 1)
    )


def sort(rng: random.Random) -> Example:
    draw = rng.random()
    if draw < 0.12:
        return extreme(rng)
    if draw < 0.4:
        words = rng.sample(NOUNS, rng.randint(3, 4))
        text = rng.choice(UP + UP_WORDS).format(x=joined(rng, words), kind="words")
        return ask(say(rng, text, False), f"Sorted: {plain(sorted(words))}.", picks(words))
    values = numbers(rng, 3, 5)
    down = rng.random() < 0.35
    template, zh = pick(rng, DOWN_NUMBERS if down else UP + UP_NUMBERS, DOWN_ZH if down else UP_ZH)
    text = template.format(x=joined(rng, [str(v) for v in values], zh), kind="numbers")
    result = plain([str(v) for v in sorted(values, reverse=down)])
    answer = f"排序结果：{result}。" if zh else f"Sorted: {result}."
    return ask(say(rng, text, zh), answer, picks(aligned(values), down))


def items(rng: random.Random, low: int, high: int) -> tuple[list[str], str]:
    """A random list of different items and what they are called."""
    count, draw = rng.randint(low, high), rng.random()
    if draw < 0.35:
        return [str(v) for v in rng.sample(range(100), count)], "numbers"
    if draw < 0.47:
        return rng.sample("abcdefghijklmnopqrstuvwxyz", count), "letters"
    if draw < 0.53:
        return [made_up(rng).lower() for _ in range(min(count, 5))], "words"
    if draw < 0.6:
        return rng.sample(ADJECTIVES + COLORS[3:] + VERBS, count), "words"
    return rng.sample(NOUNS, count), "words"


def reverse(rng: random.Random) -> Example:
    template, zh = pick(rng, REVERSE, REVERSE_ZH)
    values, kind = (rng.sample(ZH_NOUNS, rng.randint(3, 6)), "") if zh and rng.random() < 0.5 else items(rng, 3, 6)
    # the answer repeats made-up names, so the case of the question stays as it is
    text = template.format(x=joined(rng, values, zh), kind=kind)
    result = plain(values[::-1])
    return ask(text, f"倒过来是：{result}。" if zh else f"Reversed: {result}.")


def numbered(values: list[str]) -> str:
    return ", ".join(f"{i} {v}" for i, v in enumerate(values, 1))


def letters(rng: random.Random) -> Example:
    word = rng.choice(NOUNS if rng.random() < 0.8 else ADJECTIVES + COLORS + VERBS)
    text = rng.choice(LETTERS).format(w=rng.choice(("{}", "{}", "{}", '"{}"', "'{}'")).format(word))
    return ask(say(rng, text, False), f"The word {word} has {len(word)} letters.", numbered(list(word)))


def count(rng: random.Random) -> Example:
    if rng.random() < 0.25:
        return letters(rng)
    template, zh = pick(rng, COUNT, COUNT_ZH)
    values, kind = (rng.sample(ZH_NOUNS, rng.randint(2, 8)), "") if zh and rng.random() < 0.5 else items(rng, 2, 8)
    if "{kind}" not in template:
        kind = "items"
    text = say(rng, template.format(x=joined(rng, values, zh), kind=kind), zh)
    return ask(text, f"一共有{len(values)}个。" if zh else f"There are {len(values)} {kind}.", numbered(values))
