"""Penalties against transformers' processor and vLLM's formula; which tokens each of them counts."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.engine.penalties import Penalties
from mlx_qwen3.engine.sampler import Sampler
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.errors import UsageError

V = 500
GREEDY = {"temperature": 0.0}


def logits(rows: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, (rows, V)).astype(np.float32)


def history(rows: int = 3, length: int = 40) -> np.ndarray:
    return np.random.default_rng(1).integers(0, V, (rows, length))


def vllm(scores, prompt, reply, repetition=1.0, presence=0.0, frequency=0.0):
    """apply_penalties of vLLM written out for one row, in float64."""
    scores = scores.astype(np.float64)
    counts = np.bincount(reply, minlength=len(scores)) if len(reply) else np.zeros(len(scores))
    seen = (counts > 0) | np.isin(np.arange(len(scores)), prompt)
    scores = np.where(seen, np.where(scores > 0, scores / repetition, scores * repetition), scores)
    return scores - frequency * counts - presence * (counts > 0)


@pytest.mark.parametrize("penalty", [1.3, 1.05, 0.8])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_repetition_is_that_of_transformers_in_float32(penalty, dtype):
    torch = pytest.importorskip("torch")
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    scores, said = mx.array(logits()).astype(dtype), history()
    values = torch.tensor(np.array(scores.astype(mx.float32)))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(said), values)
    penalties = Penalties([SamplingParams(repetition_penalty=penalty)], said[:, :25].tolist(), V)
    penalties.add(mx.array(said[:, 25:]))
    found = penalties(scores)
    assert found.dtype == mx.float32
    np.testing.assert_allclose(np.array(found), expected.numpy(), rtol=1e-6)


def test_a_penalty_is_not_rounded_to_bf16():
    """24 at 1.05 is 22.857, and in bf16 22.875: with 22.87 beside it another token wins."""
    row = mx.array([[24.0, 22.875, 0.0]]).astype(mx.bfloat16)
    sampler = Sampler(SamplingParams(**GREEDY, repetition_penalty=1.05), [[0]], 3)
    assert sampler.next(row, 0).tolist() == [1]


@pytest.mark.parametrize(
    "settings",
    [
        {"presence": 1.5},
        {"frequency": 0.7},
        {"presence": -2.0, "frequency": -0.3},
        {"repetition": 1.2, "presence": 0.4, "frequency": 0.1},
    ],
    ids=str,
)
def test_presence_and_frequency_are_those_of_vllm(settings):
    prompts, replies = history(), np.random.default_rng(2).integers(0, 60, (3, 30))
    params = SamplingParams(**{f"{name}_penalty": value for name, value in settings.items()})
    penalties = Penalties([params], prompts.tolist(), V)
    penalties.add(mx.array(replies[:, :1]))
    penalties.add(mx.array(replies[:, 1:]))
    expected = [vllm(*row, **settings) for row in zip(logits(), prompts, replies, strict=True)]
    np.testing.assert_allclose(np.array(penalties(mx.array(logits()))), expected, rtol=1e-5, atol=1e-6)


def test_which_tokens_count():
    """The prompt counts for repetition alone; frequency counts every occurrence, presence and repetition one."""
    row = mx.array([[4.0, 4.0, 4.0, -4.0]])

    def after(**settings):
        penalties = Penalties([SamplingParams(**settings)], [[0, 0, 3]], 4)
        penalties.add(mx.array([[1, 1, 1]]))
        return penalties(row).tolist()[0]

    assert after(repetition_penalty=2.0) == [2, 2, 4, -8]
    assert after(presence_penalty=0.5) == [4, 3.5, 4, -4]
    assert after(frequency_penalty=0.5) == [4, 2.5, 4, -4]


def test_every_row_has_its_own_penalties():
    params = [
        SamplingParams(**GREEDY),
        SamplingParams(**GREEDY, presence_penalty=2.0),
        SamplingParams(**GREEDY, frequency_penalty=1.0, repetition_penalty=1.4),
    ]
    scores = mx.array(np.tile(np.linspace(3, 0, 30, dtype=np.float32), (3, 1)))
    prompts = [[0], [1], [2]]
    batch, alone = Sampler(params, prompts, 30), [Sampler([p], [q], 30) for p, q in zip(params, prompts, strict=True)]
    replies = [batch.next(scores, position).tolist() for position in range(25)]
    singly = [[one.next(scores[:1], position).item() for position in range(25)] for one in alone]
    assert [list(reply) for reply in zip(*replies, strict=True)] == singly
    assert 1 == len(set(singly[0])) < len(set(singly[1])) != len(set(singly[2]))


def test_guesses_count_for_the_positions_after_them():
    params = SamplingParams(**GREEDY, frequency_penalty=1.0)
    scores = np.tile(np.linspace(3, 0, 30, dtype=np.float32), (4, 1))
    plain = Sampler(params, [[0]], 30)
    reply = [plain.next(mx.array(scores[:1]), position).item() for position in range(12)]
    checked = Sampler(params, [[0]], 30)
    text = [checked.next(mx.array(scores[:1]), 0).item()]
    while len(text) < 12:
        guesses = reply[len(text) : len(text) + 3]
        text += checked.check(mx.array(scores[: len(guesses) + 1]), len(text), [text[-1], *guesses])
    assert text[:12] == reply
    assert len(set(reply)) > 4


def test_a_bias_is_added_to_single_ids_of_its_own_row():
    params = [SamplingParams(0, logit_bias={7: 2.5, 3: -100}), SamplingParams(0)]
    values = logits(2)
    found = np.array(Penalties(params, [[1], [1]], V)(mx.array(values)))
    values[0, 7] += 2.5
    values[0, 3] -= 100
    assert np.array_equal(found, values)
    assert SamplingParams(logit_bias=((3, -100), (7, 2.5))).logit_bias == params[0].logit_bias


def test_a_bias_decides_with_drafts_too():
    sampler = Sampler(SamplingParams(0, logit_bias={11: 100}), [[1]], V)
    assert sampler.next(mx.array(logits(1)), 0).item() == 11
    assert sampler.check(mx.array(logits(3)), 1, [11, 11, 11]) == [11, 11, 11]
    assert sampler.fork(100, "a draft").next(mx.array(logits(1)), 4).item() == 11


@pytest.mark.parametrize("bias", [{1: 101}, {-1: 1}, {"a": 1}, 3, {2: float("nan")}])
def test_a_wrong_bias(bias):
    with pytest.raises(UsageError, match=r"logit_bias .*expected token ids with numbers from -100 to 100"):
        SamplingParams(logit_bias=bias)
