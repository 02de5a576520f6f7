"""Structured output and tool calls: what is sent always parses, and what cannot be enforced is refused by name."""

import json
import re

import coder
import pytest
from serving import serving

CHAT = "/v1/chat/completions"
HOT = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "max_tokens": 300, "enable_thinking": False}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Get the weather forecast for a city.", "parameters": SCHEMA},
}
STRICT = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
PARIS = "What is the weather in Paris?"
WANTED = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True}}


def message(answer):
    return answer["choices"][0]["message"]


def check_trip(value):
    assert set(value) == {"city", "days"}
    assert value["city"] in ("Paris", "Rome")
    assert value["days"] in range(1, 10)


@pytest.mark.parametrize("seed", range(4))
def test_a_schema_binds_the_answer_at_any_temperature(demo, seed):
    check_trip(json.loads(message(demo.chat("Hello", **HOT, seed=seed, response_format=WANTED))["content"]))


def test_any_object(demo):
    for seed in range(2):
        answer = demo.chat("Hello", **HOT, seed=seed, response_format={"type": "json_object"})
        if answer["choices"][0]["finish_reason"] == "stop":
            assert isinstance(json.loads(message(answer)["content"]), dict)
    assert message(demo.chat("hello", response_format={"type": "text"})) == message(demo.chat("hello"))


def test_thinking_stays_free_before_a_bound_answer(demo):
    said = message(demo.chat("What is 17 + 25?", regex=r"17 \+ 25 = [0-9]+\."))
    assert (said["content"], said["reasoning"][:7]) == ("17 + 25 = 42.", "17 + 25")


def test_a_grammar_and_a_pattern(demo):
    assert message(demo.chat("Hello", **HOT, grammar='start: "yes" | "no"'))["content"] in ("yes", "no")
    assert re.fullmatch("a{3}b?", message(demo.chat("Hello", **HOT, regex="a{3}b?"))["content"])
    status, answer = demo.ask("/v1/completions", {"prompt": "Hello", "regex": "a{3}", "max_tokens": 9})
    assert (status, answer["choices"][0]["text"]) == (200, "aaa")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("more", [{}, {"tool_choice": "required"}, {"parallel_tool_calls": False}], ids=str)
def test_a_call_of_a_tool(demo, stream, more):
    asked = {"messages": [{"role": "user", "content": PARIS}], "tools": [WEATHER], "enable_thinking": False, **more}
    if stream:
        choices = [event["choices"][0] for event in demo.events(CHAT, asked)]
        calls = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
        assert not "".join(choice["delta"].get("content") or "" for choice in choices)
        assert [call["index"] for call in calls] == [0] * len(calls)
        assert [(call["type"], call["function"]["name"]) for call in calls if "id" in call] == [
            ("function", "get_weather")
        ]
        arguments = "".join(call["function"]["arguments"] for call in calls)
        finish = choices[-1]["finish_reason"]
    else:
        answer = demo.chat(PARIS, **{name: value for name, value in asked.items() if name != "messages"})
        assert message(answer)["content"] is None
        [call] = message(answer)["tool_calls"]
        assert (call["type"], call["function"]["name"], call["id"][:5]) == ("function", "get_weather", "call_")
        arguments, finish = call["function"]["arguments"], answer["choices"][0]["finish_reason"]
    assert finish == "tool_calls"
    assert json.loads(arguments)["city"] == "Paris"


def test_required_and_named_calls_bind_at_any_temperature(demo):
    other = {"type": "function", "function": {"name": "stop"}}
    for seed in range(3):
        answer = demo.chat("Hello", **HOT, seed=seed, tools=[WEATHER, other], tool_choice="required", n=2)
        for choice in answer["choices"]:
            if choice["finish_reason"] != "length":
                assert choice["finish_reason"] == "tool_calls"
                assert all(
                    isinstance(json.loads(c["function"]["arguments"]), dict) for c in choice["message"]["tool_calls"]
                )
        named = {"type": "function", "function": {"name": "get_weather"}}
        answer = demo.chat(
            "Hello", **HOT, seed=seed, tools=[other, STRICT], tool_choice=named, parallel_tool_calls=False
        )
        [call] = message(answer)["tool_calls"]
        assert call["function"]["name"] == "get_weather"
        check_trip(json.loads(call["function"]["arguments"]))


