"""The steps of one layer: their arrays by name, and its attention scores in blocks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .attention import score_blocks, softmax

ScoreBlock = tuple[int, Any, Any, Any]  # first query, scores, weights, which keys are visible; None if all are
Blocks = Callable[[], Iterator[ScoreBlock]]


@dataclass
class LayerSteps:
    """The arrays of one layer by step name, MLX or torch, and a function that computes its blocks of scores."""

    arrays: dict[str, Any] = field(default_factory=dict)
    blocks: Blocks | None = None


def score_maker(q: Any, k: Any, scale: float, mask: Any = "causal") -> Blocks:
    """A function that computes the scores and weights of q and k in blocks of queries; `mask` as in `score_blocks`."""

    def blocks() -> Iterator[ScoreBlock]:
        for start, scores, visible in score_blocks(q, k, scale=scale, mask=mask):
            yield start, scores, softmax(scores), visible

    return blocks
