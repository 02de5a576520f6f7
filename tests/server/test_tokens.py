"""POST /tokenize and /detokenize."""

import pytest
from serving import serving


def test_text_to_ids_and_back(demo):
    status, answer = demo.ask("/tokenize", {"prompt": "hello <|im_end|>", "return_token_strs": True})
    assert (status, answer["count"], answer["max_model_len"]) == (200, len(answer["tokens"]), 4096)
    assert "".join(answer["token_strs"]) == "hello <|im_end|>"
    assert demo.ask("/detokenize", {"tokens": answer["tokens"]}) == (200, {"prompt": "hello <|im_end|>"})


def test_a_conversation_is_what_a_chat_is_given(demo):
    messages = [{"role": "user", "content": "hello"}]
    tokens = demo.ask("/tokenize", {"messages": messages})[1]["tokens"]
    assert len(tokens) == demo.chat("hello", max_tokens=1)["usage"]["prompt_tokens"]
    closed = demo.ask("/tokenize", {"messages": messages, "add_generation_prompt": False})[1]["tokens"]
    assert closed == tokens[: len(closed)]
    assert len(closed) < len(tokens)
    quiet = demo.ask("/tokenize", {"messages": messages, "enable_thinking": False})[1]["tokens"]
    assert "<think>" in demo.ask("/detokenize", {"tokens": quiet})[1]["prompt"]


@pytest.mark.parametrize(
    ("path", "body", "param", "text"),
    [
        ("/tokenize", {}, "prompt", "give either prompt or messages"),
        ("/tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt", "give either"),
        ("/tokenize", {"prompt": "x", "enable_thinking": True}, "enable_thinking", "belongs to the chat template"),
        ("/tokenize", {"prompt": "x", "add_special_tokens": True}, "add_special_tokens", "is not a parameter"),
        ("/detokenize", {"tokens": [9999]}, "tokens", "token id 9999 is not one of the tokenizer's 2526"),
        ("/detokenize", {}, "tokens", "missing required field"),
    ],
)
def test_what_is_refused(demo, path, body, param, text):
    error = demo.refusal(path, body)
    assert (error["param"], text in error["message"]) == (param, True), error


def test_another_chat_template(tmp_path):
    template = tmp_path / "plain.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}!{% endfor %}")
    with serving(chat_template=str(template)) as served:
        messages = [{"role": "user", "content": "hello"}]
        tokens = served.ask("/tokenize", {"messages": messages})[1]["tokens"]
        assert served.ask("/detokenize", {"tokens": tokens})[1]["prompt"] == "hello!"
        assert served.chat("hello", max_tokens=1)["usage"]["prompt_tokens"] == len(tokens)
        tool = {"type": "function", "function": {"name": "f"}}
        assert served.chat("hello", max_tokens=1, tools=[tool])["usage"]["prompt_tokens"] == len(tokens)
