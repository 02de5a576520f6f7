"""Conversations as prompt text against transformers: with Qwen3's own template, and with small ones made here."""

import json
from types import MappingProxyType
from typing import Any

import coder
import numpy as np
import pytest
from chats import (
    ANSWER,
    CALL,
    HI,
    MORE,
    OPENAI_TURN,
    PARTS,
    READS_PARTS,
    SYSTEM,
    TEMPLATE,
    TIME,
    USER,
    WEATHER,
    call,
    render,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_qwen3.errors import PromptError, UsageError
from mlx_qwen3.text.chat_template import ChatTemplate
from mlx_qwen3.text.tokenizer import Tokenizer

EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

CHATS: dict[str, dict[str, Any]] = {
    "one turn": {"messages": [USER]},
    "system": {"messages": [SYSTEM, USER]},
    "late system": {"messages": [USER, {"role": "assistant", "content": "Yes."}, SYSTEM, MORE]},
    "several turns": {"messages": [SYSTEM, USER, {"role": "assistant", "content": "Yes."}, MORE]},
    "ends with the assistant": {"messages": [USER, {"role": "assistant", "content": "\n\nYes."}]},
    "tools": {"messages": [USER], "tools": [WEATHER, TIME]},
    "tools and system": {"messages": [SYSTEM, USER], "tools": [WEATHER]},
    "no tools": {"messages": [USER], "tools": []},
    "call with a dict": {"messages": [USER, CALL, ANSWER], "tools": [WEATHER]},
    "call with a string": {
        "messages": [USER, {**CALL, "tool_calls": [call("get_weather", '{"place": "<&>"}')]}, ANSWER, MORE]
    },
    "call without the function key": {
        "messages": [USER, {**CALL, "tool_calls": [{"name": "now", "arguments": {"b": 1, "a": None}}]}]
    },
    "several calls after text": {
        "messages": [
            USER,
            {"role": "assistant", "content": "Let me see.", "tool_calls": [call("now", {}), call("now", {"z": [0.1]})]},
            ANSWER,
            {"role": "tool", "content": "12:00"},
            {"role": "assistant", "content": "Cold."},
            MORE,
        ],
        "tools": [WEATHER, TIME],
    },
    "tool without content": {"messages": [USER, CALL, {"role": "tool", "content": None}]},
    "user writes a tool response": {
        "messages": [USER, {"role": "user", "content": "<tool_response>x</tool_response>"}]
    },
    "thinking as a field": {
        "messages": [USER, {**CALL, "reasoning_content": "\nI need the <weather>.\n"}, ANSWER],
        "tools": [WEATHER],
    },
    "thinking under an alias": {"messages": [USER, {**CALL, "reasoning": "So: 2 < 3."}, ANSWER]},
    "thinking under two names": {"messages": [USER, {**CALL, "reasoning": "a", "thinking": "b"}, ANSWER]},
    "thinking as text": {"messages": [USER, {**CALL, "content": "<think>\nhm\n</think>\n\nNow:"}, ANSWER]},
    "thinking of an earlier turn": {
        "messages": [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}, MORE]
    },
    "thinking as null": {"messages": [USER, {"role": "assistant", "content": "Yes.", "reasoning_content": None}]},
}


# With Qwen3's own template


@pytest.mark.parametrize("thinking", [None, True, False])
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
def test_chats_render_as_in_transformers(
    qwen: Tokenizer, theirs: Any, chat: dict[str, Any], prompt: bool, thinking: bool | None
) -> None:
    switch = {} if thinking is None else {"enable_thinking": thinking}
    expected = theirs.apply_chat_template(
        chat["messages"], tools=chat.get("tools"), tokenize=False, add_generation_prompt=prompt, **switch
    )
    assert qwen.apply_chat_template(**chat, add_generation_prompt=prompt, enable_thinking=thinking) == expected


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
def test_chats_of_qwen3_coder_render_as_in_transformers(reference: Any, chat: dict[str, Any], prompt: bool) -> None:
    """Arguments are written by their types. transformers fails on arguments that are a string; they are read here."""
    messages, tools = chat["messages"], chat.get("tools")
    as_objects = [
        {**m, "tool_calls": [_with_object(c) for c in m["tool_calls"]]} if "tool_calls" in m else m for m in messages
    ]
    expected = reference(coder.TEMPLATE, as_objects, tools=tools, add_generation_prompt=prompt)
    assert render(coder.TEMPLATE, messages, tools=tools, add_generation_prompt=prompt) == expected


