"""Every tolerance of the package: what it measures, and the measured value that it is based on."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..files.dtypes import dtype_name
from ..model.qwen3 import Qwen3


@dataclass(frozen=True)
class Bound:
    """`limit` is the largest allowed value. `measured` is the largest value of correct models, and `on` says which."""

    limit: float
    measures: str
    measured: float
    on: str


THIN = "28 random layers of hidden size 128, MLX's CPU back end"
DEEP = "28 random layers of hidden size 256, MLX's CPU back end"
DEMO = "the demo, MLX's CPU back end"

# `verify --transformers`: both sides in float32
STATE = "relative norm of the difference from transformers: a state after a layer, or the logits"
SAME_WEIGHTS = Bound(
    1e-4, f"{STATE}, same weights", 1.7e-6, f"{DEMO}, affine4; 28 layers of Qwen3-0.6B's shape have 9e-7"
)
# Each weight is off by half a unit in the last place at most. This adds up over the layers.
ROUNDED = {
    "float32": SAME_WEIGHTS,
    "float16": Bound(1e-2, f"{STATE}, weights rounded to float16", 1.4e-3, THIN),
    "bfloat16": Bound(5e-2, f"{STATE}, weights rounded to bfloat16", 1.1e-2, THIN),
}

# `inspect --against`: what one layer adds to the difference of a step. By the dtype of the computation, and by the
# packing if only one side is packed: the bits of the affine modes, else the mode. Mistakes add 1 or more.
ADDED = "relative norm of the difference of a step, less GROWTH times that of the layer's input"
STEPS = {
    "float32": Bound(1e-4, ADDED, 8.7e-7, DEMO),
    "float16": Bound(4e-3, ADDED, 1.2e-3, DEEP),
    "bfloat16": Bound(0.03, ADDED, 9.3e-3, "9 random layers of hidden size 48, MLX's CPU back end"),
    "8": Bound(0.04, ADDED, 0.014, DEEP),
    "6": Bound(0.15, ADDED, 0.060, DEEP),
    "5": Bound(0.3, ADDED, 0.12, DEEP),
    "4": Bound(0.6, ADDED, 0.24, DEEP),
    "3": Bound(1.2, ADDED, 0.50, DEEP),
    "2": Bound(2.0, ADDED, 1.0, DEEP),
    "mxfp8": Bound(0.2, ADDED, 0.072, DEEP),
    "mxfp4": Bound(0.75, ADDED, 0.31, DEEP),
    "nvfp4": Bound(0.6, ADDED, 0.26, DEEP),
}
GROWTH = Bound(2.0, "difference of a step, as a multiple of that of the layer's input", 1.23, f"{DEEP}, float32")

# An expert may have few tokens, so its difference varies more than that of a step
EXPERT = Bound(
    2.0,
    "difference of one expert, as a multiple of the bound of its step",
    1.03,
    "3 random layers of 16 experts, 8 bits",
)

# `verify`: the figures of the certificate, measured again. Another device or version adds numbers in another order, so
# float32 sums round differently. If two logits nearly tie, the first choice can change.
KERNELS = "the demo in 4 modes, OpenBLAS's kernels for Nehalem and Haswell, with and without MKL for MLX"
KL_NOISE = Bound(1e-6, "difference of the mean KL divergence in nats, at a divergence near 0", 5e-9, KERNELS)
KL_SHARE = Bound(0.05, "difference of the mean KL divergence, as a share of the recorded one", 5.3e-6, KERNELS)
TOP1_SHARE = Bound(0.02, "share of the positions whose first choice is not the recorded one", 0.0, KERNELS)
PERPLEXITY_SHARE = Bound(1e-3, "difference of the perplexity, as a share of the recorded one", 7.1e-7, KERNELS)
ERROR_SHARE = Bound(
    1e-3, "difference of a tensor's error, as a share of the recorded one", 0.0, "stacks of experts in 5 modes, x86"
)

# `bench`: the logits of two contestants, by the less precise dtype of the two. Models with other weights have 1 or
# more.
LOGITS = "relative norm of the difference of two contestants' logits at one position"
OUTPUTS = {
    "float32": Bound(1e-4, LOGITS, 2.6e-6, "the demo, this package and transformers"),
    "float16": Bound(0.025, LOGITS, 0.0105, f"{THIN}, 4 bits, compared with float32"),
    "bfloat16": Bound(0.2, LOGITS, 0.14, "28 random layers of 4 bits, mlx-lm compared with float32; the demo has 0.02"),
}
WORST_RANK = Bound(
    40, "float32 rank of the worst token drawn at top-k 20", 19, "300 draws of mlx-lm in bfloat16, with ties"
)


def step_bound(bounds: Mapping[str, float], *models: Qwen3, same_weights: bool = False) -> float:
    """The largest of the `bounds` for the dtypes and packings of the models.

    With `same_weights` both sides compute with the same, unpacked values, so that only the dtype counts.
    """
    found = []
    for model in models:
        found.append(bounds[dtype_name(model.norm.weight.dtype)])
        if not same_weights:
            found += [bounds[packing] for packing in packings(model)]
    return max(found)


def packings(model: Qwen3) -> set[str]:
    """How modules are packed, by the names of STEPS: the bits of affine packings, else the mode."""
    packed = [module for _, module in model.named_modules() if hasattr(module, "bits")]
    return {str(module.bits) if module.mode == "affine" else module.mode for module in packed}
