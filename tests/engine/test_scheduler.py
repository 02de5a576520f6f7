"""Rows that come and go at random get the tokens that they get alone."""

from types import SimpleNamespace

import pytest
from schedules import QUESTIONS, Alone, Broken, Schedule

from mlx_qwen3 import load
from mlx_qwen3.engine import batch


@pytest.fixture(scope="module")
def demo():
    model, tokenizer = load("demo", dtype="fp32")
    prompts = [
        tokenizer.encode(tokenizer.apply_chat_template([{"role": "user", "content": text}])) for text in QUESTIONS
    ]
    return (model, tokenizer.size, tokenizer.stop_ids), prompts


@pytest.fixture(scope="module")
def alone(demo):
    return Alone(*demo[0])


def check(schedule: Schedule, alone: Alone) -> None:
    schedule.run()
    for job, row in schedule.rows:
        assert row.ended
        expected = alone(job)
        heard = tuple(schedule.heard.get(row, ()))
        assert heard == expected[: len(heard)], (schedule.seed, job)
        assert row in schedule.errors or row in schedule.cancelled or heard == expected
        assert isinstance(schedule.errors.get(row, Broken()), Broken)


@pytest.mark.parametrize("ahead", [False, True], ids=["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize("seed", range(12))
def test_a_row_gets_the_tokens_that_it_gets_alone(demo, alone, seed, ahead, monkeypatch):
    """On a GPU a step is handed over before anybody knows whether a row that has ended still needs it."""
    if ahead:
        monkeypatch.setattr(batch, "kernels", SimpleNamespace(on_gpu=lambda: True))
    check(Schedule(*demo[0], demo[1], seed), alone)


@pytest.mark.slow
@pytest.mark.parametrize("thousand", range(2))
def test_in_thousands_of_schedules_too(demo, alone, thousand):
    for seed in range(1000 * (thousand + 1), 1000 * (thousand + 2)):
        check(Schedule(*demo[0], demo[1], seed), alone)
