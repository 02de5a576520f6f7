"""The Qwen3 decoder: QK-norm, grouped-query attention, SwiGLU, pre-norm residual blocks (arXiv 2505.09388).

One forward pass serves prompts, compiled decode steps, batches and listeners. They differ only in the view of the cache
(view.py). Products are 2-D, over all tokens: a 3-D product has two more graph nodes in MLX. A submodule is called as
self["name"], because nn.Module looks up self.name so slowly that it matters in a small model.

B batch, L new tokens, T = B * L, S cached + new, H query heads, K key/value heads, D head_dim, V vocabulary
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ..errors import PromptError
from ..files.config import Qwen3Config
from ..files.dtypes import dtype_name
from ..files.values import to_mlx
from . import kernels, native
from .cache import KVCache
from .kv_format import kv_format
from .linear import Embedding, Linear
from .moe import MoE
from .rope import RoPE
from .view import Listener, NoCache, View

Ids = mx.array | np.ndarray | Sequence[Sequence[int]]  # of tokens
Turn = tuple[mx.array, mx.array]  # cos and sin of a pass, see RoPE


class RMSNorm(nn.RMSNorm):
    def __call__(self, x: mx.array) -> mx.array:
        return kernels.norm(x, self["weight"], self.eps)


class Attention(nn.Module):
    def __init__(self, config: Qwen3Config, layer: int):
        super().__init__()
        self.layer = layer
        H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.heads, self.kv_heads, self.head_dim = H, K, D
        # YaRN multiplies both q and k by its attention factor. Here the scale has the square of it instead.
        self.scale = D**-0.5 * config.attention_factor**2
        self.qkv_proj = Linear(config.hidden_size, (H + 2 * K) * D)
        self.o_proj = Linear(H * D, config.hidden_size)
        self.q_norm = RMSNorm(D, eps=config.rms_norm_eps)
        self.k_norm = RMSNorm(D, eps=config.rms_norm_eps)
        self._norms = None, None, None  # the weights of both norms, and the result of _norm_weight

    def project(self, x: mx.array, turn: Turn, view: View) -> tuple[mx.array, mx.array]:
        """Queries (B, H, L, D), and keys and values (2, B, K, L, D), of x (T, hidden)."""
        qkv = self["qkv_proj"](x)
        weight = self._norm_weight()
        q, kv = kernels.norm_rope(qkv, weight, *turn, self["q_norm"].eps)
        if view.watch is not None:
            self._show_heads(view.watch, qkv.reshape(*view.shape, -1), weight)
            view.watch("rope", q, kv[0, :])
        return q, kv

    def merge(self, residual: mx.array, out: mx.array, view: View) -> mx.array:
        """residual (T, hidden) + o_proj of the heads' results (B, H, L, D)."""
        B, _, L, _ = out.shape
        merged = (out if L == 1 else out.transpose(0, 2, 1, 3)).reshape(B * L, self.heads * self.head_dim)
        if view.watch is not None:
            view.watch("attention", out)
            view.show("merge", merged)
            view.show("o_proj", self.o_proj(merged))
        return self["o_proj"].add(residual, merged)

    def _norm_weight(self) -> mx.array:
        """The weights of q_norm and k_norm for every head, (H + K, 1, D). Computed again if one has been replaced."""
        q, k = self["q_norm"]["weight"], self["k_norm"]["weight"]
        of_q, of_k, weight = self["_norms"]
        if of_q is not q or of_k is not k:
            weight = mx.stack([q] * self.heads + [k] * self.kv_heads)[:, None]
            self["_norms"] = q, k, weight
        return weight

    def _show_heads(self, watch: Listener, qkv: mx.array, weight: mx.array) -> None:
        """Compute the steps that norm_rope fuses again, one by one, for the listener; qkv (B, L, any)."""
        H, K, D = self.heads, self.kv_heads, self.head_dim
        watch("qkv", qkv)
        watch("split", *mx.split(qkv, [H * D, (H + K) * D], axis=-1))
        heads = qkv.reshape(*qkv.shape[:2], -1, D)
        q, k, v = mx.split(heads, [H, H + K], axis=2)
        watch("heads", q, k, v)
        q, k = mx.split(kernels.qk_norm(heads[:, :, : H + K], weight[:, 0], self.q_norm.eps), [H], axis=2)
        watch("qk_norm", q, k)
        watch("transpose", *(x.transpose(0, 2, 1, 3) for x in (q, k, v)))


