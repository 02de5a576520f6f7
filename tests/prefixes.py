"""Replies whose prompts share prefixes, with a count of the prompt tokens that are computed."""

import numpy as np

from mlx_qwen3.engine.rows import Row
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.engine.scheduler import Scheduler

SAMPLED = SamplingParams(temperature=1, seed=5)
LIMIT = 10**8


def row(prompt, max_tokens=8):
    return Row([int(token) for token in prompt], SAMPLED, max_tokens)


def prompt_of(length, seed=0):
    return np.random.default_rng(seed).integers(4, 151, length).tolist()


class Counted(Scheduler):
    """Counts the tokens of prompts that are computed."""

    computed = 0

    def _run(self, prompt):
        before = prompt.left
        super()._run(prompt)
        self.computed += (before - prompt.left) * prompt.rows


def reply(model, store, prompt, max_tokens=8):
    """(the tokens of a reply, how many tokens of the prompt were computed)"""
    scheduler = Counted(model, model.config.vocab_size, prefixes=store)
    made = row(prompt, max_tokens)
    scheduler.add(made)
    for _, event in scheduler.run():
        assert not isinstance(event, Exception), event
    return made.tokens, scheduler.computed
