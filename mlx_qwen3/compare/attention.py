"""Attention in blocks of queries, so that the scores of all queries are never in memory at once. For MLX and torch.

B batch, L queries, S keys, H query heads, K key/value heads, G = H / K, D head_dim, C queries of one block
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

CHUNK = 256  # queries of one block; 16 heads on 8,192 keys make 134 MB of float32 scores

Array = Any  # mlx.core.array or torch.Tensor: the operations used here have one name and meaning in both


def attention_chunk(
    q: Array,
    k: Array,
    v: Array,
    o_proj: Callable[[Array], Array] | None = None,
    *,
    scale: float | None = None,
    mask: Array | str | None = "causal",
    chunk: int = CHUNK,
) -> Array:
    """Attention of q (B, H, L, D) over k and v (B, K, S, D), the heads merged, (B, L, H * D), and projected.

    The L queries are the last of the S positions, so that keys of a cached prefix come first. `mask` is "causal",
    None (every query sees every key), or an array that broadcasts to (B, H, L, S): True if a key is visible, or
    numbers to add to the scores. `scale` is D ** -0.5 by default; `o_proj` is any function of the merged heads.
    Scores and sums are float32 for every dtype of the inputs, as in the fused kernels; the result has the dtype of q.
    The peak memory is that of `chunk` queries: B * H * chunk * S scores.
    Raises ValueError for shapes that do not fit and for a chunk below 1.
    """
    xp = _namespace(q)
    B, H, L, D = q.shape
    values = _float32(v)[:, :, None]  # (B, K, 1, S, D)
    blocks = []
    for _, scores, _ in score_blocks(q, k, scale=scale, mask=mask, chunk=chunk):
        weights = _grouped(softmax(scores), k.shape[1])  # (B, K, G, C, visible S)
        out = weights @ values[..., : scores.shape[-1], :]
        blocks.append(_cast(out.reshape(B, H, -1, D), q))
        _evaluate(xp, blocks[-1])  # MLX is lazy: without this, the scores of all blocks would be in memory together
    joined = xp.concatenate(blocks, axis=2)  # (B, H, L, D)
    merged = xp.swapaxes(joined, 1, 2).reshape(B, L, H * D)
    return merged if o_proj is None else o_proj(merged)


def score_blocks(
    q: Array, k: Array, *, scale: float | None = None, mask: Array | str | None = "causal", chunk: int = CHUNK
) -> Iterator[tuple[int, Array, Array | None]]:
    """(first query, scores, visible) of every block of queries; the arguments are those of `attention_chunk`.

    scores (B, H, C, visible S) = q.k * scale in float32, and -inf for a key that a query does not see. A causal block
    ends at the last key that it sees. visible is the mask, which broadcasts to the scores; None if all is visible.
    """
    _check(q, k, chunk)
    (B, H, L, D), K, S = q.shape, k.shape[1], k.shape[2]
    scale = D**-0.5 if scale is None else scale
    keys = _namespace(k).swapaxes(_float32(k), 2, 3)[:, :, None]  # (B, K, 1, D, S)
    for start in range(0, L, chunk):
        end = min(start + chunk, L)
        seen = S - L + end if isinstance(mask, str) else S
        block = _grouped(_float32(q[:, :, start:end]) * scale, K)  # query heads that share a key/value head: (B, K, G)
        scores = (block @ keys[..., :seen]).reshape(B, H, end - start, seen)
        yield start, *_masked(scores, _mask_rows(mask, q, start, end, S))


def softmax(scores: Array) -> Array:
    return _namespace(scores).softmax(scores, axis=-1)


def _mask_rows(mask: Array | str | None, q: Array, start: int, end: int, keys: int) -> Array | None:
    """Rows start to end of the mask, as an array that broadcasts to the scores of the block."""
    if mask is None:
        return None
    if isinstance(mask, str):
        if mask != "causal":
            raise ValueError(f"mask is {mask!r}; expected 'causal', None or an array")
        xp, before = _namespace(q), keys - q.shape[2]
        # torch makes arrays on the CPU unless it gets a device
        place = {"device": q.device} if hasattr(q, "device") else {}
        queries = xp.arange(before + start, before + end, **place)
        return xp.arange(before + end, **place) <= queries[:, None]
    return mask if mask.ndim < 2 or mask.shape[-2] == 1 else mask[..., start:end, :]


def _masked(scores: Array, rows: Array | None) -> tuple[Array, Array | None]:
    if rows is None:
        return scores, None
    xp = _namespace(scores)
    if "bool" not in str(rows.dtype):
        return scores + rows, rows > float("-inf")
    return xp.where(rows, scores, float("-inf")), rows


def _check(q: Array, k: Array, chunk: int) -> None:
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected 1 or more queries")
    if q.ndim != 4 or k.ndim != 4 or (q.shape[0], q.shape[3]) != (k.shape[0], k.shape[3]):
        raise ValueError(f"queries {tuple(q.shape)} and keys {tuple(k.shape)} differ in batch or head_dim")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads cannot share {k.shape[1]} key/value heads evenly")
    if q.shape[2] > k.shape[2]:
        raise ValueError(f"{q.shape[2]} queries are more than the {k.shape[2]} keys; they are the last positions")


def _grouped(x: Array, kv_heads: int) -> Array:
    """(B, H, C, any) -> (B, K, G, C, any): consecutive query heads share a key/value head."""
    B, H, C, last = x.shape
    return x.reshape(B, kv_heads, H // kv_heads, C, last)


def _namespace(x: Array) -> Any:
    """mlx.core or torch, without importing either."""
    return sys.modules[type(x).__module__]


def _float32(x: Array) -> Array:
    return x.float() if hasattr(x, "float") else x.astype(_namespace(x).float32)


def _cast(x: Array, like: Array) -> Array:
    return x.to(like.dtype) if hasattr(x, "to") else x.astype(like.dtype)


def _evaluate(xp: Any, x: Array) -> None:
    if hasattr(xp, "eval"):
        xp.eval(x)
