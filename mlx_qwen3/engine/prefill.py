"""The prompt's passes through the model, in chunks; the step that follows is in step.py.

B batch, L tokens, V vocabulary
"""

import mlx.core as mx

from ..model.cache import KVCache
from ..model.qwen3 import Qwen3

# Tokens of one forward pass, which bound the memory of activations. MLX's CPU also keeps the scores of the pass, as a
# GPU's fused attention does not: at 8,192 tokens passes of 512 take a third of the memory and no more time.
PREFILL_CHUNK = {mx.gpu: 2048, mx.cpu: 512}


def prefill_chunk() -> int:
    """Tokens of one pass on the default device."""
    return PREFILL_CHUNK[mx.default_device().type]


def prefill(model: Qwen3, ids: mx.array, cache: KVCache, chunk: int | None = None) -> mx.array:
    """Feed token ids (B, L) to the cache, `chunk` at a time; logits (B, V) of the last position only."""
    L, chunk = ids.shape[1], chunk or prefill_chunk()
    for start in range(0, L - chunk, chunk):
        model.hidden(ids[:, start : start + chunk], cache)
        mx.eval(cache.buffers)  # nothing else of this chunk is needed, so its last MLP and norm are never computed
    rest = ids[:, (L - 1) // chunk * chunk :]
    return model.logits(model.hidden(rest, cache)[:, -1:])[:, 0]
