"""The steps of a forward pass, layer by layer: of a model of this package, of reference.py, or of transformers.

Each function yields one LayerSteps per layer, then one with final_norm and logits. Only one layer is in memory at a
time. The names of the steps are those of flow.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import UsageError
from ..files.checkpoint import Checkpoint
from ..model.qwen3 import Qwen3
from .attention import score_blocks, softmax
from .flow import Step
from .probe import Probe, ScoreBlock

REFERENCE, TRANSFORMERS = "reference", "transformers"
NEEDS = {REFERENCE: ("torch",), TRANSFORMERS: ("torch", "transformers")}  # the packages of each
Blocks = Callable[[], Iterator[Any]]


@dataclass
class LayerSteps:
    """The arrays of one layer by the name of their step, MLX or torch, and a way to make its blocks of scores."""

    arrays: dict[str, Any] = field(default_factory=dict)
    blocks: Blocks | None = None


def model_steps(model: Qwen3, ids: mx.array) -> Iterator[LayerSteps]:
    """What the model's own forward pass of token ids (B, L) shows."""
    cache = model.make_cache(ids.shape[0])
    probe = Probe(model, cache, _Keeper())
    residuals = model.residuals(ids, cache.view(ids.shape[1], probe))
    x = next(residuals)
    for _ in model.layers:
        probe.visitor = keeper = _Keeper()
        x = next(residuals)
        mx.eval(x)
        yield keeper.kept
    hidden = model.norm(x)
    yield LayerSteps({"final_norm": hidden, "logits": model.logits(hidden)})


def reference_steps(checkpoint: Checkpoint, ids: mx.array) -> Iterator[LayerSteps]:
    """What reference.py computes from a checkpoint for token ids (B, L). Needs torch, see `check_installed`."""
    import torch

    from . import reference

    model = reference.load_reference(checkpoint)
    scale = reference.attention_scale(model.config)
    for steps in model.steps(torch.from_numpy(np.array(ids, dtype=np.int64))):
        blocks = score_maker(steps["q_rope"], steps["k_cache"], scale) if "q_rope" in steps else None
        yield LayerSteps(dict(steps), blocks)


def transformers_steps(checkpoint: Checkpoint, ids: mx.array) -> Iterator[LayerSteps]:
    """What transformers computes in float32 from a checkpoint for token ids (B, L).

    Needs torch and transformers, see `check_installed`.
    """
    from . import peer

    return peer.steps(peer.load(checkpoint), np.array(ids, dtype=np.int64))


def check_installed(name: str, option: str) -> None:
    """Raises UsageError that names `option` if a package is missing that `reference` or `transformers` needs."""
    if any(find_spec(package) is None for package in NEEDS[name]):
        packages = NEEDS[name]
        raise UsageError(f"{option} needs {' and '.join(packages)}; pip install {' '.join(packages)}")


def score_maker(q: Any, k: Any, scale: float) -> Blocks:
    """Makes the scores and weights of q and k in query blocks, when it is called."""

    def blocks() -> Iterator[ScoreBlock]:
        for start, scores, visible in score_blocks(q, k, scale=scale):
            yield start, scores, softmax(scores), visible

    return blocks


class _Keeper:
    """A visitor of the probe that keeps the arrays of one layer."""

    def __init__(self) -> None:
        self.kept = LayerSteps()

    def step(self, layer: int | None, step: Step, array: mx.array) -> None:
        self.kept.arrays[step.name] = array

    def scores(self, layer: int, q: mx.array, blocks: Callable[[], Iterator[ScoreBlock]], keys: int) -> None:
        self.kept.blocks = blocks
