"""Messages in the forms in which clients send them."""

from typing import Any

import pytest
from chats import ANSWER, CALL, HI, MORE, OPENAI_TURN, PARTS, READS_PARTS, SYSTEM, TEMPLATE, USER, call, render

from mlx_qwen3.errors import PromptError
from mlx_qwen3.text.tokenizer import Tokenizer

# Content that is not text


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ '|' + m.content }}{% endfor %}",
        "{% for m in messages %}{{ '|' ~ m.get('content') }}{% endfor %}",
        "{% for m in messages %}{{ '|' + m['content'].lstrip() }}{% endfor %}",
    ],
)
def test_no_content_beside_tool_calls_is_an_empty_content(source: str) -> None:
    for turn in (OPENAI_TURN, {"role": "assistant", "tool_calls": OPENAI_TURN["tool_calls"]}):
        assert render(source, [*HI, turn, {"role": "tool", "content": "None"}]) == "|hi||None"


def test_qwen3_takes_a_turn_as_openai_clients_send_it(qwen: Tokenizer) -> None:
    sent = [USER, OPENAI_TURN, ANSWER]
    assert qwen.apply_chat_template(sent) == qwen.apply_chat_template([USER, {**OPENAI_TURN, "content": ""}, ANSWER])


def test_a_template_that_needs_no_content_gets_none(reference: Any) -> None:
    source = "{% for m in messages %}{{ 'content' in m }}{{ m.content }}{% endfor %}"
    assert render(source, [*HI, OPENAI_TURN]) == reference(source, [*HI, OPENAI_TURN]) == "TruehiFalse"


def test_arguments_as_text_become_an_object_where_the_template_needs_one() -> None:
    source = (
        "{% for c in messages[1].tool_calls %}{% for k, v in c.function.arguments | items %}{{ k }}={{ v }}"
        "{% endfor %}{% endfor %}"
    )
    assert render(source, [USER, {**CALL, "tool_calls": [call("f", '{"a": 1}')]}]) == "a=1"
    with pytest.raises(PromptError, match="mapping"):
        render(source, [USER, {**CALL, "tool_calls": [call("f", "no JSON")]}])


TEMPLATES_FOR_PARTS = {
    "loop": READS_PARTS,
    "loop that trims": "{% for m in messages %}{% if m.content is string %}{{ m.content | trim }}{% else %}"
    "{% for part in m.content if part.type == 'text' %}{{ part.text | trim }}{% endfor %}{% endif %}{% endfor %}",
    "map": "{% for m in messages %}{{ m.content if m.content is string else "
    "m.content | map(attribute='text') | join(' ') }}{% endfor %}",
    "parts only": "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}",
}
CANNOT_READ_PARTS = {
    "writes Python": TEMPLATE,
    "writes JSON": "{% for m in messages %}[{{ m.role }}]"
    "{{ m.content if m.content is string else m.content | tojson }}{% endfor %}",
    "leaves them out": "{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}{% endif %}"
    "{% endfor %}",
    "fails": "{% for m in messages %}{{ '[' + m.role + ']' + m.content }}{% endfor %}",
}


@pytest.mark.parametrize("source", TEMPLATES_FOR_PARTS.values(), ids=TEMPLATES_FOR_PARTS)
def test_a_template_that_reads_parts_gets_them(reference: Any, source: str) -> None:
    messages = [{"role": "user", "content": PARTS}, {"role": "assistant", "content": [PARTS[0]]}]
    assert render(source, messages) == reference(source, messages) != ""


@pytest.mark.parametrize("source", CANNOT_READ_PARTS.values(), ids=CANNOT_READ_PARTS)
@pytest.mark.parametrize(
    "parts", [PARTS, ["What is ", "this?\n"], [{"text": "What is this?\n"}], [*PARTS, {"type": "text", "text": ""}]]
)
def test_other_templates_get_the_joined_text(source: str, parts: Any) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": parts}]
    assert render(source, messages) == "[system]s[user]What is this?\n"


def test_a_template_may_read_parts_of_one_role_only(reference: Any) -> None:
    source = (
        "{% for m in messages %}{{ m.role }}:{% if m.role == 'user' and m.content is not string %}"
        "{% for p in m.content %}<{{ p.text }}>{% endfor %}{% else %}{{ m.content }}{% endif %} {% endfor %}"
    )
    messages = [{"role": "user", "content": PARTS}, {"role": "tool", "content": PARTS[:1]}]
    assert render(source, messages) == "user:<What is ><this?\n> tool:What is  "


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_qwen3_reads_parts_of_every_role(qwen: Tokenizer, role: str) -> None:
    def chat(content: Any) -> str:
        return qwen.apply_chat_template([USER, {"role": role, "content": content}, MORE])

    assert chat(PARTS) == chat("What is this?\n")
    assert chat([]) == chat("")


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        ({"type": "image_url", "image_url": {"url": "http://x"}}, "a part of type image_url"),
        ({"type": "image", "image": "x.png"}, "a part of type image"),
        ({"type": "input_audio", "input_audio": {}}, "a part of type input_audio"),
        ({"type": "video"}, "a part of type video"),
        ({"image": "x.png"}, "the part {'image': 'x.png'}"),
        (5, "the part 5"),
    ],
)
@pytest.mark.parametrize("source", [TEMPLATE, READS_PARTS], ids=["text", "parts"])
def test_a_part_that_is_not_text_is_refused_by_name(source: str, part: Any, shown: str) -> None:
    with pytest.raises(PromptError) as caught:
        render(source, [SYSTEM, {"role": "user", "content": [*PARTS, part]}])
    assert str(caught.value) == f"messages[1] (user) holds {shown}; this model reads text only"


class Unknown:
    pass


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "user", "content": {1, 2}}, r"messages\[1\] \(user\) holds a value of type set; expected text"),
        ({"role": "user", "content": b"x"}, r"messages\[1\] \(user\) holds a value of type bytes"),
        (
            {"role": "tool", "content": "x", "extra": [{"a": Unknown()}]},
            r"messages\[1\] \(tool\) .* type Unknown",
        ),
        ({"role": "user", "content": "a\ud800"}, r"messages\[1\] \(user\) holds a lone surrogate"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, r"\(user\) holds a part of text whose text is 5"),
        ({"content": "x"}, r"messages\[1\] has no role"),
        ({"role": None, "content": "x"}, r"messages\[1\] has no role"),
        (5, r"messages\[1\] is 5; expected an object with a role"),
        (
            {"role": "r" * 5000, "content": {1}},
            r"messages\[1\] \(r{60}\.\.\.r{60} \(5000 characters\)\) holds",
        ),
    ],
)
def test_an_error_names_the_message(message: Any, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        render(TEMPLATE, [SYSTEM, message])


def test_a_message_that_holds_itself_is_refused() -> None:
    message: dict[str, Any] = {"role": "user", "content": "x"}
    message["extra"] = [message]
    with pytest.raises(PromptError, match=r"messages\[0\] \(user\) is nested too deeply"):
        render(TEMPLATE, [message])
