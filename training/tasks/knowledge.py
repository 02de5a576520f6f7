"""Capitals, a small table of facts and unit conversion."""

from __future__ import annotations

import random

from training import tables as t
from training.example import Example, ask, pick, say

CAPITAL = (
    "What is the capital of {c}?",
    "What's the capital of {c}?",
    "Capital of {c}?",
    "{c}'s capital?",
    "Which city is the capital of {c}?",
    "Name the capital of {c}.",
    "Tell me the capital of {c}.",
    "capital of {c}",
    "What is {c}'s capital?",
    "What city is the capital of {c}?",
    "What is the capital city of {c}?",
    "whats the capital of {c}",
    "Do you know the capital of {c}?",
    "{c}: capital?",
    "Give me the capital of {c}.",
    "I need the capital of {c}.",
    "Could you tell me the capital of {c}?",
)
CAPITAL_ZH = (
    "{c}的首都是哪里？",
    "{c}的首都是什么？",
    "{c}首都是哪里？",
    "{c}的首都在哪里？",
    "{c}的首都是哪个城市？",
    "哪个城市是{c}的首都？",
    "{c}的首都？",
    "告诉我{c}的首都。",
    "你知道{c}的首都吗？",
)
COUNTRY = (
    "Which country has the capital {k}?",
    "{k} is the capital of which country?",
    "What country is {k} the capital of?",
    "Which country is {k} the capital of?",
)
COUNTRY_ZH = ("{k}是哪个国家的首都？", "哪个国家的首都是{k}？")


def capital(rng: random.Random) -> Example:
    country, city, zh_country, zh_city = rng.choice(t.CAPITALS)
    if rng.random() < 0.22:
        template, zh = pick(rng, COUNTRY, COUNTRY_ZH, 0.35)
        text = template.format(k=zh_city if zh else city)
    else:
        template, zh = pick(rng, CAPITAL, CAPITAL_ZH, 0.35)
        text = template.format(c=zh_country if zh else country)
        text = text.removeprefix("the ") if rng.random() < 0.5 else text
    answer = f"{zh_country}的首都是{zh_city}。" if zh else f"The capital of {country} is {city}."
    return ask(say(rng, text, zh), answer)


def element(rng: random.Random) -> tuple[str, str, bool]:
    english, symbol, chinese = rng.choice(t.ELEMENTS)
    q, zh = pick(
        rng,
        (
            "What is the chemical symbol for {}?",
            "What is the symbol of {}?",
            "Chemical symbol of {}?",
            "What's the chemical symbol of {}?",
            "Which symbol does {} have?",
            "symbol for {}",
        ),
        ("{}的化学符号是什么？", "{}的元素符号是什么？", "{}的符号是什么？"),
    )
    return (
        (q.format(chinese), f"{chinese}的化学符号是{symbol}。", zh)
        if zh
        else (q.format(english), f"The chemical symbol for {english} is {symbol}.", zh)
    )


def opposite(rng: random.Random) -> tuple[str, str, bool]:
    q, zh = pick(
        rng,
        (
            "What is the opposite of {}?",
            "Opposite of {}?",
            "What's the opposite of {}?",
            "Give me the opposite of {}.",
            "Name the opposite of {}.",
            "Which word is the opposite of {}?",
            'What is the opposite of "{}"?',
        ),
        ("{}的反义词是什么？", "“{}”的反义词是什么？", "{}的反义词？"),
    )
    pair = list(rng.choice(t.ZH_OPPOSITES if zh else t.OPPOSITES))
    rng.shuffle(pair)
    return (
        q.format(pair[0]),
        (f"{pair[0]}的反义词是{pair[1]}。" if zh else f"The opposite of {pair[0]} is {pair[1]}."),
        zh,
    )


def legs(rng: random.Random) -> tuple[str, str, bool]:
    english, count, chinese = rng.choice(t.LEGS)
    q, zh = pick(
        rng,
        ("How many legs does {} have?", "How many legs has {}?", "Number of legs of {}?", "How many legs are on {}?"),
        ("{}有几条腿？", "{}有多少条腿？"),
    )
    the = ("an " if english[0] in "aeio" else "a ") + english
    return (
        (q.format(chinese), f"{chinese}有{count}条腿。", zh)
        if zh
        else (q.format(the), f"{the.capitalize()} has {count} legs.", zh)
    )


