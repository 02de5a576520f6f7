"""How the demo is trained: length, batches and the learning rate. corpus.py has the shares of the tasks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """The learning rate rises over the first `warmup` steps and falls linearly to 0 over the last `decay`."""

    steps: int = 13400
    batch: int = 4096  # tokens, padding included
    warmup: int = 100
    decay: int = 8000
    context: float = 0.6  # how often examples have a system prompt or earlier turns, relative to the evaluation's
    seed: int = 3
    chunk: int = 6144  # examples drawn, sorted by length and cut into batches at a time
    muon_rate: float = 4e-3  # hidden matrices; scaled to AdamW's step size
    adam_rate: float = 4e-3  # embedding, norms and routers
    balance: float = 0.0  # weight of the loss that keeps the load of the experts even; 0 without experts


DENSE = Recipe()
# from the trained dense demo: fewer steps, lower rates, and another order of examples
MOE = Recipe(steps=1100, decay=600, seed=5, muon_rate=2e-3, adam_rate=2e-3, balance=0.01)


def rate(recipe: Recipe, step: int) -> float:
    """The share of the full learning rate at a step."""
    return min((step + 1) / recipe.warmup, 1.0, (recipe.steps - step) / recipe.decay)
