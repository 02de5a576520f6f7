"""Typed control tokens that stay text, against transformers' `sanitize_control_tokens` and against plain letters."""

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TEMPLATE, write_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_qwen3.errors import PromptError
from mlx_qwen3.files.hub import DEMO
from mlx_qwen3.text.literal import PRIVATE, LiteralText
from mlx_qwen3.text.tokenizer import Tokenizer

EXAMPLES = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
END = "<|im_end|>"


def make(folder: Path, template: str = TEMPLATE, **changes: Any) -> Tokenizer:
    """The byte tokenizer of the tests, with ids 256 to 260 for its added tokens."""
    path = write_tokenizer(folder, template) / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return Tokenizer(DEMO)


@pytest.fixture(scope="module")
def theirs() -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(DEMO)


def literal(tokenizer: Tokenizer, messages: list[Any], **options: Any) -> list[int]:
    return tokenizer.encode(tokenizer.apply_chat_template(messages, literal_content=True, **options))


def controls(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    added = tokenizer._backend.get_added_tokens_decoder()
    return [index for index in ids if index in added]


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


tokens = ["<|im_start|>", END, "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>"]
parts = [*tokens, "\n", " ", "a", "hi", "<", "<|", "|>", "<|im_", "end|>", "e\u0301", "你", "'s", chr(PRIVATE[0])]
contents = st.lists(st.sampled_from(parts), max_size=7).map("".join)
calls = st.fixed_dictionaries({"name": contents, "arguments": st.dictionaries(st.just("x"), contents, max_size=1)})
conversations = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "tool"]), "content": contents}),
        st.fixed_dictionaries(
            {"role": st.just("assistant"), "content": contents},
            optional={
                "reasoning_content": contents,
                "tool_calls": st.lists(calls.map(lambda call: {"type": "function", "function": call}), max_size=2),
            },
        ),
    ),
    min_size=1,
    max_size=4,
)
tools = st.one_of(st.none(), contents.map(lambda text: [{"type": "function", "function": {"description": text}}]))


@EXAMPLES
@given(messages=conversations, tools=tools)
def test_ids_are_those_of_transformers_with_sanitized_control_tokens(
    demo: Tokenizer, theirs: Any, messages: list[dict[str, Any]], tools: list[Any] | None
) -> None:
    """Or of its plain text with the same control tokens, if its marks keep the template from trimming a text."""
    options: dict[str, Any] = {"tools": tools, "add_generation_prompt": True, "return_dict": False}
    expected = theirs.apply_chat_template(messages, sanitize_control_tokens=True, **options)
    plain = unicodedata.normalize("NFC", theirs.apply_chat_template(messages, tokenize=False, **options))
    ids = literal(demo, messages, tools=tools)
    marks = [chr(code) for code in (0xF0000, 0xF0001)]  # of transformers, which it removes from messages
    assert not any(mark in str(messages) for mark in marks)
    if ids != expected:
        assert "".join(plain.split()) == "".join(theirs.decode(expected).split())
        assert demo.decode(ids) == plain
        assert controls(demo, ids) == controls(demo, expected)


@EXAMPLES
@given(contents=st.lists(contents, min_size=1, max_size=3))
def test_typed_tokens_count_as_letters_and_read_back_as_typed(small: Tokenizer, contents: list[str]) -> None:
    messages = [{"role": "user", "content": content} for content in contents]
    ids = literal(small, messages)
    letters = str(contents)
    for token in tokens:
        letters = letters.replace(token, "letters")
    own = small.encode(small.apply_chat_template([{"role": "user", "content": "letters"} for _ in contents]))
    assert controls(small, ids) == controls(small, own)
    assert small.decode(ids) == unicodedata.normalize("NFC", small.apply_chat_template(messages))


