"""From parameters to options."""

import msgspec
import pytest

from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.files.hub import DEMO
from mlx_qwen3.server.options import chat_options, messages_of, text_options
from mlx_qwen3.server.requests import ChatRequest, CompletionRequest
from mlx_qwen3.text.tokenizer import Tokenizer

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(Checkpoint(DEMO))


def options(tokenizer, **given):
    raw = {"messages": HELLO, **given}
    return chat_options(msgspec.convert(raw, ChatRequest), raw, tokenizer)


@pytest.mark.parametrize(
    ("effort", "thinking", "budget"),
    [("none", False, None), ("minimal", None, 256), ("low", None, 1024), ("high", None, 16384), ("xhigh", None, None)],
)
def test_efforts(tokenizer, effort, thinking, budget):
    found = options(tokenizer, reasoning_effort=effort)
    assert (found.thinking, found.thinking_budget) == (thinking, budget)


def test_the_defaults_are_the_checkpoints(tokenizer):
    found = options(tokenizer)
    assert (found.sampling.temperature, found.max_tokens, found.thinking) == (0.0, None, None)
    assert found.literal_content


def test_every_setting_of_sampling_arrives(tokenizer):
    given = {"temperature": 0.5, "top_p": 0.9, "min_p": 0.1, "top_k": 7, "seed": 3}
    given |= {"presence_penalty": 1.5, "frequency_penalty": -0.5, "repetition_penalty": 1.1}
    found = options(tokenizer, **given, logit_bias={"5": -2}).sampling
    assert {name: getattr(found, name) for name in given} == given
    assert found.logit_bias == ((5, -2.0),)
    assert options(tokenizer, seed=-1, top_k=-1).sampling.seed == 2**64 - 1
    raw = {"prompt": "x", **given}
    found = text_options(msgspec.convert(raw, CompletionRequest), tokenizer).sampling
    assert {name: getattr(found, name) for name in given} == given


def test_a_developer_is_the_system():
    assert messages_of([{"role": "developer", "content": "x"}, *HELLO]) == [{"role": "system", "content": "x"}, *HELLO]
