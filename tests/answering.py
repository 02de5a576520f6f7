"""A sample of a trained demo's tasks, answered as training/evaluate.py does."""

from pathlib import Path
from typing import Any

import pytest

from training import evaluate
from training.corpus import TASKS


def answered(source: Path, place: Path, examples: int) -> list[Any]:
    """Held-out examples of every task with thinking on. The converted model is written to `place`."""
    engine, tokenizer = evaluate.mlx_engine(str(source), str(place))
    cases = [case for case in evaluate.cases(tokenizer, TASKS, examples, seed=1) if case.thinking]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "GROUP", 4)  # in one group, every prompt would be padded to the longest
        evaluate.answer_all(cases, engine, tokenizer)
    return cases


def check_sample(sample: list[Any]) -> None:
    """A model card's table has hundreds of examples for each task; this is a quick check of it."""
    wrong = [(case.task, case.example.messages[-1]["content"], case.text) for case in sample if not case.right]
    assert len(wrong) <= 1, wrong
    assert {case.task for case in sample} == set(TASKS)


def check_against_pytorch(source: Path, sample: list[Any], answers: int) -> None:
    pytest.importorskip("torch")
    assert f"of {answers} of {answers} answers" in evaluate.against_transformers(str(source), sample, answers)
