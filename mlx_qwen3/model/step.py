"""The decode step: one new token per row, as a graph with as few nodes as MLX has calls for, built once and replayed.

B batch, H query heads, K key/value heads, D head_dim, S capacity of the cache, V vocabulary
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from . import kernels
from .cache import KVCache
from .qwen3 import Block, Qwen3


class DecodeStep:
    """Computes what `model(tokens[:, None], cache)` computes.

    Position and cache are arguments of the graph, so that one trace serves all tokens until the cache grows; the
    weights are its constants.
    """

    def __init__(self, model: Qwen3):
        self.weights = _weights(model)
        self._forward: Callable[..., list[mx.array]] = _Forward(model)
        self._eager = kernels.replay_after()

    def __call__(self, tokens: mx.array, cache: KVCache) -> mx.array:
        """Logits (B, V) of the tokens (B,) that follow the prompt which the cache holds."""
        if self._eager == 0:
            self._forward = mx.compile(self._forward)
        self._eager -= 1
        cache.reserve(1)
        positions = mx.broadcast_to(mx.array(cache.positions), cache.padding.shape)
        arrays = self._forward(tokens, positions, mx.array(cache.offset), cache.padding, *cache.buffers)
        cache.buffers = arrays[1:]
        cache.advance(1)
        return arrays[0]


def decode_step(model: Qwen3) -> DecodeStep:
    """The model's decode step: made at first use, and again where its weights have been replaced since."""
    step = getattr(model, "decode_step", None)
    if step is None or any(old is not new for old, new in zip(step.weights, _weights(model), strict=False)):
        step = model.decode_step = DecodeStep(model)
    return step


def _weights(model: Qwen3) -> list[Any]:
    return list(dict(tree_flatten(model.parameters())).values())


class _Forward:
    """The whole step as a function of arrays alone. It must not hold the model, which holds it."""

    def __init__(self, model: Qwen3):
        self.embed_tokens, self.norm = model.embed_tokens, model.norm
        self.head = project(model.head) if isinstance(model.head, nn.Module) else model.head
        self.inv_freq = model.layers[0].self_attn.rope.inv_freq
        self.layers = [_Layer(block) for block in model.layers]

    def __call__(
        self, tokens: mx.array, positions: mx.array, offset: mx.array, padding: mx.array, *buffers: mx.array
    ) -> list[mx.array]:
        """Logits (B, V) and the cache's new buffers. All but `offset`, the tokens in the cache, are (B,)."""
        slots = mx.arange(buffers[0].shape[3])
        mask = (slots <= offset) & (slots >= padding[:, None, None, None])
        angles = positions[:, None, None, None] * self.inv_freq
        cos, sin = mx.cos(angles), mx.sin(angles)
        turn = mx.concatenate([cos, cos], axis=-1), mx.concatenate([-sin, sin], axis=-1)
        x = self.embed_tokens(tokens).astype(self.norm.weight.dtype)
        written = []
        for layer, buffer in zip(self.layers, buffers, strict=True):
            x, buffer = layer(x, turn, offset, mask, buffer)
            written.append(buffer)
        return [self.head(self.norm(x)), *written]


class _Layer:
    """One decoder block, x (B, hidden) and the cache's buffer (2, B, K, S, D) in and out."""

    def __init__(self, block: Block):
        attention, mlp = block.self_attn, block.mlp
        self.heads, self.head_dim, self.scale = attention.heads, attention.head_dim, attention.scale
        self.input_norm, self.post_norm, self.eps = (
            block.input_layernorm,
            block.post_attention_layernorm,
            attention.q_norm.eps,
        )
        norms = [attention.q_norm.weight] * attention.heads + [attention.k_norm.weight] * attention.kv_heads
        self.qk_weight = mx.stack(norms)[:, None]
        mx.eval(self.qk_weight)
        self.qkv_proj, self.gate_up_proj = project(attention.qkv_proj), project(mlp.gate_up_proj)
        self.add_o_proj, self.add_down_proj = project_and_add(attention.o_proj), project_and_add(mlp.down_proj)

    def __call__(
        self, x: mx.array, turn: tuple[mx.array, mx.array], offset: mx.array, mask: mx.array, buffer: mx.array
    ) -> tuple[mx.array, mx.array]:
        B = x.shape[0]
        qkv = self.qkv_proj(self.input_norm(x)).reshape(B, -1, 1, self.head_dim)
        q, kv = kernels.norm_rope(qkv, self.qk_weight, *turn, self.eps)
        buffer = mx.slice_update(buffer, kv, offset, (3,))
        out = kernels.attend(q, buffer[0, :], buffer[1, :], self.scale, mask)
        x = self.add_o_proj(x, out.reshape(B, -1))
        gate_up = self.gate_up_proj(self.post_norm(x))
        inner = gate_up.shape[1] // 2
        gate, up = gate_up[:, :inner], gate_up[:, inner:]
        return self.add_down_proj(x, gate * mx.sigmoid(gate) * up), buffer


def project(linear: nn.Module) -> Callable[[mx.array], mx.array]:
    """y -> linear(y), with the weight transposed beforehand and not in the graph."""
    if not isinstance(linear, nn.Linear):
        return linear
    weight = _transposed(linear)
    return lambda y: y @ weight


def project_and_add(linear: nn.Module) -> Callable[[mx.array, mx.array], mx.array]:
    """x, y -> x + linear(y), in one call where MLX has it."""
    if not isinstance(linear, nn.Linear):
        return lambda x, y: x + linear(y)
    weight = _transposed(linear)
    return lambda x, y: mx.addmm(x, y, weight)


def _transposed(linear: nn.Linear) -> mx.array:
    weight = linear.weight.T
    mx.eval(weight)
    return weight