def _with_object(tool_call: dict[str, Any]) -> dict[str, Any]:
    function = tool_call.get("function", tool_call)
    arguments = function["arguments"]
    return {"function": {**function, "arguments": json.loads(arguments) if isinstance(arguments, str) else arguments}}


tags = st.sampled_from(["<think>", "</think>", "\n", "<tool_response>", "</tool_response>", "<|im_end|>", "{{ x }}"])
contents = st.lists(st.one_of(tags, st.text(max_size=4)), max_size=6).map("".join)
chats = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": contents},
        optional={"reasoning_content": contents},
    ),
    min_size=1,
    max_size=5,
)


@EXAMPLES
@given(messages=chats, prompt=st.booleans())
def test_any_chat_renders_as_in_transformers(
    qwen: Tokenizer, theirs: Any, messages: list[dict[str, Any]], prompt: bool
) -> None:
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    assert qwen.apply_chat_template(messages, add_generation_prompt=prompt) == expected


def test_rendering_leaves_the_messages_alone(qwen: Tokenizer) -> None:
    messages = [USER, {**CALL, "reasoning": "hm"}, ANSWER]
    before = json.dumps(messages)
    qwen.apply_chat_template(messages, tools=[WEATHER])
    assert json.dumps(messages) == before


def test_an_empty_conversation_is_refused(qwen: Tokenizer) -> None:
    with pytest.raises(PromptError):
        qwen.apply_chat_template([])


def test_a_rendering_can_be_repeated_with_other_options(qwen: Tokenizer) -> None:
    assert qwen.apply_chat_template([USER]).startswith(qwen.apply_chat_template([USER], add_generation_prompt=False))


# With small templates, and tools and variables


