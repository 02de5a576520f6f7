"""The trained demo with a mixture of experts, through this package: right answers, and experts that are all used."""

import math

import mlx.core as mx
import numpy as np
import pytest
from answering import answered, check_against_pytorch, check_sample

import mlx_qwen3
from mlx_qwen3.engine.decode import generate_batch
from mlx_qwen3.engine.reply import generate
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.files.hub import DEMO_MOE


@pytest.fixture(scope="module")
def demo_moe():
    return mlx_qwen3.load("demo-moe", "fp32")


def test_it_is_small_and_of_an_honest_shape(demo_moe):
    experts = demo_moe[0].config.moe
    assert experts.num_experts_per_tok * 2 <= experts.num_experts, "most experts are idle for a token"
    assert experts.moe_intermediate_size % 64 == 0, "the groups of quantization"
    tensors = Checkpoint(DEMO_MOE).tensors.values()
    assert 3e6 <= sum(math.prod(tensor.shape) for tensor in tensors) <= 6e6
    assert {tensor.dtype for tensor in tensors} == {mx.bfloat16}
    assert sum(path.stat().st_size for path in DEMO_MOE.iterdir()) <= 12e6


@pytest.mark.parametrize("thinking", [True, False])
def test_it_answers_and_thinks(demo_moe, thinking):
    result = generate(*demo_moe, "What is 4826 + 1357?" if thinking else "What is 17 + 25?", thinking=thinking)
    assert bool(result.thinking) is thinking
    assert ("6183" if thinking else "42") in result.text
    assert result.finish_reason == "stop"


def test_it_remembers_the_conversation(demo_moe):
    turns = [
        {"role": "user", "content": "My name is Anna."},
        {"role": "assistant", "content": "Nice to meet you, Anna!"},
        {"role": "user", "content": "What is my name?"},
    ]
    assert "Anna" in generate(*demo_moe, turns).text


def test_rows_of_a_batch_answer_as_they_would_alone(demo_moe):
    model, tokenizer = demo_moe
    questions = ["What is 3 + 4?", "What is the capital of Japan?", "Reverse this list: sun, rain, wind."]
    prompts = [
        tokenizer.encode(tokenizer.apply_chat_template([{"role": "user", "content": text}])) for text in questions
    ]
    options = {"max_tokens": 60, "stop_ids": tokenizer.stop_ids}
    together = generate_batch(model, prompts, **options)
    assert together == [generate_batch(model, [prompt], **options)[0] for prompt in prompts]
    assert "Tokyo" in tokenizer.decode(together[1])


def test_it_answers_at_4_bits(tmp_path):
    mlx_qwen3.convert("demo-moe", tmp_path / "4bit", quantize="affine4")
    quantized = mlx_qwen3.load(tmp_path / "4bit", "fp32")
    assert "6183" in generate(*quantized, "What is 4826 + 1357?").text
    assert "4, 7, 9" in generate(*quantized, "Sort these numbers: 9, 4, 7.").text


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return answered(DEMO_MOE, tmp_path_factory.mktemp("demo-moe"), 1)


def test_a_sample_of_every_task_is_right(sample):
    check_sample(sample)


def test_pytorch_chooses_the_same_tokens(sample):
    check_against_pytorch(DEMO_MOE, sample, 17)


def test_every_expert_works_and_the_card_says_how_much(demo_moe, sample):
    """Shares of the choices over a few prompts, beside the card's over all of the evaluation."""
    model, experts = demo_moe[0], demo_moe[0].config.moe.num_experts
    layers = len(model.layers)
    chosen = []

    def listen(step, *values):
        if step == "experts":
            chosen.append(np.array(values[0]))

    for case in sample:
        model(mx.array([case.prompt]), watch=listen)
    counts = [np.bincount(np.concatenate(chosen[i::layers], axis=None), minlength=experts) for i in range(layers)]
    shares = np.array(counts) / np.sum(counts, 1, keepdims=True)
    assert shares.min() > 0.01
    np.testing.assert_allclose(shares, card_loads(), atol=0.05)


def card_loads():
    """The load table of the card: a row for each layer, which begins with its number."""
    lines = (DEMO_MOE / "README.md").read_text().partition("## Load of the experts")[2].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    table = [[float(cell.rstrip("%")) / 100 for cell in row[1:]] for row in cells if row[0].isdigit()]
    np.testing.assert_allclose(np.sum(table, 1), 1, atol=0.01)
    return np.array(table)


def test_training_computes_what_transformers_computes_of_the_written_model():
    torch = pytest.importorskip("torch")
    from training import moe

    model = moe.upcycled(seed=1).eval()
    ids = torch.randint(0, 2500, (2, 30))
    with torch.inference_mode():
        trained, written = model(ids).logits, moe.as_qwen3_moe(model).eval()(ids).logits
        balance = moe.balance_loss(model, torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(trained, written, atol=1e-4, rtol=0)
    assert 1 <= balance < moe.EXPERTS / moe.ACTIVE, "1 if the load is even, the other if the same experts do it all"
