"""Files of prompts: what a line may be, and that each reply is the one it gets alone."""

import json

import pytest

from mlx_qwen3 import JsonSchema, Regex, load
from mlx_qwen3.engine.engine import Engine
from mlx_qwen3.engine.many import Defaults, prepare_lines, read_lines, run_all
from mlx_qwen3.engine.reply import generate
from mlx_qwen3.engine.request import ReplyOptions
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.errors import EngineError, PromptError, Qwen3Error, UsageError

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def demo():
    return load("demo", dtype="fp32")


def lines(*values, defaults=None):
    content = "\n".join(value if isinstance(value, str) else json.dumps(value) for value in values)
    return read_lines(content, "f", defaults or Defaults())


def test_texts_and_objects():
    defaults = Defaults(ReplyOptions(max_tokens=5), {"temperature": 0.5, "seed": 1}, "Be brief.")
    own = {"prompt": "a", "id": "x", "system": "S", "max_tokens": 9, "stop": ["b"], "seed": 7, "thinking": None}
    talk = [{"role": "system", "content": "T"}, *HELLO]
    found = lines("  hello ", "", own, {"messages": talk}, {"messages": HELLO}, defaults=defaults)
    system = {"role": "system", "content": "Be brief."}
    assert [line.number for line in found] == [1, 3, 4, 5]
    assert [line.messages for line in found] == [
        [system, *HELLO],
        [{"role": "system", "content": "S"}, {"role": "user", "content": "a"}],
        talk,
        [system, *HELLO],
    ]
    assert (found[0].options.max_tokens, found[1].options.max_tokens) == (5, 9)
    assert (found[1].id, found[1].options.stop, found[1].options.thinking) == ("x", ["b"], None)
    assert found[0].sampling == {"temperature": 0.5, "seed": 1}
    assert found[1].sampling == {"temperature": 0.5, "seed": 7}


WRONG = {
    "no JSON": ("{prompt: 1}", PromptError, "not a JSON object"),
    "two objects": ('{"prompt": "a"} {}', PromptError, "not a JSON object"),
    "unknown key": ({"prompt": "a", "temp": 1}, PromptError, "unknown key 'temp'; known are id, prompt"),
    "neither": ({"id": 1}, PromptError, "give either a prompt or messages"),
    "both": ({"prompt": "a", "messages": HELLO}, PromptError, "give either a prompt or messages"),
    "two systems": (
        {"system": "a", "messages": [{"role": "system", "content": "b"}]},
        PromptError,
        "system is given beside messages",
    ),
    "a number": ({"prompt": 5}, PromptError, "prompt is 5; expected a text"),
    "a flag as id": ({"prompt": "a", "id": True}, PromptError, "id is True; expected a text or a number"),
    "a stop number": ({"prompt": "a", "stop": 5}, PromptError, "stop is 5; expected a text or a list"),
    "thinking": ({"prompt": "a", "thinking": "no"}, PromptError, "thinking is 'no'; expected true or false"),
    "temperature": ({"prompt": "a", "temperature": -1}, UsageError, "temperature is -1; expected"),
    "max_tokens": ({"prompt": "a", "max_tokens": 0}, UsageError, "max_tokens is 0; expected 1 or more"),
    "budget": ({"prompt": "a", "thinking_budget": -3}, UsageError, "thinking_budget is -3; expected"),
}


@pytest.mark.parametrize(("line", "kind", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_line_is_named(line, kind, message):
    with pytest.raises(Qwen3Error) as caught:
        lines("hello", "", line)
    assert type(caught.value) is kind
    assert str(caught.value).startswith("f, line 3: ")
    assert message in str(caught.value)


def test_a_file_without_prompts():
    with pytest.raises(UsageError, match="f holds no prompt"):
        lines("", "  ")


def test_what_the_model_cannot_take_is_named_before_anything_runs(demo):
    for line, message in (
        ({"messages": [{"content": "x"}]}, r"f, line 2: messages\[0\] has no role"),
        ({"messages": []}, "f, line 2: "),
        ({"prompt": "a", "max_tokens": 99999}, "f, line 2: .*exceed the context of 4096"),
    ):
        with pytest.raises(PromptError, match=message):
            prepare_lines(lines("hello", line), "f", demo[0].config, demo[1])


def test_replies_are_those_alone_in_the_order_of_the_lines(demo):
    values = [
        {"prompt": "What is 17 + 25?", "max_tokens": 60, "temperature": 0},
        {"prompt": "hello", "max_tokens": 2, "temperature": 1, "seed": 3},
        {"prompt": "Reverse: a b c d e", "max_tokens": 40, "temperature": 0, "thinking": False},
        {"prompt": "What is 17 + 25?", "thinking_budget": 3, "temperature": 0},
    ]
    requests = prepare_lines(lines(*values), "f", demo[0].config, demo[1])
    with Engine(*demo, max_rows=3) as engine:
        outcomes = list(run_all(engine, requests))
    for value, request, outcome in zip(values, requests, outcomes, strict=True):
        options = {name: item for name, item in value.items() if name not in ("prompt", "temperature", "seed")}
        sampling = SamplingParams(**{**vars(request.sampling)})
        alone = generate(*demo, value["prompt"], sampling=sampling, **options)
        assert (outcome.text, outcome.thinking, outcome.finish_reason) == (
            alone.text,
            alone.thinking,
            alone.finish_reason,
        )
        assert (outcome.prompt_tokens, outcome.generation_tokens) == (alone.prompt_tokens, alone.generation_tokens)
        assert outcome.error is None


def test_one_that_fails_stops_no_other(demo, monkeypatch):
    requests = prepare_lines(lines("hello", "hello", "hello"), "f", demo[0].config, demo[1])
    with Engine(*demo) as engine:
        submit = engine.submit

        def failing(request):
            if request is requests[0]:
                raise EngineError("no room")
            reply = submit(request)
            if request is requests[1]:
                reply._events.put(ZeroDivisionError("oh"))
            return reply

        monkeypatch.setattr(engine, "submit", failing)
        refused, broken, whole = run_all(engine, requests)
    assert str(refused.error) == "no room"
    assert isinstance(broken.error, ZeroDivisionError)
    assert whole.error is None
    assert whole.finish_reason == "stop"


def test_a_line_may_bind_its_answer(demo):
    first, second = lines({"prompt": "a", "json_schema": {"type": "null"}}, {"prompt": "a", "regex": "x"})
    assert (first.options.grammar, second.options.grammar) == (JsonSchema({"type": "null"}), Regex("x"))
    for value, message in (
        ({"json_schema": {}, "regex": "x"}, "f, line 1: json_schema and regex both bind the answer"),
        ({"json_schema": "x"}, "f, line 1: json_schema is 'x'; expected a JSON schema"),
        ({"regex": 3}, "f, line 1: regex is 3; expected a text"),
    ):
        with pytest.raises(PromptError, match=message):
            lines({"prompt": "a", **value})
    with pytest.raises(UsageError, match='f, line 1: the JSON schema has "uniqueItems"'):
        prepare_lines(lines({"prompt": "a", "json_schema": {"uniqueItems": True}}), "f", demo[0].config, demo[1])