def test_a_failure_names_the_message_at_which_it_happened() -> None:
    messages = [USER, {"role": "assistant", "content": "a"}, {"role": "tool", "content": "b"}, MORE]
    per_message = (
        "{% for m in messages %}{{ raise_exception('no tools') if m.role == 'tool' }}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(PromptError, match=r"cannot render messages\[2\] \(tool\): no tools"):
        render(per_message, messages)
    with pytest.raises(PromptError, match="cannot render this conversation: at the end"):
        render("{% for m in messages %}{{ m.content }}{% endfor %}{{ raise_exception('at the end') }}", messages)
    in_a_macro = (
        "{% macro f(m) %}{{ 1 / (m.role != 'tool') }}{% endmacro %}{% for m in messages %}{{ f(m) }}{% endfor %}"
    )
    with pytest.raises(PromptError, match=r"messages\[2\] \(tool\): division"):
        render(in_a_macro, messages)


def test_messages_may_be_any_mapping() -> None:
    assert render(TEMPLATE, [MappingProxyType(HI[0])]) == "[user]hi"


def weather(city: str, days: int = 1) -> str:
    """Tell the weather.

    Args:
        city: The name of the city
        days: How many days
    """
    raise AssertionError("a template only describes a tool")


def test_tools_may_be_functions(reference: Any) -> None:
    source = "{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    assert render(source, HI, tools=[weather, TIME]) == reference(source, HI, tools=[weather, TIME]) != ""


def test_a_tool_of_another_kind_is_refused() -> None:
    with pytest.raises(PromptError, match=r"tools\[1\] is of type str; expected a JSON schema or a Python function"):
        render(TEMPLATE, HI, tools=[TIME, "now"])


def test_numbers_of_numpy_are_numbers(reference: Any) -> None:
    arguments = {"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(False), "d": np.str_("x"), "e": (1, 2)}
    messages = [USER, {**CALL, "tool_calls": [call("f", arguments)]}]
    source = "{{ messages[1].tool_calls[0].function.arguments | tojson }}"
    assert render(source, messages) == reference(source, messages)
    messages[1]["tool_calls"] = [call("f", {"grid": np.arange(4).reshape(2, 2)})]  # transformers writes "<ndarray>"
    assert render(source, messages) == '{"grid": [[0, 1], [2, 3]]}'


def test_further_variables_reach_the_template(reference: Any) -> None:
    source = "{{ style }}{{ eos_token }}{{ levels }}"
    variables = {"style": "brief", "eos_token": "</s>", "levels": [np.int64(1), None]}
    assert render(source, HI, template_args=variables) == reference(source, HI, **variables) == "brief</s>[1, None]"


@pytest.mark.parametrize("name", ["messages", "tools", "documents", "add_generation_prompt"])
def test_a_variable_that_is_an_option_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"template_args may not set {name}"):
        render("{{ messages }}{{ tools }}", HI, template_args={name: []})


def test_a_variable_that_the_template_does_not_read_is_refused() -> None:
    with pytest.raises(UsageError, match="no variable 'stile'; it reads enable_thinking, style"):
        render("{{ style }}{{ bos_token }}{{ enable_thinking }}{{ tools }}", HI, template_args={"stile": 1})


# Continuing the last message

CONTINUED = {
    "plain": [USER, {"role": "assistant", "content": "Sure, here"}],
    "ends in space": [USER, {"role": "assistant", "content": "Sure, here \n"}],
    "empty": [USER, {"role": "assistant", "content": ""}],
    "only space": [USER, {"role": "assistant", "content": "  "}],
    "open thinking": [USER, {"role": "assistant", "content": "<think>\nSo"}],
    "thinking and answer": [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nIt is"}],
    "thinking as a field": [USER, {"role": "assistant", "content": "It is", "reasoning_content": "hm"}],
    "after a tool": [USER, CALL, ANSWER, {"role": "assistant", "content": "It is"}],
    "a user's message": [USER, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And what"}],
    "holds the tag": [USER, {"role": "assistant", "content": "CONTINUE_FINAL_MESSAGE_TAG x"}],
}


@pytest.mark.parametrize("messages", CONTINUED.values(), ids=CONTINUED)
def test_qwen3_continues_as_in_transformers(qwen: Tokenizer, theirs: Any, messages: Any) -> None:
    expected = theirs.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert qwen.apply_chat_template(messages, continue_final_message=True) == expected
    assert expected.endswith(messages[-1]["content"])


def test_thinking_can_be_continued(qwen: Tokenizer, theirs: Any) -> None:
    messages = [USER, {"role": "assistant", "content": "", "reasoning": "First, the carry"}]
    for field in ("reasoning_content", "reasoning"):
        expected = theirs.apply_chat_template(messages, tokenize=False, continue_final_message=field)
        assert qwen.apply_chat_template(messages, continue_final_message=field) == expected
    assert expected.endswith("<think>\nFirst, the carry")


@pytest.mark.parametrize("content", ["Sure", "Sure \n", " Sure"])
@pytest.mark.parametrize("source", [TEMPLATE, TEMPLATE.replace("m.content", "m.content | trim"), READS_PARTS])
def test_a_template_that_trims_gets_a_trimmed_message_continued(reference: Any, source: str, content: str) -> None:
    messages = [USER, {"role": "assistant", "content": content}]
    expected = reference(source, messages, continue_final_message=True)
    assert render(source, messages, continue_final_message=True) == expected


def test_parts_are_continued(reference: Any) -> None:
    messages = [USER, {"role": "assistant", "content": PARTS}]
    source = READS_PARTS
    expected = reference(source, messages, continue_final_message=True)
    assert render(source, messages, continue_final_message=True) == expected
    assert render(TEMPLATE, messages, continue_final_message=True).endswith("[assistant]What is this?\n")
    assert messages[1]["content"] is PARTS
    assert PARTS[1] == {"type": "text", "text": "this?\n"}


SHOUTS = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "message", "field", "error", "reason"),
    [
        (SHOUTS, {"role": "assistant", "content": "Sure"}, True, PromptError, r"messages\[1\] \(assistant\) cannot be"),
        (TEMPLATE, {**OPENAI_TURN}, True, PromptError, "has no 'content' that could be continued"),
        (READS_PARTS, {"role": "assistant", "content": []}, True, PromptError, "without text"),
        (TEMPLATE, {"role": "assistant", "content": 5}, True, PromptError, "without text"),
        (TEMPLATE, {"role": "assistant", "reasoning": "a"}, "reasoning", PromptError, "does not read"),
        (TEMPLATE, {"role": "assistant", "content": "a"}, "reasoning", PromptError, "has no 'reasoning'"),
    ],
)
def test_what_cannot_be_continued_is_refused(
    source: str, message: Any, field: Any, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        render(source, [USER, message], continue_final_message=field)


def test_a_new_reply_and_a_continued_one_contradict_each_other(qwen: Tokenizer) -> None:
    for template in (ChatTemplate(TEMPLATE, {}).render, qwen.apply_chat_template):
        with pytest.raises(UsageError, match="continue_final_message and add_generation_prompt contradict"):
            template(HI, add_generation_prompt=True, continue_final_message=True)


# Tags of the template and tags of the messages

CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
ALWAYS = CHATML + "<assistant><think>\n"  # ignores add_generation_prompt
THINKING_2507 = CHATML + "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
CLOSES = CHATML + "{% if add_generation_prompt %}<assistant><think>\n\n</think>\n\n{% endif %}"
TELLS = "Begin with <think>.\n" + CHATML  # an opening tag that opens nothing
TELLS_AND_OPENS = TELLS + "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
ASKS_FOR_TAGS = CHATML + "{{ raise_exception('no tags') if '<think>' not in messages[0].content }}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CHATML, False),
        (ALWAYS, True),
        (THINKING_2507, True),
        (CLOSES, False),
        (TELLS + "{% if add_generation_prompt %}<assistant>{% endif %}", False),
        (TELLS_AND_OPENS, True),
    ],
)
@pytest.mark.parametrize("text", ["<think>", "<think>a</think>", "</think>", "<think></think><think>", "a<think>b"])
def test_what_the_template_opened_decides_and_not_what_a_message_says(source: str, text: str, expected: bool) -> None:
    messages = [{"role": "user", "content": "<think></think>"}, {"role": "user", "content": text}]
    assert ChatTemplate(source, {}).render(messages).opens_thinking == expected