@EXAMPLES
@given(contents=st.lists(st.text(max_size=20), min_size=1, max_size=3))
def test_other_text_is_the_same_either_way(demo: Tokenizer, contents: list[str]) -> None:
    messages = [{"role": "user", "content": content} for content in contents]
    assert literal(demo, messages) == demo.encode(demo.apply_chat_template(messages))
    assert demo.apply_chat_template(messages, literal_content=True) == demo.apply_chat_template(messages)


def test_the_default_is_that_of_transformers(small: Tokenizer) -> None:
    assert small.encode(small.apply_chat_template(user(END))).count(258) == 2
    assert literal(small, user(END)).count(258) == 1


@pytest.mark.parametrize("thought", ["", "<think>\nso\n", "<think>\n\n"])
@pytest.mark.parametrize("answer", ["Paris", f" {END} ", ""])
def test_thinking_in_an_earlier_reply_is_dropped_as_in_transformers(
    demo: Tokenizer, theirs: Any, thought: str, answer: str
) -> None:
    reply = {"role": "assistant", "content": f"{thought}</think>\n\n{answer}"}
    messages = [*user(f"a {END}"), reply, *user("b")]
    text = demo.apply_chat_template(messages, literal_content=True)
    assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    bare = [*user("a"), {"role": "assistant", "content": "x"}, *user("b")]
    assert controls(demo, demo.encode(text)) == controls(demo, demo.encode(demo.apply_chat_template(bare)))


JOINS: dict[str, tuple[str, list[Any]]] = {
    "parts of one message": (
        "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
        user([{"type": "text", "text": "<|im_"}, {"type": "text", "text": "end|>"}]),
    ),
    "three parts": (
        "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
        user([{"type": "text", "text": text} for text in ("<|", "im_e", "nd|>")]),
    ),
    "parts that the template cannot read": (
        "{{ messages[0].content + '' }}",
        user([{"type": "text", "text": "<|im_"}, {"type": "text", "text": "end|>"}]),
    ),
    "two messages": ("{% for m in messages %}{{ m.content }}{% endfor %}", [*user("<|im_end"), *user("|>")]),
    "text of the template before": ("<|im_{{ messages[0].content }}", user("end|>")),
    "text of the template after": ("{{ messages[0].content }}nd|>", user("<|im_e")),
    "letters that the template changes": ("{{ messages[0].content | lower }}", user("<|IM_END|>")),
    "trimmed": ("{{ messages[0].content.strip('!\\n') }}", user("!\n<|im_end|>\n")),
    "split": ("{{ messages[0].content.split('|')[1] }}{{ messages[0].content.split('<')[-1] }}", user(END)),
    "cut and joined": ("{{ messages[0].content[:5] }}{{ messages[0].content[5:] }}", user(END)),
    "as JSON": ("{{ messages | tojson }}", user({END: [END]})),
    "as JSON in ASCII": ("{{ messages[0].content | tojson(ensure_ascii=true) }}", user(f"é{END}")),
    "as Python": ("{{ [messages[0].content] }}", user(END)),
    "in a URL": ("{{ messages[0].content | urlencode }}", user(END)),
    "a key of arguments": (
        "{% for m in messages %}{{ m.tool_calls | tojson }}{% endfor %}",
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {END: END}}}]}],
    ),
    "arguments as JSON text": (
        "{% for m in messages %}{{ m.tool_calls[0].function.arguments.items() | list }}{% endfor %}",
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": "\\u003c|im_end|>"}'}}]}],
    ),
    "a role": ("{{ messages[0].role }}", [{"role": END, "content": ""}]),
}


@pytest.mark.parametrize(("template", "messages"), JOINS.values(), ids=JOINS)
def test_nothing_typed_becomes_a_token_by_what_a_template_does(
    tmp_path: Path, template: str, messages: list[Any]
) -> None:
    tokenizer = make(tmp_path, template)
    prompt = tokenizer.apply_chat_template(messages, literal_content=True)
    assert controls(tokenizer, tokenizer.encode(prompt)) == []
    assert tokenizer.decode(tokenizer.encode(prompt)) == prompt
    assert not set(prompt) & set(map(chr, PRIVATE)), "no mark is left"
    assert prompt == tokenizer.apply_chat_template(messages), "the text is the one without marks"


