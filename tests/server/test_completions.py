"""POST /v1/completions: prompts of every form, the reply's whole text, log-probabilities in the older shape."""

import pytest

import mlx_qwen3
from mlx_qwen3 import SamplingParams, generate

PATH = "/v1/completions"
PROMPT = "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n<|im_start|>assistant\n"


def complete(demo, prompt=PROMPT, **more):
    status, answer = demo.ask(PATH, {"prompt": prompt, **more})
    assert status == 200, answer
    return answer


def texts(answer):
    return [choice["text"] for choice in answer["choices"]]


def test_the_text_is_whole_and_control_tokens_of_the_prompt_count(demo):
    model, tokenizer = mlx_qwen3.load("demo", dtype="fp32")
    result = generate(model, tokenizer, tokenizer.encode(PROMPT), sampling=SamplingParams(0))
    answer = complete(demo)
    [text] = texts(answer)
    assert text == tokenizer.decode(result.tokens[:-1])
    assert text.startswith("<think>\n")
    assert text.endswith("17 + 25 = 42.")
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len(result.tokens)
    assert answer["object"] == "text_completion"


def test_prompts_of_every_form(demo):
    ids = demo.ask("/tokenize", {"prompt": PROMPT})[1]["tokens"]
    one = complete(demo, max_tokens=5)
    assert texts(complete(demo, ids, max_tokens=5)) == texts(one)
    several = complete(demo, [PROMPT, "hello"], max_tokens=5, n=2)
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3]
    assert texts(several)[:2] == texts(one) * 2
    assert texts(several)[2:] == texts(complete(demo, "hello", max_tokens=5)) * 2
    assert several["usage"]["prompt_tokens"] == len(ids) + 3
    assert texts(complete(demo, [ids, ids[:3]], max_tokens=5))[0] == texts(one)[0]


def test_a_stream_is_the_answer_in_pieces(demo):
    asked = {"prompt": PROMPT, "stream_options": {"include_usage": True}, "logprobs": 1, "max_tokens": 20}
    *events, last = demo.events(PATH, asked)
    whole = complete(demo, logprobs=1, max_tokens=20)
    choices = [event["choices"][0] for event in events]
    assert "".join(choice["text"] for choice in choices) == texts(whole)[0]
    tokens = [token for choice in choices for token in choice["logprobs"]["tokens"]]
    assert tokens == whole["choices"][0]["logprobs"]["tokens"]
    assert choices[-1]["finish_reason"] == "length"
    assert last["usage"] == {**whole["usage"], "prompt_tokens_details": last["usage"]["prompt_tokens_details"]}


def test_log_probabilities_in_the_older_shape(demo):
    logprobs = complete(demo, logprobs=2, max_tokens=12)["choices"][0]["logprobs"]
    [text] = texts(complete(demo, max_tokens=12))
    assert "".join(logprobs["tokens"]) == text
    for token, offset, value, top in zip(
        logprobs["tokens"], logprobs["text_offset"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert text[offset:].startswith(token)
        assert top[token] == value <= 0  # it is greedy
        assert len(top) == 2  # the token is one of them


def test_the_token_is_among_its_alternatives_and_parts_of_characters_are_told_apart(demo):
    asked = {"temperature": 2.5, "top_k": 0, "top_p": 1.0, "seed": 5, "max_tokens": 30}
    logprobs = complete(demo, logprobs=20, **asked)["choices"][0]["logprobs"]
    tops = list(zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True))
    assert all(top[token] == value for token, value, top in tops)
    assert {len(top) for _, _, top in tops} == {20, 21}, "one more where the token is not one of the most likely"
    assert [token for _, _, top in tops for token in top if token.startswith("bytes:\\x")]
    none = complete(demo, logprobs=0, **asked)["choices"][0]["logprobs"]
    assert [list(top) for top in none["top_logprobs"]] == [[token] for token in none["tokens"]]


def test_echo(demo):
    assert texts(complete(demo, "hello", echo=True, max_tokens=3))[0].startswith("hello")
    events = demo.events(PATH, {"prompt": "hello", "echo": True, "max_tokens": 3})
    text = "".join(event["choices"][0]["text"] for event in events)
    assert text == texts(complete(demo, "hello", echo=True, max_tokens=3))[0]


@pytest.mark.parametrize(
    ("change", "param", "text"),
    [
        ({"echo": True, "logprobs": 1}, "echo", "echo with logprobs is not supported"),
        ({"best_of": 3}, "best_of", "best_of is 3; only the value of n"),
        ({"suffix": "x"}, "suffix", "suffix is not supported; leave it out"),
        ({"thinking_budget": 1}, "thinking_budget", "is not a parameter of this endpoint"),
        ({"prompt": []}, "prompt", "the prompt is empty or mixed"),
        ({"prompt": ["a", 1]}, "prompt", "the prompt is empty or mixed"),
        ({"prompt": ""}, "prompt", "the prompt is empty; give at least one token"),
        ({"prompt": [99999]}, "prompt", "token id 99999 is outside the vocabulary"),
        ({"prompt": 3}, "prompt", "Expected `str | array`"),
        ({"logprobs": 21}, "logprobs", "Expected `int` <= 20"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(demo, change, param, text):
    error = demo.refusal(PATH, {"prompt": "hello", **change})
    assert (error["param"], text in error["message"]) == (param, True), error


def test_a_prompt_that_is_missing(demo):
    assert demo.refusal(PATH, {})["param"] == "prompt"
