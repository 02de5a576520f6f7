"""Prompts and options become a request, or an error before any work."""

from collections import deque
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import VOCABULARY, write_checkpoint, write_tokenizer

from mlx_qwen3 import generate
from mlx_qwen3.engine.request import ReplyOptions, check_loaded, prepare
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.errors import PromptError, UsageError
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.model.load import load_model
from mlx_qwen3.text.tokenizer import Tokenizer

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """(config, tokenizer) of a checkpoint."""
    folder = write_tokenizer(write_checkpoint(tmp_path_factory.mktemp("chat"), vocab_size=VOCABULARY))
    return Checkpoint(folder).config, Tokenizer(folder)


def weather(city: str):
    """Tell the weather.

    Args:
        city: The city
    """


@pytest.mark.parametrize(("settings", "limit"), [({"max_new_tokens": 7}, 7), ({"max_length": 20}, 17), ({}, 61)])
def test_the_limit_of_generation_config_is_the_default(tmp_path, settings, limit):
    folder = write_checkpoint(tmp_path, vocab_size=VOCABULARY, max_position_embeddings=64)
    tokenizer = Tokenizer(write_tokenizer(folder, **settings))
    assert prepare(Checkpoint(folder).config, tokenizer, [1, 2, 3]).max_tokens == limit


def test_sampling_defaults_follow_thinking(chat):
    config, tokenizer = chat
    assert prepare(config, tokenizer, "?").sampling.temperature == 0.6
    assert prepare(config, tokenizer, "?", ReplyOptions(thinking=True)).sampling.top_p == 0.95
    assert prepare(config, tokenizer, "?", ReplyOptions(thinking=False)).sampling.top_p == 0.8