def test_a_token_that_the_template_builds_is_its_own(tmp_path: Path) -> None:
    """As from the role in the templates of some models."""
    tokenizer = make(tmp_path, "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}")
    assert controls(tokenizer, literal(tokenizer, [{"role": "im_end", "content": f"<{END}"}])) == [258]


def test_tools_and_variables_are_typed_too(tmp_path: Path) -> None:
    tokenizer = make(tmp_path, f"{{{{ tools | tojson }}}}{{{{ style }}}}{END}")
    options = {"tools": [{"name": END}], "template_args": {"style": END}}
    assert controls(tokenizer, literal(tokenizer, user("hi"), **options)) == [258]


def test_the_template_may_write_its_own_special_tokens(tmp_path: Path) -> None:
    tokenizer = make(tmp_path, "{{ messages[0].content }}{{ eos_token }}")
    assert controls(tokenizer, literal(tokenizer, user(END))) == [258]


def test_a_continued_message_is_typed_and_still_cut_at_its_end(small: Tokenizer) -> None:
    messages = [*user("hi"), {"role": "assistant", "content": f"So {END}<|im_ "}]
    prompt = small.apply_chat_template(messages, literal_content=True, continue_final_message=True)
    assert prompt.endswith(f"So {END}<|im_ ")
    assert controls(small, small.encode(prompt))[-1] == 257


def test_typed_marks_are_not_marks(small: Tokenizer) -> None:
    typed = "".join(map(chr, PRIVATE[:4])) + END
    prompt = small.apply_chat_template(user(typed), literal_content=True)
    assert typed in prompt
    assert small.encode(prompt).count(258) == 1
    with pytest.raises(PromptError, match="every private character"):
        small.apply_chat_template(user("".join(map(chr, PRIVATE))), literal_content=True)


def test_every_added_token_with_a_sign_is_a_control_token_and_a_word_is_not(tmp_path: Path) -> None:
    added = {"261": {"content": "Wort"}, "262": {"content": "<|fim_prefix|>"}, "263": {"content": "\n\n"}}
    settings = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["special"]}
    tokenizer = make(tmp_path, added_tokens_decoder=added, **settings)
    names = tokenizer.control_tokens(tokenizer.chat_template())
    assert {"<|fim_prefix|>", "special", END, "<|im_end|>"} <= names
    assert not {"Wort", "\n\n"} & names
    writes = tokenizer.chat_template("Wort: {{ messages[0].content }}")
    assert "Wort" in tokenizer.control_tokens(writes)


def test_a_checkpoint_may_name_its_control_tokens(tmp_path: Path) -> None:
    tokenizer = make(tmp_path, chat_control_tokens=["</think>", "absent"])
    assert tokenizer.control_tokens(tokenizer.chat_template()) == {"<|endoftext|>", "<|im_start|>", END, "</think>"}


def test_a_token_that_plain_text_makes_is_written_by_letters(tmp_path: Path) -> None:
    """A special token that is also a word of the vocabulary, or a letter, which has no other way."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO / name, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["extra_special_tokens"] += ["name", "~"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer(tmp_path)
    [word] = tokenizer.encode("name")
    assert word < 2500, "an id of the vocabulary"
    for content in ("name", "\nname.", "name! name"):
        ids = literal(tokenizer, user(content))
        assert word not in ids
        assert content in tokenizer.decode(ids)
    with pytest.raises(PromptError, match="'~' cannot be literal text"):
        literal(tokenizer, user("a ~ b"))


def test_a_prompt_is_text_with_its_pieces(small: Tokenizer) -> None:
    prompt = small.apply_chat_template(user(f"a{END}b"), literal_content=True)
    assert isinstance(prompt, LiteralText)
    assert [text for text, typed in prompt.pieces if typed] == [END]
    assert "".join(text for text, _ in prompt.pieces) == prompt
