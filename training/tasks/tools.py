"""Calling a tool that fits, answering from its response, and not calling one that does not fit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from training.example import Example, Message, exact, say
from training.tasks.chat import UNKNOWN, ZH_UNKNOWN, greeting
from training.tasks.toolbox import TOOLS, Tool, Value

NO_TOOL = "None of my tools can do that."
ZH_NO_TOOL = "我的工具都做不到。"
TOOL_WORDS = (
    "weather",
    "天气",
    "time",
    "几点",
    "*",
    "divided",
    "email",
    "letter",
    "play",
    "population",
    "人口",
    "say",
    "mean",
    "price",
    "cost",
    "多少钱",
    "stock",
    "find",
    "search",
    "book",
    "buy",
    "买",
)
Schema = dict[str, Any]


def offer(rng: random.Random, tool: Tool) -> tuple[Schema, list[str]]:
    """The tool's JSON schema as this conversation spells it, and its parameter names in order."""
    names = [rng.choice(p.names) for p in tool.params]
    described = rng.random() < 0.4
    properties = {
        n: {"type": p.kind, **({"description": p.text} if described else {})}
        for n, p in zip(names, tool.params, strict=True)
    }
    function = {
        "name": rng.choice(tool.names),
        "description": rng.choice(tool.texts),
        "parameters": {"type": "object", "properties": properties, "required": names},
    }
    return {"type": "function", "function": function}, names


def called(schema: Schema, names: list[str], values: list[Value]) -> dict[str, Any]:
    return {"name": schema["function"]["name"], "arguments": dict(zip(names, values, strict=True))}


def as_text(call: dict[str, Any]) -> str:
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"


def same_call(call: dict[str, Any]) -> Callable[[str], bool]:
    """Judges a call by its JSON value, not its spelling; with nothing before or after it."""

    def check(text: str) -> bool:
        text = text.strip()
        if not (text.startswith("<tool_call>") and text.endswith("</tool_call>")):
            return False
        try:
            return bool(json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>")) == call)
        except ValueError:
            return False

    return check


def scene(rng: random.Random) -> tuple[Tool, list[Value], list[Schema], dict[str, Any], str]:
    """A request, the tools offered (one fits) and the call that serves it."""
    tool = rng.choice(TOOLS)
    schema, names = offer(rng, tool)
    values = [p.value(rng) for p in tool.params]
    others = [offer(rng, t)[0] for t in rng.sample([t for t in TOOLS if t is not tool], rng.choice((0, 0, 1, 1, 1, 2)))]
    offered = [schema, *others]
    rng.shuffle(offered)
    request = rng.choice(tool.requests).format(*values)
    # the arguments repeat the request's words, so its case stays
    if rng.random() < 0.15 and request.isascii():
        request = rng.choice(("Please: ", "Hi! ", "Can you do this? ", "OK. ", "Now: ")) + request
    return tool, values, offered, called(schema, names, values), request


def call(rng: random.Random) -> Example:
    _, _, offered, wanted, request = scene(rng)
    return Example(
        [{"role": "user", "content": request}],
        as_text(wanted),
        f"{wanted['name']} fits.",
        offered,
        json.dumps(wanted, ensure_ascii=False),
        same_call(wanted),
    )


def exchange(rng: random.Random) -> tuple[list[Message], str, list[Schema], str]:
    """Request, call and tool message; the answer; the tools; a key."""
    tool, values, offered, wanted, request = scene(rng)
    response = tool.response(rng)
    content = dict(response) if rng.random() < 0.7 else {**wanted["arguments"], **response}
    messages: list[Message] = [
        {"role": "user", "content": request},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": wanted}]},
        {"role": "tool", "content": json.dumps(content, ensure_ascii=False)},
    ]
    answer = tool.answer.format(*values, **response)
    return messages, answer, offered, json.dumps([wanted, response], ensure_ascii=False)


def respond(rng: random.Random) -> Example:
    messages, answer, offered, key = exchange(rng)
    return Example(messages, answer, "", offered, key, exact(answer))


def no_call(rng: random.Random, quick: Callable[[random.Random], Example]) -> Example:
    """Tools are offered, but the question needs none of them, or one that is not there."""
    wanted = rng.choice(TOOLS)
    others = [offer(rng, t)[0] for t in rng.sample([t for t in TOOLS if t is not wanted], rng.choice((1, 1, 2)))]
    if rng.random() < 0.5:
        base = quick(rng)
        if any(word in base.messages[0]["content"].lower() for word in TOOL_WORDS):
            base = greeting(rng)  # whether a tool serves such a question depends on the tools
        if base.answer in (UNKNOWN, ZH_UNKNOWN):
            answer = NO_TOOL if base.answer == UNKNOWN else ZH_NO_TOOL
            return Example(base.messages, answer, "No tool fits.", others, base.key, exact(answer))
        return Example(base.messages, base.answer, base.thinking, others, base.key, base.check)
    values = [p.value(rng) for p in wanted.params]
    request = rng.choice(wanted.requests).format(*values)
    answer = NO_TOOL if request.isascii() else ZH_NO_TOOL
    if request.isascii():
        request = say(rng, request, False)
    return Example([{"role": "user", "content": request}], answer, "No tool fits.", others, request, exact(answer))
