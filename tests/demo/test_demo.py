"""The trained demo model: behaviour that random weights cannot show."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from answering import answered, check_against_pytorch, check_sample

import mlx_qwen3
from mlx_qwen3.engine.decode import generate_batch
from mlx_qwen3.engine.reply import generate, stream
from mlx_qwen3.engine.runner import prefill
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.files.hub import DEMO

ROOT = Path(__file__).parents[2]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def demo():
    return mlx_qwen3.load("demo", "fp32")


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_it_is_small_and_of_an_honest_shape(demo):
    config = demo[0].config
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.head_dim != config.hidden_size // config.num_attention_heads
    assert config.tie_word_embeddings
    assert config.context_length >= 2048
    tensors = Checkpoint(DEMO).tensors.values()
    assert 3e6 <= sum(math.prod(tensor.shape) for tensor in tensors) <= 6e6
    assert {tensor.dtype for tensor in tensors} == {mx.bfloat16}
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 12e6


def test_the_first_command_answers_with_no_network_and_says_what_it_is(tmp_path):
    """And it says how to get the real model, in one line."""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "MLX_QWEN3_BLAS": "none"}
    command = [sys.executable, str(ROOT / "generate.py"), "--prompt", "What is 17 + 25?"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "17 + 25 = 42" in result.stdout.rpartition("</think>")[2]
    note, _, statistics = result.stderr.strip().partition("\n")
    assert "demo" in note
    assert "--model Qwen/Qwen3-0.6B" in note
    assert "tok/s" in statistics
    assert "cut" not in statistics


@pytest.mark.parametrize("thinking", [None, True, False])
def test_thinking_is_separate(demo, thinking):
    result = generate(*demo, "What is 4826 + 1357?", thinking=thinking)
    assert bool(result.thinking) is (thinking is not False)
    assert "think>" not in result.text + result.thinking
    assert result.finish_reason == "stop"
    if thinking is not False:
        assert "6183" in result.text


def test_it_remembers_the_conversation(demo):
    turns = [user("My name is Anna."), assistant("Nice to meet you, Anna!"), user("What is my name?")]
    assert "Anna" in generate(*demo, turns).text


def test_it_calls_a_tool_and_reads_its_answer(demo):
    turns = [user("What is the weather in Rome?")]
    call = generate(*demo, turns, tools=[WEATHER]).text
    wanted = {"name": "get_weather", "arguments": {"city": "Rome"}}
    assert json.loads(call.strip().removeprefix("<tool_call>").removesuffix("</tool_call>")) == wanted
    turns += [
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": wanted}]},
        {"role": "tool", "content": '{"weather": "sunny", "temperature": 21}'},
    ]
    assert "21" in generate(*demo, turns, tools=[WEATHER]).text


def test_it_speaks_some_chinese(demo):
    assert "巴黎" in generate(*demo, "法国的首都是哪里？").text


def test_steps_join_to_the_reply(demo):
    steps = list(stream(*demo, "Sort these numbers: 9, 4, 7."))
    result = generate(*demo, "Sort these numbers: 9, 4, 7.")
    assert "".join(step.text for step in steps) == result.text
    assert "4, 7, 9" in result.text


def test_a_stop_string_ends_the_reply(demo):
    whole = generate(*demo, "What is 17 + 25?", thinking=False)
    short = generate(*demo, "What is 17 + 25?", thinking=False, stop="=")
    assert whole.text.startswith(short.text)
    assert "=" not in short.text
    assert short.finish_reason == "stop"


def test_a_second_turn_on_the_cache_of_the_first_is_what_a_fresh_one_gives(demo):
    model, tokenizer = demo
    first = [user("The code is 4711.")]
    turns = [*first, assistant("I will remember the code 4711."), user("What is the code?")]
    begun, whole = (tokenizer.encode(tokenizer.apply_chat_template(part)) for part in (first, turns))
    assert whole[: len(begun)] == begun
    cache = model.make_cache()
    model.hidden(mx.array([begun]), cache)
    continued = prefill(model, mx.array([whole[len(begun) :]]), cache)
    fresh = prefill(model, mx.array([whole]), model.make_cache())
    assert mx.allclose(continued, fresh, atol=1e-4)
    assert continued.argmax().item() == fresh.argmax().item()


def test_rows_of_a_batch_answer_as_they_would_alone(demo):
    model, tokenizer = demo
    questions = ["What is 3 + 4?", "What is the capital of Japan?", "Reverse this list: sun, rain, wind."]
    prompts = [tokenizer.encode(tokenizer.apply_chat_template([user(text)])) for text in questions]
    options = {"max_tokens": 60, "stop_ids": tokenizer.stop_ids}
    together = generate_batch(model, prompts, **options)
    assert together == [generate_batch(model, [prompt], **options)[0] for prompt in prompts]
    assert "Tokyo" in tokenizer.decode(together[1])


def test_it_is_greedy_unless_asked_and_samples_when_asked(demo):
    """Its generation_config says do_sample: false, so that the first command is always right."""
    assert len({tuple(generate(*demo, "hi").tokens) for _ in range(3)}) == 1
    hot = [generate(*demo, "hi", sampling=SamplingParams(2.0, 0, 1.0, seed=seed), max_tokens=20) for seed in range(8)]
    assert len({tuple(result.tokens) for result in hot}) > 1


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return answered(DEMO, tmp_path_factory.mktemp("demo"), 2)


def test_a_sample_of_every_task_is_right(sample):
    check_sample(sample)


def test_pytorch_chooses_the_same_tokens(sample):
    check_against_pytorch(DEMO, sample, 20)
