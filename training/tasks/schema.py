"""JSON that follows a small given schema, filled from a sentence or a record."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training.example import Example, exact
from training.tables import CITIES
from training.words import COLORS, NOUNS, ZH_NAMES, made_up, name


@dataclass(frozen=True)
class Field:
    keys: tuple[str, ...]
    kind: str
    label: str
    clause: str
    value: Callable[[random.Random], Any]


FIELDS = (
    Field(("age", "years"), "integer", "Age", "is {} years old", lambda r: r.randint(5, 99)),
    Field(
        ("city", "home", "town"),
        "string",
        "City",
        "lives in {}",
        lambda r: r.choice(CITIES) if r.random() < 0.6 else made_up(r),
    ),
    Field(("color", "favorite_color"), "string", "Color", "likes {}", lambda r: r.choice(COLORS)),
    Field(
        ("pet", "animal"),
        "string",
        "Pet",
        "has a {}",
        lambda r: r.choice("dog cat bird fish horse rabbit mouse snake turtle frog".split()),
    ),
    Field(
        ("job", "profession", "work"),
        "string",
        "Job",
        "works as a {}",
        lambda r: r.choice("teacher doctor baker farmer pilot painter driver nurse lawyer cook singer writer".split()),
    ),
    Field(("height", "height_cm"), "integer", "Height", "is {} cm tall", lambda r: r.randint(120, 210)),
    Field(("item", "product"), "string", "Item", "bought a {}", lambda r: r.choice(NOUNS)),
    Field(("price", "cost"), "integer", "Price", "paid {} dollars", lambda r: r.randint(1, 999)),
)
ASKS = (
    "Return JSON with the keys {k}: {t}",
    "Give me JSON with {k}. Text: {t}",
    "Answer as JSON with these keys: {k}. {t}",
    "Extract {k} as JSON: {t}",
    "{t} Write this as JSON with the keys {k}.",
    "Turn this into JSON ({k}): {t}",
    "Make a JSON object with {k} from this text: {t}",
)
SCHEMA_ASKS = (
    "Answer with JSON that follows this schema: {s}\n{t}",
    "Schema: {s}\nText: {t}",
    "JSON schema: {s}\nFill it from: {t}",
    "{t}\nReturn JSON for this schema: {s}",
    "Follow this schema: {s} Text: {t}",
    "Return only JSON matching {s}. {t}",
)
ZH_ASKS = ("用JSON回答，键为{k}：{t}", "请把下面的内容写成JSON，键是{k}：{t}", "提取{k}，用JSON回答：{t}")
ZH_CLAUSES = {"Age": "今年{}岁", "City": "住在{}", "Color": "喜欢{}"}


def described(rng: random.Random, keys: list[tuple[str, str]]) -> str:
    """The schema: JSON Schema in full, or the short form people write."""
    if rng.random() < 0.5:
        return json.dumps({"type": "object", "properties": {k: {"type": kind} for k, kind in keys}})
    if rng.random() < 0.5:
        return "{" + ", ".join(f'"{k}": {kind}' for k, kind in keys) + "}"
    return json.dumps(dict(keys))


def text_of(rng: random.Random, who: str, rows: list[tuple[Field, Any]]) -> str:
    if rng.random() < 0.35:
        return f"Name: {who}. " + ". ".join(f"{f.label}: {v}" for f, v in rows) + "."
    parts = [f.clause.format(v) for f, v in rows]
    joined = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return f"{who} {joined}."


def schema(rng: random.Random) -> Example:
    who = name(rng)
    rows = [(f, f.value(rng)) for f in rng.sample(FIELDS, rng.choice((1, 2, 2, 3)))]
    zh = rng.random() < 0.15
    if zh:
        who = rng.choice(ZH_NAMES)
        rows = [(f, f.value(rng)) for f in rng.sample(FIELDS[:3], rng.choice((1, 2)))]
    # a schema may leave out part of what the text says, and orders the keys its own way
    wanted = [(rng.choice(f.keys), f.kind, v) for f, v in rows]
    wanted = [("name", "string", who), *wanted] if rng.random() < 0.85 else wanted
    if len(wanted) > 1:
        rng.shuffle(wanted)
        wanted = wanted[:-1] if rng.random() < 0.15 else wanted
    keys = [k for k, *_ in wanted]
    listed = rng.choice((", ".join(keys), " and ".join(keys) if len(keys) == 2 else ", ".join(keys)))
    if zh:
        text = who + "，".join(ZH_CLAUSES[f.label].format(v) for f, v in rows) + "。"
        prompt = rng.choice(ZH_ASKS).format(k="、".join(keys), t=text)
    elif rng.random() < 0.5:
        prompt = rng.choice(ASKS).format(k=listed, t=text_of(rng, who, rows))
    else:
        prompt = rng.choice(SCHEMA_ASKS).format(
            s=described(rng, [(k, kind) for k, kind, _ in wanted]), t=text_of(rng, who, rows)
        )
    answer = json.dumps({k: v for k, _, v in wanted}, ensure_ascii=False)
    return Example([{"role": "user", "content": prompt}], answer, "", None, answer, exact(answer))