def after(rng: random.Random) -> tuple[str, str, bool]:
    kind, table = rng.choice((("day", t.DAYS), ("month", t.MONTHS)))
    i, word = rng.randrange(len(table)), rng.choice(("after", "before"))
    step = 1 if word == "after" else -1
    here, there = table[i], table[(i + step) % len(table)]
    q, zh = pick(
        rng,
        (
            f"What {kind} comes {word} {{}}?",
            f"Which {kind} is {word} {{}}?",
            f"What {kind} is {word} {{}}?",
            f"{kind} {word} {{}}?",
        ),
        (
            ("{}的后一" + ("天" if kind == "day" else "个月") + "是什么？", "{}之后是什么？")
            if step > 0
            else ("{}的前一" + ("天" if kind == "day" else "个月") + "是什么？", "{}之前是什么？")
        ),
    )
    if zh:
        return q.format(here[1]), f"{here[1]}之{'后' if step > 0 else '前'}是{there[1]}。", zh
    return q.format(here[0]), f"The {kind} {word} {here[0]} is {there[0]}.", zh


def month_days(rng: random.Random) -> tuple[str, str, bool]:
    english, chinese, days = rng.choice(t.MONTHS)
    q, zh = pick(
        rng,
        ("How many days does {} have?", "How many days are in {}?", "Number of days in {}?"),
        ("{}有几天？", "{}有多少天？"),
    )
    return (
        (q.format(chinese), f"{chinese}有{days}天。", zh)
        if zh
        else (q.format(english), f"{english} has {days} days.", zh)
    )


def planet(rng: random.Random) -> tuple[str, str, bool]:
    i = rng.randrange(8)
    q, zh = pick(
        rng,
        (
            "What is the {} planet from the Sun?",
            "Which planet is {} from the Sun?",
            "What is the {} planet?",
            "Name the {} planet from the Sun.",
        ),
        ("离太阳第{}近的行星是什么？", "太阳系第{}颗行星是什么？"),
    )
    if zh:
        return q.format(t.ZH_ORDINALS[i]), f"太阳系第{t.ZH_ORDINALS[i]}颗行星是{t.PLANETS[i][1]}。", zh
    return q.format(t.ORDINALS[i]), f"The {t.ORDINALS[i]} planet from the Sun is {t.PLANETS[i][0]}.", zh


def single(rng: random.Random) -> tuple[str, str, bool]:
    (questions, answer), zh = pick(rng, t.FACTS, t.ZH_FACTS)
    return rng.choice(questions), answer, zh


FACT_KINDS = (single, single, element, opposite, legs, after, month_days, planet)


def fact(rng: random.Random) -> Example:
    text, answer, zh = rng.choice(FACT_KINDS)(rng)
    return ask(say(rng, text, zh), answer)


DOWN = (
    "How many {b} are {n} {a}?",
    "How many {b} are in {n} {a}?",
    "Convert {n} {a} to {b}.",
    "{n} {a} in {b}",
    "What is {n} {a} in {b}?",
    "How many {b} is {n} {a}?",
    "Change {n} {a} into {b}.",
    "{n} {a} to {b}?",
    "Express {n} {a} in {b}.",
    "How many {b} do {n} {a} make?",
    "convert {n} {a} into {b}",
    "How many {b} in {n} {a}?",
    "What's {n} {a} in {b}?",
    "How much is {n} {a} in {b}?",
    "{n} {a} = ? {b}",
)
DOWN_ZH = (
    "{n}{a}等于多少{b}？",
    "{n}{a}是多少{b}？",
    "把{n}{a}换算成{b}。",
    "{n} {a}等于几{b}？",
    "请把{n}{a}换成{b}。",
)


def unit(rng: random.Random) -> Example:
    """Both directions, always exact: 7 kilometers -> 7000 meters and 7000 meters -> 7 kilometers."""
    one, many, short, factor, _, smalls, small_short, zh_a, zh_b, top = rng.choice(t.UNITS)
    n = rng.randint(1, top)
    template, zh = pick(rng, DOWN, DOWN_ZH)
    big, little = (one if n == 1 else many), smalls
    rule = f"1{zh_a} = {factor}{zh_b}" if zh else f"1 {one} = {factor} {smalls}"
    if rng.random() < 0.6:
        left, right, result = (n, big, zh_a, short), (smalls, zh_b, small_short), (n * factor, little, zh_b)
    else:
        left, right, result = (n * factor, smalls, zh_b, small_short), (many, zh_a, short), (n, big, zh_a)
    if zh:
        return ask(
            say(rng, template.format(n=left[0], a=left[2], b=right[1]), True),
            f"{left[0]}{left[2]}等于{result[0]}{result[2]}。",
            rule,
        )
    brief = rng.random() < 0.25
    a, b = (left[3], right[2]) if brief else (left[1], right[0])
    if rng.random() < 0.1:
        a, b = (w.replace("meter", "metre").replace("liter", "litre") for w in (a, b))
    verb = "is" if left[0] == 1 else "are"
    return ask(
        say(rng, template.format(n=left[0], a=a, b=b), False),
        f"{left[0]} {left[1]} {verb} {result[0]} {result[1]}.",
        rule,
    )
