"""The steps of a forward pass, layer by layer: of a model of this package, of reference.py, or of transformers.

Each function yields one LayerSteps per layer, then one with final_norm and logits. Only one layer is in memory at a
time. The names of the steps are those of flow.py.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec

import mlx.core as mx
import numpy as np

from ..engine.runner import decode_step, known_cache
from ..errors import UsageError
from ..files.adapted import AdaptedCheckpoint
from ..files.adapters import Adapter
from ..files.checkpoint import Checkpoint
from ..model.qwen3 import Qwen3
from .flow import FLOW, Step
from .layer_steps import Blocks, LayerSteps, ScoreBlock, score_maker
from .probe import Probe

REFERENCE, TRANSFORMERS = "reference", "transformers"
NEEDS = {REFERENCE: ("torch",), TRANSFORMERS: ("torch", "transformers")}  # the packages of each


def model_steps(model: Qwen3, ids: mx.array) -> Iterator[LayerSteps]:
    """The steps of the model's own forward pass of token ids (B, L)."""
    cache = model.make_cache(ids.shape[0])
    probe = Probe(model, cache, _LayerKeeper())
    residuals = model.residuals(ids, cache.view(ids.shape[1], probe))
    x = next(residuals)
    for layer in range(len(model.layers)):
        probe.visitor = keeper = _LayerKeeper()
        x = next(residuals)
        mx.eval(x)
        yield keeper.layers[layer]
    hidden = model.norm(x)
    yield LayerSteps({"final_norm": hidden, "logits": model.logits(hidden)})


def decode_steps(model: Qwen3, ids: mx.array, tokens: mx.array) -> Iterator[LayerSteps]:
    """The steps of the decode step of the last of `tokens` (B, N), which follow prompts (B, L). All layers are kept."""
    cache, keeper = known_cache(model, ids, tokens[:, :-1]), _LayerKeeper()
    mx.eval(decode_step(model)(tokens[:, -1], cache, Probe(model, cache, keeper)))
    yield from keeper.layers.values()


def last_token(sides: Iterator[LayerSteps]) -> Iterator[LayerSteps]:
    """The part of a pass over all tokens that belongs to the last token."""
    axes = {step.name: step.token_axis for step in FLOW}
    for steps in sides:
        arrays = {
            name: array[(*[slice(None)] * axes[name], slice(-1, None))] if axes[name] >= 0 else array
            for name, array in steps.arrays.items()
        }
        yield LayerSteps(arrays, partial(_last_query, steps.blocks) if steps.blocks else None)


def _last_query(blocks: Blocks) -> Iterator[ScoreBlock]:
    [(_, scores, weights, visible)] = deque(blocks(), maxlen=1)
    yield 0, scores[..., -1:, :], weights[..., -1:, :], None if visible is None else visible[..., -1:, :]


def reference_steps(checkpoint: Checkpoint, ids: mx.array) -> Iterator[LayerSteps]:
    """The steps of reference.py for a checkpoint and token ids (B, L). Needs torch, see `check_installed`."""
    import torch

    from . import reference

    model = reference.load_reference(checkpoint)
    scale = reference.attention_scale(model.config)
    for steps in model.steps(torch.from_numpy(np.array(ids, dtype=np.int64))):
        blocks = score_maker(steps["q_rope"], steps["k_cache"], scale) if "q_rope" in steps else None
        yield LayerSteps(dict(steps), blocks)


def transformers_steps(checkpoint: Checkpoint, ids: mx.array) -> Iterator[LayerSteps]:
    """The steps of transformers in float32 for a checkpoint and token ids (B, L).

    Adapters are applied by PEFT if `uses_peft`, else they are merged into the weights that transformers gets. Needs
    torch and transformers, see `check_installed`.
    """
    from . import peer

    if isinstance(checkpoint, AdaptedCheckpoint) and uses_peft(checkpoint.base, checkpoint.adapters):
        model = peer.with_peft(peer.load(checkpoint.base), checkpoint.adapters)
    else:
        model = peer.load(checkpoint)
    return peer.steps(model, np.array(ids, dtype=np.int64))


def uses_peft(base: Checkpoint, adapters: Sequence[Adapter]) -> bool:
    """Whether PEFT can apply these adapters for a comparison: it is installed, and they only add to matrices.

    Weights that it replaces have no steps to watch, and transformers 5 has no matrix for each expert.
    """
    if not adapters or find_spec("peft") is None or base.config.moe:
        return False
    return all(adapter.config.form == "PEFT" and not adapter.whole for adapter in adapters)


def check_installed(name: str, option: str) -> None:
    """Raises UsageError that names `option` if a package is missing that `reference` or `transformers` needs."""
    if any(find_spec(package) is None for package in NEEDS[name]):
        packages = NEEDS[name]
        raise UsageError(f"{option} needs {' and '.join(packages)}; pip install {' '.join(packages)}")


class _LayerKeeper:
    """A visitor of the probe that keeps the arrays of every layer, in order, and those after the last layer."""

    def __init__(self) -> None:
        self.layers: dict[int | None, LayerSteps] = {}

    def step(self, layer: int | None, step: Step, array: mx.array) -> None:
        self.layers.setdefault(layer, LayerSteps()).arrays[step.name] = array

    def scores(self, layer: int, q: mx.array, blocks: Blocks, keys: int) -> None:
        self.layers[layer].blocks = blocks
