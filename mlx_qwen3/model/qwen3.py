"""The Qwen3 decoder: QK-norm, grouped-query attention, SwiGLU, pre-norm residual blocks (arXiv 2505.09388).

B batch, L new tokens, S cached + new, H query heads, K key/value heads, D head_dim, V vocabulary
"""

from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn

from ..files.config import Qwen3Config
from .cache import KVCache
from .rope import RoPE
from .watch import watch


class ConcatLinear(nn.Module):
    """Projections of one input side by side, for parts that cannot share a matrix: other bits, other group size."""

    def __init__(self, parts: Sequence[nn.Module]):
        super().__init__()
        self.parts = list(parts)

    def __call__(self, x: mx.array) -> mx.array:
        return mx.concatenate([part(x) for part in self.parts], axis=-1)


class Attention(nn.Module):
    def __init__(self, config: Qwen3Config, layer: int, rope: RoPE):
        super().__init__()
        self.layer = layer
        self.rope = rope
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        # YaRN multiplies q and k by its attention factor each; their product takes its square in the same place.
        self.scale = config.head_dim**-0.5 * (config.yarn.attention_factor**2 if config.yarn else 1.0)
        rows = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, rows, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def __call__(self, x: mx.array, cache: KVCache, mask: mx.array | str | None) -> mx.array:
        B, L, _ = x.shape
        H, K, D = self.heads, self.kv_heads, self.head_dim
        q, k, v = watch("split", *mx.split(watch("qkv", self.qkv_proj(x)), [H * D, (H + K) * D], axis=-1))
        q, k, v = watch("heads", q.reshape(B, L, H, D), k.reshape(B, L, K, D), v.reshape(B, L, K, D))
        q, k = watch("qk_norm", self.q_norm(q), self.k_norm(k))  # over D
        q, k, v = watch("transpose", *(x.transpose(0, 2, 1, 3) for x in (q, k, v)))  # (B, heads, L, D)
        q, k = watch("rope", self.rope(q, cache.positions), self.rope(k, cache.positions))
        k, v = watch("cache", *cache.update(self.layer, k, v))  # (B, K, S, D)
        out = watch("attention", mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale, mask=mask))
        return self.o_proj(watch("merge", out.transpose(0, 2, 1, 3).reshape(B, L, H * D)))


class MLP(nn.Module):
    def __init__(self, config: Qwen3Config):
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        gate, up = mx.split(watch("gate_up", self.gate_up_proj(x)), 2, axis=-1)
        return self.down_proj(watch("activation", nn.silu(gate) * up))


class Block(nn.Module):
    def __init__(self, config: Qwen3Config, layer: int, rope: RoPE):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config, layer, rope)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)

    def __call__(self, x: mx.array, cache: KVCache, mask: mx.array | str | None) -> mx.array:
        y = watch("input_norm", self.input_layernorm(watch("input", x)))
        x = watch("residual", x + watch("o_proj", self.self_attn(y, cache, mask)))
        y = watch("post_norm", self.post_attention_layernorm(x))
        return watch("output", x + watch("down", self.mlp(y)))


class Qwen3(nn.Module):
    """Token ids in, logits out. Parameters are uninitialised until `weights.load_model` fills them."""

    def __init__(self, config: Qwen3Config):
        super().__init__()
        self.config = config
        rope = RoPE(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Block(config, layer, rope) for layer in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(self, ids: mx.array, cache: KVCache | None = None) -> mx.array:
        """Logits (B, L, V) of token ids (B, L), which follow what the cache holds."""
        return self.logits(self.hidden(ids, cache))

    def make_cache(self, batch: int = 1, padding: Sequence[int] | None = None) -> KVCache:
        """An empty cache for `batch` rows; `padding` gives the number of padding tokens at the left of each row."""
        return KVCache(batch, padding)

    def residuals(self, ids: mx.array, cache: KVCache | None = None) -> Iterator[mx.array]:
        """The residual stream (B, L, hidden) after the embedding and after each layer: layers + 1 arrays.

        The cache moves on when the iterator is exhausted.
        """
        if ids.ndim != 2:
            raise ValueError(f"token ids have shape {ids.shape}; expected (batch, length)")
        B, L = ids.shape
        cache = self.make_cache(B) if cache is None else cache
        if cache.batch != B:
            raise ValueError(f"token ids have {B} rows, the cache {cache.batch}; make_cache(batch={B})")
        mask = cache.mask(L)
        # The fp4 and fp8 modes keep no float dtype of their own and dequantize to bfloat16.
        x = self.embed_tokens(ids).astype(self.norm.weight.dtype)
        yield x
        for layer in self.layers:
            x = layer(x, cache, mask)
            yield x
        cache.advance(L)

    def hidden(self, ids: mx.array, cache: KVCache | None = None) -> mx.array:
        """The normalised hidden states (B, L, hidden) from which `logits` projects."""
        *_, x = self.residuals(ids, cache)
        return watch("final_norm", self.norm(x))

    def logits(self, hidden: mx.array) -> mx.array:
        """(B, L, hidden) -> (B, L, V). The largest product of the model: give it only the positions you need."""
        return watch("logits", self.head(hidden))

    @property
    def head(self) -> Callable[[mx.array], mx.array]:
        """(..., hidden) -> (..., V)"""
        return self.embed_tokens.as_linear if self.config.tie_word_embeddings else self.lm_head