@pytest.mark.parametrize("stream", [False, True])
def test_a_format_beside_tools_gives_an_answer_of_it_or_calls(demo, stream):
    """Which of them is the model's choice; here a bias makes it."""
    [tag] = demo.ask("/tokenize", {"prompt": "<tool_call>"})[1]["tokens"]
    plain = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    asked = {"messages": [{"role": "user", "content": PARIS}], "temperature": 0, "enable_thinking": False}
    asked |= {"max_tokens": 300, "tools": [plain], "parallel_tool_calls": False, "response_format": WANTED}
    for bias, calls in ((-100, False), (100, True)):
        chosen = {**asked, "logit_bias": {str(tag): bias}}
        if stream:
            deltas = [event["choices"][0]["delta"] for event in demo.events(CHAT, chosen)]
            content = "".join(delta.get("content", "") for delta in deltas)
            parts = [call["function"] for delta in deltas for call in delta.get("tool_calls", [])]
            arguments = "".join(part.get("arguments", "") for part in parts)
        else:
            said = message(demo.ask(CHAT, chosen)[1])
            content = said["content"] or ""
            arguments = "".join(call["function"]["arguments"] for call in said.get("tool_calls", []))
        assert (bool(arguments), bool(content)) == (calls, not calls)
        if calls:
            assert isinstance(json.loads(arguments), dict)
        else:
            check_trip(json.loads(content))


def test_bound_xml_calls_are_streamed_as_they_are_written(tmp_path):
    (template := tmp_path / "coder.jinja").write_text(coder.TEMPLATE)
    note = {"type": "object", "properties": {"note": {"type": "string", "minLength": 60, "maxLength": 90}}}
    note |= {"required": ["note"], "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "write", "parameters": note, "strict": True}}
    asked = {"messages": [{"role": "user", "content": "Hi"}], **HOT, "top_k": 40, "seed": 1, "tools": [tool]}
    asked |= {"tool_choice": "required", "parallel_tool_calls": False}
    del asked["enable_thinking"]  # a setting that this template does not have
    with serving(chat_template=str(template)) as served:
        status, answer = served.ask(CHAT, asked)
        events = served.events(CHAT, asked)
    assert status == 200, answer
    [call] = message(answer)["tool_calls"]
    assert 60 <= len(json.loads(call["function"]["arguments"])["note"]) <= 90
    deltas = [delta for event in events for delta in event["choices"][0]["delta"].get("tool_calls", [])]
    assert "".join(delta["function"].get("arguments", "") for delta in deltas) == call["function"]["arguments"]
    assert len(deltas) > 10
    assert [delta["function"].get("name") for delta in deltas if "id" in delta] == ["write"]
    assert {delta["index"] for delta in deltas} == {0}


def test_tool_choice_none_calls_nothing(demo):
    answer = demo.chat(PARIS, tools=[WEATHER], tool_choice="none", enable_thinking=False)
    assert "tool_calls" not in message(answer)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["prompt_tokens"] == demo.chat(PARIS, enable_thinking=False)["usage"]["prompt_tokens"]


def test_a_call_that_was_cut_stays_text_and_the_end_says_so(demo):
    answer = demo.chat(PARIS, tools=[WEATHER], enable_thinking=False, max_tokens=8)
    assert "tool_calls" not in message(answer)
    assert message(answer)["content"].startswith("<tool_call>")
    assert answer["choices"][0]["finish_reason"] == "length"


REFUSED = {
    "two of them": ({"regex": "a", "response_format": WANTED}, "response_format", "regex does so already"),
    "beside tools": ({"tools": [WEATHER], "regex": "a"}, "regex", "set tool_choice to none"),
    "a format beside tools": (
        {
            "tools": [WEATHER],
            "response_format": {"type": "json_schema", "json_schema": {"schema": {"uniqueItems": True}}},
        },
        "response_format",
        "uniqueItems",
    ),
    "no schema": ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "has no json_schema"),
    "a schema of another type": (
        {"response_format": {"type": "json_object", "json_schema": {"schema": {"type": "integer"}}}},
        "response_format.json_schema",
        "needs the type json_schema, and the type is json_object",
    ),
    "a feature": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"contains": {"type": "null"}}}}},
        "response_format",
        "contains",
    ),
    "a pattern": ({"regex": "a(?=b)"}, "regex", "look-around"),
    "a grammar": ({"grammar": "start: x"}, "grammar", "x"),
    "a stop": ({"regex": "a", "stop": "b"}, "stop", "a stop string would end the reply before its grammar is complete"),
    "required alone": ({"tool_choice": "required"}, "tool_choice", "needs tools"),
    "a name that is not there": (
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "fly"}}},
        "tool_choice",
        "tool_choice names 'fly'",
    ),
    "no tool": ({"tools": [{"type": "function"}]}, "tools[0]", "missing required field `function`"),
    "a strict tool": (
        {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"not": {}}}}]},
        "tools",
        "f",
    ),
}


@pytest.mark.parametrize(("change", "param", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_enforced_is_refused_by_name(demo, change, param, text):
    error = demo.refusal(CHAT, {"messages": [{"role": "user", "content": "hello"}], **change})
    assert (error["param"], text in error["message"]) == (param, True), error