CONTEXT = 64
BAD_PROMPTS = {
    "too long": ("x" * 64, {}, PromptError, r"prompt has \d+ tokens, which fill the context of 64"),
    "no room": ("hi", {"max_tokens": 60}, PromptError, "max_tokens 60 exceed the context of 64; set max_tokens to"),
    "no tokens": ("hi", {"max_tokens": 0}, UsageError, "max_tokens is 0"),
    "empty": ([], {}, PromptError, "the prompt is empty"),
    "ids": ([1, 999], {}, PromptError, "token id 999 is outside the vocabulary of 307"),
    "a negative id": ([1, -1], {}, PromptError, "token id -1 is outside the vocabulary of 307"),
    "a huge id": ([1, 2**40], {}, PromptError, "token id 1099511627776 is outside the vocabulary of 307"),
    "sampling of another type": ("hi", {"sampling": {"top_k": 1}}, UsageError, "sampling is {'top_k': 1}; expected"),
    "negative ids": ([-1, 3], {}, PromptError, "token id -1 is outside"),
    "no role": ([{"content": "hi"}], {}, PromptError, r"messages\[0\] has no role; expected an object with a role"),
    "role of another type": ([{"role": 5}], {}, PromptError, r"messages\[0\] has no role"),
    "late mistake": ([*HI, {"content": "x"}], {}, PromptError, r"messages\[1\] has no role"),
    "texts": (
        ["hi", "there"],
        {},
        PromptError,
        "value of type str; a prompt is a string, a list of mess",
    ),
    "messages and text": ([*HI, "there"], {}, PromptError, "the prompt holds a value of type str"),
    "floats": ([1.0, 2.0], {}, PromptError, "the prompt holds a value of type float"),
    "booleans": ([True, False], {}, PromptError, "the prompt holds a value of type bool"),
    "one message": (HI[0], {}, PromptError, "the prompt is of type dict; a prompt is a string, a list of messages"),
    "bytes": (b"hi", {}, PromptError, "the prompt is of type bytes"),
    "nothing": (None, {}, PromptError, "the prompt is of type NoneType"),
    "a number": (5, {}, PromptError, "the prompt is of type int"),
    "array of floats": (np.ones(3), {}, PromptError, r"an array of shape \(3,\) and dtype float64; expected the token"),
    "array of rows": (np.ones((2, 3), int), {}, PromptError, r"an array of shape \(2, 3\) and dtype int64"),
    "array of booleans": (np.ones(3, bool), {}, PromptError, "dtype bool"),
    "empty array": (np.ones(0), {}, PromptError, "the prompt is empty"),
    "image": ([{"role": "user", "content": [{"type": "image_url"}]}], {}, PromptError, r"messages\[0\] \(user\) holds"),
    "no number of tokens": ("hi", {"max_tokens": 1.5}, UsageError, "max_tokens is 1.5; expected 1 or more"),
    "max_tokens of text": ("hi", {"max_tokens": "9"}, UsageError, "max_tokens is '9'; expected 1 or more"),
    "stop of numbers": ("hi", {"stop": [5]}, UsageError, r"stop is \[5\]; expected one string or several"),
    "one tool": ("hi", {"tools": weather}, UsageError, "tools is not a list"),
    "one schema": ("hi", {"tools": {"type": "function"}}, UsageError, "tools is not a list"),
    "tool of another kind": ("hi", {"tools": ["now"]}, PromptError, r"tools\[0\] is of type str"),
    "variables in a list": ("hi", {"template_args": ["x"]}, UsageError, "template_args is not an object"),
    "variable that is an option": (
        "hi",
        {"template_args": {"tools": []}},
        UsageError,
        "template_args may not set tools",
    ),
    "unknown variable": ("hi", {"template_args": {"x": 1}}, UsageError, "no variable 'x'; it reads enable_thinking"),
    "thinking twice": (
        "hi",
        {"thinking": True, "template_args": {"enable_thinking": False}},
        UsageError,
        "set enable_thinking to different values",
    ),
    "unknown template": ("hi", {"chat_template": "rag"}, UsageError, "there is no chat template 'rag'"),
    "continued text": ("hi", {"continue_final_message": True}, UsageError, "needs a list of messages"),
    "template of a raw prompt": (
        [1],
        {"chat_template": "default"},
        UsageError,
        "chat_template is a setting of the chat",
    ),
    "variables of a raw prompt": ([1], {"template_args": {}}, UsageError, "template_args is a setting of the chat"),
    "literal raw prompt": (
        [1],
        {"literal_content": True},
        UsageError,
        "literal_content is a setting of the chat template",
    ),
    "continued raw prompt": ([1], {"continue_final_message": True}, UsageError, "continue_final_message is a setting"),
    "thinking is a word": ("hi", {"thinking": "no"}, UsageError, "thinking is 'no'; expected True, False or None"),
    "literal is a word": (
        "hi",
        {"literal_content": "no"},
        UsageError,
        "literal_content is 'no'; expected True",
    ),
    "template is a number": ("hi", {"chat_template": 5}, UsageError, "chat_template is 5; expected a name, a file or"),
    "continued number": ("hi", {"continue_final_message": 5}, UsageError, "continue_final_message is 5; expected True"),
    "stop is a number": ("hi", {"stop": 5}, UsageError, r"stop is 5; expected one string or several"),
    "stop of None": ("hi", {"stop": ["a", None]}, UsageError, r"stop is \['a', None\]; expected one string"),
    "stop of bytes": ("hi", {"stop": b"ab"}, UsageError, r"stop is b'ab'; expected one string or several"),
    "stop that is read once": (
        "hi",
        {"stop": iter(["a"])},
        UsageError,
        r"stop is <list_iterator.*; expected one string",
    ),
    "empty stop": ("hi", {"stop": [""]}, UsageError, "a stop string is empty"),
    "tools of a raw prompt": ([1, 2], {"tools": []}, UsageError, "a raw prompt does not pass"),
    "thinking of a raw prompt": ([1, 2], {"thinking": True}, UsageError, "a raw prompt does not pass"),
}


@pytest.mark.parametrize(("prompt", "options", "error", "message"), BAD_PROMPTS.values(), ids=BAD_PROMPTS.keys())
def test_a_bad_prompt_fails_before_any_work(tmp_path, prompt, options, error, message):
    folder = write_tokenizer(write_checkpoint(tmp_path, vocab_size=VOCABULARY, max_position_embeddings=CONTEXT))
    with pytest.raises(error, match=message):
        prepare(Checkpoint(folder).config, Tokenizer(folder), prompt, ReplyOptions(**options))


@pytest.mark.parametrize(
    ("template", "thinking", "refused"),
    [
        ("{{ messages[0].content }}", True, True),  # Instruct-2507 never thinks
        ("{{ messages[0].content }}", False, False),
        ("{{ messages[0].content }}<think>\n", False, True),  # Thinking-2507 always does
        ("{{ messages[0].content }}<think>\n", True, False),
    ],
)
def test_thinking_that_the_template_cannot_switch_is_refused(chat, tmp_path, template, thinking, refused):
    tokenizer = Tokenizer(write_tokenizer(write_checkpoint(tmp_path, vocab_size=VOCABULARY), template))
    if refused:
        with pytest.raises(UsageError, match="cannot switch thinking"):
            prepare(chat[0], tokenizer, "?", ReplyOptions(thinking=thinking))
    else:
        prepare(chat[0], tokenizer, "?", ReplyOptions(thinking=thinking))


