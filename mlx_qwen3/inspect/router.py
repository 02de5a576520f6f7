"""The router of a layer with experts: which experts its tokens went to, how evenly, and how close other choices were.

B batch, L tokens, E experts, k of them for each token
"""

import math
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx
import numpy as np

from ..compare.experts import CHOSEN, LOGITS
from .rules import NORMAL, UNUSUAL, Rules, Verdict

WEIGHTS = "expert_weights"
STEPS = (LOGITS, CHOSEN, WEIGHTS)
NONE = -1  # in place of an expert that does not exist
# Bounds of a histogram of loads, as multiples of the load that an even router would give every expert
LOW, HIGH = 0.5, 2.0


@dataclass(frozen=True)
class Router:
    """What the router of one layer did for B * L tokens."""

    experts: int  # E
    chosen: np.ndarray  # (B, L, k) numbers of experts
    weights: np.ndarray  # (B, L, k) what the outputs of these experts are multiplied by
    following: np.ndarray  # (B, L) the best expert that was not chosen; NONE if all were
    # (B, L, 2) the smallest probability of a chosen expert, and the largest of one that was not chosen
    probabilities: np.ndarray

    @property
    def tokens(self) -> int:
        return self.following.size

    @property
    def for_each(self) -> int:
        """k, the experts of each token."""
        return int(self.chosen.shape[-1])

    @property
    def even(self) -> float:
        """The tokens of every expert, if all had the same number."""
        return self.tokens * self.for_each / self.experts

    @cached_property
    def load(self) -> np.ndarray:
        """The tokens of each expert, (E,)."""
        return np.bincount(self.chosen.reshape(-1), minlength=self.experts)

    @cached_property
    def mean_weights(self) -> np.ndarray:
        """The mean weight of each expert for its tokens, (E,); 0 without tokens."""
        sums = np.bincount(self.chosen.reshape(-1), self.weights.reshape(-1), self.experts)
        return sums / np.maximum(self.load, 1)

    @property
    def busiest(self) -> int:
        return int(self.load.argmax())

    @property
    def busiest_share(self) -> float:
        """The share of the tokens that the busiest expert gets, 0 to 1."""
        return float(self.load.max()) / self.tokens

    @property
    def unused(self) -> list[int]:
        """The experts that no token went to."""
        return np.flatnonzero(self.load == 0).tolist()

    @property
    def entropy(self) -> float:
        """Of the load, in nats: log k if all tokens have the same experts, log E if all experts have the same load."""
        shares = self.load[self.load > 0] / self.load.sum()
        return float(-(shares * np.log(shares)).sum())

    @property
    def evenness(self) -> float:
        """The entropy on a scale from 0, all tokens have the same experts, to 1, all experts have the same load."""
        least, most = math.log(self.for_each), math.log(self.experts)
        return 1.0 if self.for_each == self.experts else max((self.entropy - least) / (most - least), 0.0)

    @property
    def histogram(self) -> tuple[int, int, int, int]:
        """How many experts have no token, less than LOW times the even load, up to HIGH times, and more."""
        low, high = LOW * self.even, HIGH * self.even
        used = self.load > 0
        counts = (~used, used & (self.load < low), used & (self.load >= low) & (self.load <= high), self.load > high)
        none, below, around, above = (int(count.sum()) for count in counts)
        return none, below, around, above

    @property
    def margins(self) -> np.ndarray:
        """Of each token (B, L): the probability of its last chosen expert less that of the next one."""
        return self.probabilities[..., 0] - self.probabilities[..., 1]

    def near_ties(self, nearness: float) -> int:
        """How many tokens have a next expert that is less probable by at most this share of the last chosen one."""
        near = self.margins <= nearness * self.probabilities[..., 0]  # False for NaN
        return int((near & (self.following != NONE)).sum())

    @property
    def closest(self) -> tuple[int, int] | None:
        """(row, token) of the smallest margin; None if there is none."""
        margins = np.where(self.following == NONE, np.nan, self.margins)
        if np.isnan(margins).all():
            return None
        row, token = np.unravel_index(np.nanargmin(margins), margins.shape)
        return int(row), int(token)


class RouterSteps:
    """Collects the steps of one layer's router, in passes of several tokens."""

    def __init__(self) -> None:
        self._logits = np.empty(0)
        self._chosen: list[np.ndarray] = []
        self._weights: list[np.ndarray] = []
        self._following: list[np.ndarray] = []
        self._probabilities: list[np.ndarray] = []

    def add(self, step: str, array: mx.array) -> None:
        """One of STEPS, in the order of the pass."""
        if step == CHOSEN:
            self._chosen.append(np.array(array, np.int64))
            self._compare(self._chosen[-1])
        elif step == WEIGHTS:
            self._weights.append(np.array(array.astype(mx.float32)))
        else:
            self._logits = np.array(array.astype(mx.float32))

    def _compare(self, chosen: np.ndarray) -> None:
        """Note the last expert that was chosen and the next one."""
        with np.errstate(invalid="ignore", over="ignore"):
            p = np.exp(self._logits - self._logits.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
        last = np.take_along_axis(p, chosen, -1).min(-1)
        np.put_along_axis(p, chosen, -1.0, -1)
        following, next_ = p.argmax(-1), p.max(-1)
        everything = chosen.shape[-1] == p.shape[-1]
        self._following.append(np.full_like(following, NONE) if everything else following)
        self._probabilities.append(np.stack([last, np.maximum(next_, 0)], axis=-1))

    def result(self) -> Router:
        parts = (self._chosen, self._weights, self._following, self._probabilities)
        return Router(self._logits.shape[-1], *(np.concatenate(part, axis=1) for part in parts))


def judge_router(router: Router, rules: Rules) -> Verdict:
    """Rules of thumb: what they find is unusual, never a fault. Few tokens say nothing about a load."""
    rule, reasons = rules.settings["router"], []
    if not enough(router, rules) or router.for_each == router.experts:
        return Verdict(NORMAL)
    fair = router.for_each / router.experts
    if router.busiest_share > fair + rule["busiest"] * (1 - fair):
        reasons.append(
            f"expert {router.busiest} gets {router.busiest_share:.0%} of the tokens, an even share is {fair:.0%}"
        )
    if router.evenness < rule["evenness"]:
        reasons.append(f"few experts do the work: evenness {router.evenness:.2g} below {rule['evenness']:g}")
    if len(router.unused) > rule["unused"] * router.experts:
        reasons.append(
            f"{len(router.unused)} of {router.experts} experts get no token, an even share is {router.even:.0f}"
        )
    return Verdict(UNUSUAL, tuple(reasons), ("load",) * len(reasons)) if reasons else Verdict(NORMAL)


def enough(router: Router, rules: Rules) -> bool:
    """Whether there are enough tokens to judge the load."""
    return router.even >= rules.settings["router"]["tokens"]
