"""Two sides of a layer with experts: which choices of their routers differ, and the outputs of every expert.

B batch, L tokens, E experts, k of them for each token
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np

from .bounds import EXPERT

LOGITS, CHOSEN = "router_logits", "chosen_experts"
OUTPUTS = ("expert_gate_up", "expert_activation", "expert_down")  # (B, L, k, any)
PAIRED = ("expert_weights", *OUTPUTS)  # steps with a value for every token and each of its experts
AFTER = ("down", "output")  # steps of a token that depend on its choice


@dataclass(frozen=True)
class Choice:
    """A token that goes to `expert` on one side, and to `other` on the other side."""

    row: int
    token: int
    expert: int
    other: int


class Choices:
    """The choices of both sides for all tokens of a layer."""

    def __init__(self, ours: Mapping[str, Any], theirs: Mapping[str, Any], bound: float):
        """The steps of the layer by name; the experts of each token in the order of their numbers.

        `bound` is that of a step of this layer.
        """
        self._bound = bound
        self._logits, self._their_logits = (as_numpy(side[LOGITS]) for side in (ours, theirs))  # (B, L, E)
        self._chosen, self._their_chosen = (as_numpy(side[CHOSEN]).astype(int) for side in (ours, theirs))  # (B, L, k)

    @cached_property
    def _ours_only(self) -> np.ndarray:
        """(B, L, E) whether only our side chose the expert."""
        return self._marked(self._chosen) & ~self._marked(self._their_chosen)

    @cached_property
    def _theirs_only(self) -> np.ndarray:
        return self._marked(self._their_chosen) & ~self._marked(self._chosen)

    def _marked(self, chosen: np.ndarray) -> np.ndarray:
        marks = np.zeros(self._logits.shape, bool)
        np.put_along_axis(marks, chosen, True, axis=-1)
        return marks

    @property
    def differ(self) -> np.ndarray:
        """(B, L) whether the sides chose different experts."""
        return np.asarray(self._ours_only.any(-1))

    @cached_property
    def explained(self) -> np.ndarray:
        """(B, L) whether the choices differ, but no more than the difference of the scores makes possible.

        If our scores put expert i before j and theirs j before i, then theirs are apart by at most the sum of both
        differences. So only a near tie can be decided otherwise. Scores past their bound explain nothing.
        """
        difference, reference = squares(self._logits, self._their_logits)
        relative = relative_norm(difference.sum(), reference.sum())
        if relative is None or relative > self._bound:
            return np.zeros(self.differ.shape, bool)
        with np.errstate(invalid="ignore"):
            slack = 2 * np.abs(self._logits - self._their_logits).max(-1)
            best = np.where(self._theirs_only, self._their_logits, -np.inf).max(-1)
            worst = np.where(self._ours_only, self._their_logits, np.inf).min(-1)
            apart = best - worst > slack  # False for NaN, which the scores are blamed for
        return np.asarray(self.differ & ~apart)

    @property
    def shares(self) -> tuple[float, float]:
        """The share of all choices that differ, and of those that the difference of the scores explains."""
        pairs = self._ours_only.sum(-1)
        return float(pairs.sum() / self._chosen.size), float(pairs[self.explained].sum() / self._chosen.size)

    @property
    def first(self) -> Choice | None:
        """The first choice that differs without a near tie; if there is none, the first that differs."""
        for tokens in (self.differ & ~self.explained, self.differ):
            for row, token in np.argwhere(tokens).tolist():
                ours, theirs = self._ours_only[row, token].argmax(), self._theirs_only[row, token].argmax()
                return Choice(row, token, int(ours), int(theirs))
        return None

    def difference(self, a: Any, b: Any) -> tuple[float | None, int | None]:
        """Of a step in PAIRED, where both sides chose the same expert: (relative difference, None).

        If an expert by itself is past EXPERT times the bound: (its relative difference, its number), of the first one.
        """
        ours, theirs = self._common(self._chosen, self._their_chosen), self._common(self._their_chosen, self._chosen)
        a, b = as_numpy(a)[ours], as_numpy(b)[theirs]  # (pairs, any)
        difference, reference = squares(*(side.reshape(len(side), math.prod(side.shape[1:])) for side in (a, b)))
        if a.ndim > 1:  # a weight is one number, whose difference says little about its expert
            experts = self._chosen[ours]
            for expert in np.unique(experts).tolist():
                own = relative_norm(difference[experts == expert].sum(), reference[experts == expert].sum())
                if own is None or own > EXPERT.limit * self._bound:
                    return own, expert
        return relative_norm(difference.sum(), reference.sum()), None

    @staticmethod
    def _common(chosen: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(B, L, k) whether the other side chose the expert too."""
        return np.asarray((chosen[..., None] == others[..., None, :]).any(-1))


def choices_of(ours: Mapping[str, Any], theirs: Mapping[str, Any], bound: float) -> Choices | None:
    """None if the layer has no experts."""
    return Choices(ours, theirs, bound) if CHOSEN in ours and CHOSEN in theirs else None


def squares(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of squares along the last axis: of the difference, and of b.

    A NaN or infinity on both sides is not a difference. On one side it makes the first sum NaN or infinite.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        difference = np.square(np.where(same, 0, a - b), dtype=np.float64).sum(-1)
        return difference, np.square(np.where(np.isfinite(b), b, 0), dtype=np.float64).sum(-1)


def relative_norm(difference: float, reference: float) -> float | None:
    """||a - b|| / ||b|| from the sums of squares; None if it is not a number."""
    if not math.isfinite(difference):
        return None
    if difference == 0:
        return 0.0
    return math.sqrt(difference / reference) if reference else None


def as_numpy(x: Any) -> np.ndarray:
    """An array of MLX or torch, in float32."""
    return np.array(x.astype(mx.float32)) if isinstance(x, mx.array) else x.float().numpy()