def test_a_tokenizer_of_a_larger_model_is_refused(tiny, tmp_path):
    tokenizer = Tokenizer(write_tokenizer(tmp_path))
    with pytest.raises(PromptError, match="the tokenizer has 261 ids, but the embedding 151 rows"):
        prepare(Checkpoint(tiny).config, tokenizer, "?")


IDS = {
    "list": [1, 2, 3],
    "tuple": (1, 2, 3),
    "deque": deque([1, 2, 3]),
    "range": range(1, 4),
    "NumPy": np.array([1, 2, 3]),
    "small integers": np.array([1, 2, 3], np.uint8),
    "list of NumPy": [np.int64(1), np.int32(2), 3],
    "one row": np.array([[1, 2, 3]]),
    "MLX": mx.array([1, 2, 3]),
    "one row of MLX": mx.array([[1, 2, 3]], mx.uint32),
}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_token_ids_may_be_any_sequence_or_array(chat, ids):
    request = prepare(*chat, ids)
    assert request.ids == [1, 2, 3]
    assert {type(token) for token in request.ids} == {int}


class Message(SimpleNamespace):
    """As the OpenAI client's messages: an object with `model_dump`."""

    def model_dump(self):
        return vars(self)


MESSAGES = {
    "text": "hi",
    "generator": (message for message in HI),
    "tuple": tuple(HI),
    "objects": [Message(role="user", content="hi", tool_calls=None)],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}],
}


@pytest.mark.parametrize("prompt", MESSAGES.values(), ids=MESSAGES)
def test_a_conversation_may_come_in_any_form(chat, prompt):
    expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert prepare(*chat, prompt).ids == chat[1].encode(expected)


def test_the_options_reach_the_template(chat):
    source = "{{ messages[-1].content }}|{{ tools[0].function.name }}|{{ style }}"
    options = ReplyOptions(tools=[weather], chat_template=source, template_args={"style": "brief"})
    assert prepare(*chat, HI, options).ids == chat[1].encode("hi|weather|brief")
    options = ReplyOptions(continue_final_message=True)
    assert prepare(*chat, [*HI, {"role": "assistant", "content": "So"}], options).ids == chat[1].encode(
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nSo"
    )


def test_thinking_may_be_switched_as_a_variable_too(chat):
    by_option, by_variable = (
        prepare(*chat, "?", options)
        for options in (ReplyOptions(thinking=False), ReplyOptions(template_args={"enable_thinking": False}))
    )
    assert by_option.ids == by_variable.ids != prepare(*chat, "?").ids
    assert by_option.sampling.top_p == by_variable.sampling.top_p == 0.8


def test_a_prefilled_think_block_is_open(chat):
    def opens(content):
        messages = [*HI, {"role": "assistant", "content": content}]
        return prepare(*chat, messages, ReplyOptions(continue_final_message=True)).opens_thinking

    assert [opens(text) for text in ("", "So", "<think>\nSo", "<think>a</think>b")] == [False, False, True, False]


def test_settings_of_numpy_are_numbers(chat):
    options = ReplyOptions(max_tokens=np.int64(5), sampling=SamplingParams(temperature=0))
    limit = prepare(*chat, "hi", options).max_tokens
    assert limit == 5
    assert type(limit) is int  # which has methods that NumPy's lacks


def test_options_that_are_a_dictionary_are_refused(chat):
    with pytest.raises(UsageError, match="options is of type dict; expected ReplyOptions"):
        prepare(*chat, "hi", {"max_tokens": 5})


def test_what_load_does_not_return_is_refused(chat, tiny):
    model, tokenizer = load_model(tiny), chat[1]
    check_loaded(model, tokenizer)
    for given, name in (
        ((tokenizer, model), "model"),
        ((model, None), "tokenizer"),
        ((model, tokenizer, "x"), "draft"),
    ):
        with pytest.raises(UsageError, match=f"^{name} is of type .*; `load` returns"):
            check_loaded(*given)
    with pytest.raises(UsageError, match="model is of type Tokenizer"):
        generate(tokenizer, model, "hi")


def test_no_stop_strings_may_be_said_as_none():
    assert ReplyOptions(stop=None).stops == ReplyOptions(stop=[]).stops == ReplyOptions().stops == ()
