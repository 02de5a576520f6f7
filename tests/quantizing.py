"""What tests of quantized weights share: the modes, and a checkpoint whose rows every group divides."""

from pathlib import Path
from typing import Any

import mlx.core as mx
from checkpoints import TINY, TINY_MOE, random_weights, write_checkpoint

PACKABLE = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256, "num_attention_heads": 4}
AFFINE = [f"affine{bits}{group}" for bits in (2, 3, 4, 5, 6, 8) for group in ("", "g32", "g64", "g128")]
MODES = [*AFFINE, "mxfp4", "mxfp8", "nvfp4"]
GROUPS = {"mxfp4": 32, "mxfp8": 32, "nvfp4": 16}


def in_mlx_terms(spec: str) -> dict[str, Any]:
    """The arguments of mlx-lm's quantize_model, written down here and not taken from the package."""
    if spec in GROUPS:
        return {"mode": spec, "bits": int(spec[-1]), "group_size": GROUPS[spec]}
    bits, _, group = spec.removeprefix("affine").partition("g")
    return {"mode": "affine", "bits": int(bits), "group_size": int(group or 64)}


def source_in(folder: Path, dtype: mx.Dtype, **changes: Any) -> Path:
    config = {**PACKABLE, **changes, "torch_dtype": str(dtype).removeprefix("mlx.core.")}
    write_checkpoint(folder, **config)
    weights = {name: mx.array(value).astype(dtype) for name, value in random_weights({**TINY, **config}).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    return folder


MOE = {key: value for key, value in TINY_MOE.items() if TINY.get(key) != value} | {"moe_intermediate_size": 128}