class MLP(nn.Module):
    def __init__(self, config: Qwen3Config):
        super().__init__()
        self.gate_up_proj = Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: mx.array, residual: mx.array, view: View) -> mx.array:
        """residual + mlp(x), all (T, hidden)."""
        gate_up = self["gate_up_proj"](x)
        inner = kernels.swiglu(gate_up)
        if view.watch is not None:
            view.show("gate_up", gate_up)
            view.show("activation", inner)
            view.show("down", self.down_proj(inner))
        return self["down_proj"].add(residual, inner)


class Block(nn.Module):
    def __init__(self, config: Qwen3Config, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        moe = config.moe
        self.mlp = MoE(moe, config.hidden_size) if moe and layer in moe.layers else MLP(config)

    def __call__(self, x: mx.array, turn: Turn, view: View, keep: int | None = None) -> mx.array:
        """The residual stream (T, hidden) after this layer, from the one before it.

        keep: return only the last `keep` tokens of each row, (B * keep, hidden).
        """
        attention = self["self_attn"]
        view.show("input", x)
        y = self["input_layernorm"](x)
        view.show("input_norm", y)
        q, kv = attention.project(y, turn, view)
        if keep is not None:
            (B, L), hidden = view.shape, x.shape[1]
            x = x.reshape(B, L, hidden)[:, L - keep :].reshape(B * keep, hidden)
            q = q[:, :, L - keep :]
        out = view.attend(attention.layer, q, kv, attention.scale)
        if keep == 0:  # only the cache was wanted
            return x
        x = attention.merge(x, out, view)
        view.show("residual", x)
        y = self["post_attention_layernorm"](x)
        view.show("post_norm", y)
        x = self["mlp"](y, x, view)
        view.show("output", x)
        return x


class Qwen3(nn.Module):
    """Token ids in, logits out. Parameters are uninitialised until `load_model` fills them."""

    def __init__(self, config: Qwen3Config):
        super().__init__()
        self.config = config
        self.fingerprint: str | None = None  # of the checkpoint, see files/fingerprint.py; `load_model` sets it
        self.unpacked = False  # whether `load_model` unpacked weights that the checkpoint has packed
        self.rope = RoPE(config)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Block(config, layer) for layer in range(config.num_hidden_layers)]
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)

    def __call__(self, ids: Ids, cache: KVCache | None = None, watch: Listener | None = None) -> mx.array:
        """Logits (B, L, V) of token ids (B, L), which follow what the cache holds.

        `watch` is called with every step's name and arrays; compare/flow.py lists them. It changes no result.
        """
        return self.logits(self.hidden(ids, cache, watch), watch)

    def make_cache(self, batch: int = 1, padding: Sequence[int] | None = None, kv_bits: int | None = None) -> KVCache:
        """An empty cache for `batch` rows; `padding` gives the number of padding tokens at the left of each row.

        kv_bits: 8 or 4 quantizes keys and values. Raises UsageError if this model's cannot be.
        """
        return KVCache(batch, padding, kv_format(kv_bits, self.config.head_dim))

    def ends(self, ids: mx.array, cache: KVCache, keep: int) -> mx.array:
        """`hidden` of the last `keep` tokens of each row, (B, keep, hidden). The cache takes up all tokens.

        Of the other tokens the last layer computes only keys and values. `keep` may be 0.
        """
        B, L = ids.shape
        view = cache.view(L)
        states = self.states(ids.reshape(-1), view, keep)
        cache.commit(view.buffers, L)
        return states.reshape(B, keep, self.config.hidden_size)

    def hidden(self, ids: Ids, cache: KVCache | None = None, watch: Listener | None = None) -> mx.array:
        """The normalised hidden states (B, L, hidden), the input of `logits`. The cache takes up the tokens."""
        ids = _token_ids(ids)
        B, L = ids.shape
        if cache is None:
            return self.forward(ids, NoCache(B, L, watch))
        if cache.batch != B:
            raise ValueError(f"token ids have {B} rows, the cache {cache.batch}; make_cache(batch={B})")
        view = cache.view(L, watch)
        states = self.forward(ids, view)
        cache.commit(view.buffers, L)
        return states

    def forward(self, ids: mx.array, view: View) -> mx.array:
        """The normalised hidden states (B, L, hidden) of token ids (B, L), for a view of a cache."""
        return self.states(ids.reshape(-1), view).reshape(*ids.shape, -1)

    def states(self, ids: mx.array, view: View, keep: int | None = None) -> mx.array:
        """The same without the axis of rows: (T, hidden) of token ids (T,), or (B * keep, hidden) as in `ends`."""
        with native.at_once(not view.traced and self.computes_at_once(*view.shape)):
            [x] = deque(self._residuals(ids, view, keep), maxlen=1)
            x = self.norm(x)
        view.show("final_norm", x)
        return x

    def computes_at_once(self, rows: int, tokens: int, keys: int = 0) -> bool:
        """Whether a pass over so many tokens of each row, after so many, computes each operation when it is called."""
        return kernels.computes_at_once(self.config, rows, tokens, self["norm"]["weight"].dtype, keys)

    def residuals(self, ids: Ids, view: View | None = None) -> Iterator[mx.array]:
        """The residual stream (B, L, hidden) after the embedding and after each layer: layers + 1 arrays."""
        ids = _token_ids(ids)
        view = NoCache(ids.shape[0], ids.shape[1]) if view is None else view
        return (x.reshape(*ids.shape, -1) for x in self._residuals(ids.reshape(-1), view))

    def embed(self, ids: mx.array) -> mx.array:
        """The residual stream (T, hidden) before the first layer, of token ids (T,)."""
        # The fp4 and fp8 modes keep no float dtype of their own and dequantize to bfloat16.
        return self.embed_tokens(ids).astype(self.norm.weight.dtype)

    def _residuals(self, ids: mx.array, view: View, keep: int | None = None) -> Iterator[mx.array]:
        x = self.embed(ids)
        yield x
        turn = self.rope(view.positions)
        for layer in self.layers:
            x = layer(x, turn, view, keep if layer is self.layers[-1] else None)
            yield x

    def logits(self, hidden: mx.array, watch: Listener | None = None) -> mx.array:
        """(B, L, hidden) -> (B, L, V). This is the largest product of the model: pass only the positions you need."""
        rows, tokens, *_ = *hidden.shape[:-1], 1
        with native.at_once(self.computes_at_once(rows, tokens)):
            logits = self.head(hidden)
        if watch is not None:
            watch("logits", logits)
        return logits

    @property
    def nbytes(self) -> int:
        """The bytes of all weights."""
        return weight_bytes(self)

    @property
    def step_bytes(self) -> int:
        """The bytes of the weights that a decode step of one row reads.

        All of them, but only the chosen experts, and no embedding that is not the head too: one row of it is read.
        """
        moe, stacks = self.config.moe, self._expert_bytes
        embedding = 0 if self.config.tie_word_embeddings else weight_bytes(self.embed_tokens)
        return self.nbytes - embedding - (stacks - stacks * moe.num_experts_per_tok // moe.num_experts if moe else 0)

    @property
    def expert_share(self) -> float:
        """The share of `step_bytes` that are weights of experts."""
        moe = self.config.moe
        return self._expert_bytes * moe.num_experts_per_tok / moe.num_experts / self.step_bytes if moe else 0.0

    @property
    def _expert_bytes(self) -> int:
        return sum(weight_bytes(layer.mlp.experts) for layer in self.layers if isinstance(layer.mlp, MoE))

    @property
    def head(self) -> Callable[[mx.array], mx.array]:
        """(..., hidden) -> (..., V)"""
        return self.embed_tokens.as_linear if self.config.tie_word_embeddings else self.lm_head


def weight_bytes(*modules: nn.Module) -> int:
    """Of all arrays, each counted once: an adapted model shares some with its base, and may have one twice."""
    arrays = (array for module in modules for array in dict(tree_flatten(module.parameters())).values())
    return sum({id(array): array.nbytes for array in arrays}.values())


def _token_ids(ids: Any) -> mx.array:
    """Token ids (B, L) for MLX. Raises PromptError for another shape, or if they are not integers."""
    try:
        ids = ids if isinstance(ids, mx.array) else to_mlx(np.array(ids, order="C"))
    except ValueError:  # of NumPy, for rows of different lengths
        raise PromptError("token ids have rows of different lengths; expected (batch, length)") from None
    if not mx.issubdtype(ids.dtype, mx.integer):
        raise PromptError(f"token ids are {dtype_name(ids.dtype)}; expected integers")
    if ids.ndim != 2:
        raise PromptError(f"token ids have shape {ids.shape}; expected (batch, length)")
    return ids