def test_a_template_that_needs_a_tag_in_a_message_gets_it() -> None:
    assert render(ASKS_FOR_TAGS, [{"role": "user", "content": "<think>"}]) == "<user><think></user>"


@pytest.mark.parametrize("thinking", [None, True, False])
@pytest.mark.parametrize("content", ["hi", "What is <think>?", "<think>", PARTS, [{"type": "text", "text": "<think>"}]])
def test_qwen3_opens_no_thinking(qwen: Tokenizer, content: Any, thinking: bool | None) -> None:
    messages = [
        USER,
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."},
        {"role": "user", "content": content},
    ]
    tools = [{"type": "function", "function": {"name": "f", "description": "writes <think>"}}]
    assert not qwen.chat_template().render(messages, tools, enable_thinking=thinking).opens_thinking


@pytest.mark.parametrize(
    ("message", "field", "expected"),
    [
        ({"content": "Sure"}, True, False),
        ({"content": "<think>\nSo"}, True, True),
        ({"content": "<think>\nhm\n</think>\n\nIt is"}, True, False),
        ({"content": "", "reasoning_content": "So"}, "reasoning_content", True),
        ({"content": "It is", "reasoning_content": "So"}, True, False),
    ],
)
def test_a_continued_message_may_be_inside_its_thinking(
    qwen: Tokenizer, message: dict[str, str], field: bool | str, expected: bool
) -> None:
    messages = [{"role": "user", "content": "What is <think>?"}, {"role": "assistant", **message}]
    assert qwen.chat_template().render(messages, continue_final_message=field).opens_thinking == expected
