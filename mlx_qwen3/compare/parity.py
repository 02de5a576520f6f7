"""This package's forward pass against transformers' on the same machine and the same weights, layer by layer.

Needs torch and transformers, which nothing else in the package does: both are imported where they are used.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import UsageError, VerificationError
from ..files.checkpoint import FLOATS
from ..files.config import Qwen3Config, read_json
from ..files.layout import Part, part_shapes, read_parts
from ..files.numerics import read_rows
from ..model.load import load_model
from .divergence import fixed_ids

OURS = ("mlx_qwen3", "quantization", "quantization_config")  # in config.json, and not for transformers
SAME_WEIGHTS = 1e-4  # relative norm in float32; measured 9e-7 after 28 layers
# Against weights that the conversion rounded: half a unit in the last place of each, as it adds up over the layers
ROUNDED = {mx.float32: SAME_WEIGHTS, mx.float16: 1e-2, mx.bfloat16: 5e-2}


@dataclass(frozen=True)
class LayerDifference:
    """A state of this package against PyTorch's: norm of the difference over the norm, and what is allowed."""

    place: str
    relative: float
    bound: float


def compare_with_torch(
    folder: Path,
    source: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Iterator[LayerDifference]:
    """The embedding, every layer and the logits, both sides in float32, from the first on.

    PyTorch gets the weights of `source` where it is given and `folder` is not packed, else those of `folder`, unpacked.
    Raises UsageError where transformers is not installed, and VerificationError that names the first place past its
    bound.
    """
    config = Qwen3Config.from_folder(folder)
    parts = read_parts(folder, config)
    reference, bound = folder, SAME_WEIGHTS
    if source is not None and not any(part.quantization for part in parts.values()):
        reference, bound = source, _bound(parts, read_parts(source, Qwen3Config.from_folder(source)))
    ids = np.array([fixed_ids(config)])
    theirs = _torch_states(reference, ids)
    model = load_model(folder, "fp32")
    layers = [f"layer {layer}" for layer in range(config.num_hidden_layers)]
    places = iter(["the embedding", *layers, "the logits (final norm, output matrix)"])
    for expected, ours, place in zip(theirs, _our_states(model, mx.array(ids)), places, strict=True):
        relative = float(np.linalg.norm(ours - expected) / np.linalg.norm(expected))
        if not relative <= bound:
            raise VerificationError(
                f"{place} differs from PyTorch by {relative:.3g} (relative norm), past {bound:g}; all before it agrees"
            )
        progress("comparing with PyTorch", 1, len(theirs))
        yield LayerDifference(place, relative, bound)


def _our_states(model: Any, ids: mx.array) -> Iterator[np.ndarray]:
    for state in model.residuals(ids):
        yield np.array(state)
    yield np.array(model(ids))


def _bound(result: Mapping[str, Part], source: Mapping[str, Part]) -> float:
    """The bound of the coarsest dtype that a weight was rounded to."""
    rounded = [
        leaf.dtype
        for name, part in result.items()
        for leaf in part.leaves.values()
        if leaf.dtype in FLOATS and leaf.dtype != source[name].leaves["weight"].dtype
    ]
    return max((ROUNDED[dtype] for dtype in rounded), default=SAME_WEIGHTS)


def _torch_states(folder: Path, ids: np.ndarray) -> list[np.ndarray]:
    """transformers' residual stream after the embedding and after each layer, then its logits; float32."""
    try:
        import torch
        from transformers import Qwen3Config as TorchConfig
        from transformers import Qwen3ForCausalLM
        from transformers.utils import logging
    except ImportError as error:
        raise UsageError(f"--torch needs {error.name or 'torch'}; pip install torch transformers") from None
    logging.disable_progress_bar()
    settings = {key: value for key, value in read_json(folder / "config.json").items() if key not in OURS}
    weights = {name: torch.tensor(values) for name, values in _float_weights(folder)}
    model = Qwen3ForCausalLM.from_pretrained(
        None, config=TorchConfig(**settings), state_dict=weights, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    states: list[Any] = []
    for module in (model.model.embed_tokens, *model.model.layers):
        module.register_forward_hook(lambda _module, _inputs, output: states.append(output))
    with torch.no_grad():
        logits = model(torch.tensor(ids)).logits
    return [state.float().numpy() for state in (*states, logits)]


def _float_weights(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    config = Qwen3Config.from_folder(folder)
    parts = read_parts(folder, config)
    for name in part_shapes(config):
        part = parts[name]
        rows = part.leaves["weight"].shape[0]
        yield (
            f"{'' if name == 'lm_head' else 'model.'}{name}.weight",
            read_rows(part.leaves, part.quantization, 0, rows).copy(),
        )
