"""Qwen3 in plain torch, written to be read and to compare with: float32 on the CPU, no cache, no fused projection.

B batch, L tokens, H query heads, K key/value heads, D head_dim, V vocabulary, E experts, k of them for each token
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
import torch.nn.functional as F

from ..files.checkpoint import Checkpoint
from ..files.config import Qwen3Config
from ..files.rope import Linear, Llama3, LongRope, Scaling, Yarn
from ..files.values import unpacked
from .attention import attention_chunk

Steps = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Reference:
    """A model: its config, and its weights by Hugging Face name without `model.` and `.weight`."""

    config: Qwen3Config
    weights: dict[str, torch.Tensor]

    @torch.no_grad()
    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits (B, L, V) of token ids (B, L)."""
        *_, last = self.steps(ids)
        return last["logits"]

    @torch.no_grad()
    def steps(self, ids: torch.Tensor) -> Iterator[Steps]:
        """Every tensor of each layer by the name of its step, then final_norm and logits: layers + 1 times."""
        x = self.weights["embed_tokens"][ids]  # (B, L, hidden)
        cos, sin = rotation(self.config, ids.shape[1])
        for layer in range(self.config.num_hidden_layers):
            prefix = f"layers.{layer}."
            w = {name.removeprefix(prefix): value for name, value in self.weights.items() if name.startswith(prefix)}
            steps = {"input": x} | attention(self.config, w, x, cos, sin)
            sparse = self.config.moe is not None and layer in self.config.moe.layers
            steps |= (moe if sparse else mlp)(self.config, w, steps["residual"])
            yield steps
            x = steps["output"]
        hidden = rms_norm(x, self.weights["norm"], self.config.rms_norm_eps)
        head = self.weights["embed_tokens" if self.config.tie_word_embeddings else "lm_head"]
        yield {"final_norm": hidden, "logits": hidden @ head.T}


def load_reference(checkpoint: Checkpoint | str | Path) -> Reference:
    """The reference of a checkpoint in any supported layout, or of its folder; packed weights are unpacked.

    Raises ConfigError or CheckpointError.
    """
    checkpoint = Checkpoint.of(checkpoint)
    parts = checkpoint.parts.values()
    arrays = {part.name: unpacked(part.leaves, part.quantization).astype(mx.float32) for part in parts}
    return Reference(checkpoint.config, {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})


def attention(
    config: Qwen3Config, w: dict[str, torch.Tensor], x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> Steps:
    """The attention half of a block, from its input (B, L, hidden) to the residual stream after it."""
    B, L, _ = x.shape
    H, K, D, eps = config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.rms_norm_eps
    s: Steps = {}
    s["input_norm"] = rms_norm(x, w["input_layernorm"], eps)
    s["q_split"] = s["input_norm"] @ w["self_attn.q_proj"].T  # (B, L, H * D)
    s["k_split"] = s["input_norm"] @ w["self_attn.k_proj"].T  # (B, L, K * D)
    s["v_split"] = s["input_norm"] @ w["self_attn.v_proj"].T
    s["qkv"] = torch.cat([s["q_split"], s["k_split"], s["v_split"]], dim=-1)  # only the mlx model fuses them
    s["q_heads"] = s["q_split"].reshape(B, L, H, D)
    s["k_heads"] = s["k_split"].reshape(B, L, K, D)
    s["v_heads"] = s["v_split"].reshape(B, L, K, D)
    s["q_norm"] = rms_norm(s["q_heads"], w["self_attn.q_norm"], eps)  # over D, one weight for all heads
    s["k_norm"] = rms_norm(s["k_heads"], w["self_attn.k_norm"], eps)
    s["q_heads_transposed"] = s["q_norm"].transpose(1, 2)  # (B, H, L, D)
    s["k_heads_transposed"] = s["k_norm"].transpose(1, 2)
    s["v_heads_transposed"] = s["v_heads"].transpose(1, 2)
    s["q_rope"] = rotate(s["q_heads_transposed"], cos, sin)
    s["k_rope"] = rotate(s["k_heads_transposed"], cos, sin)
    s["k_cache"], s["v_cache"] = s["k_rope"], s["v_heads_transposed"]  # no cache: all tokens are new
    # In blocks of queries, because torch's fused kernel on MPS stores all scores (B, H, L, L).
    s["merged_heads"] = attention_chunk(s["q_rope"], s["k_cache"], s["v_cache"], scale=attention_scale(config))
    s["attention"] = s["merged_heads"].reshape(B, L, H, D).transpose(1, 2)
    s["o_proj"] = s["merged_heads"] @ w["self_attn.o_proj"].T
    s["residual"] = x + s["o_proj"]
    return s


def mlp(config: Qwen3Config, w: dict[str, torch.Tensor], x: torch.Tensor) -> Steps:
    """The other half: SwiGLU (arXiv 2002.05202), x (B, L, hidden) -> the block's output."""
    s: Steps = {}
    s["post_norm"] = rms_norm(x, w["post_attention_layernorm"], config.rms_norm_eps)
    gate, up = s["post_norm"] @ w["mlp.gate_proj"].T, s["post_norm"] @ w["mlp.up_proj"].T
    s["gate_up"] = torch.cat([gate, up], dim=-1)
    s["activation"] = F.silu(gate) * up
    s["down"] = s["activation"] @ w["mlp.down_proj"].T
    s["output"] = x + s["down"]
    return s


def moe(config: Qwen3Config, w: dict[str, torch.Tensor], x: torch.Tensor) -> Steps:
    """The other half with experts: each token goes through the few that the router chooses."""
    assert config.moe is not None
    s: Steps = {}
    s["post_norm"] = rms_norm(x, w["post_attention_layernorm"], config.rms_norm_eps)
    s["router_logits"] = s["post_norm"] @ w["mlp.gate"].T  # (B, L, E)
    weights = torch.softmax(s["router_logits"], dim=-1)
    s["chosen_experts"] = weights.topk(config.moe.num_experts_per_tok).indices.sort().values  # (B, L, k)
    s["expert_weights"] = weights.gather(-1, s["chosen_experts"])
    if config.moe.norm_topk_prob:
        s["expert_weights"] = s["expert_weights"] / s["expert_weights"].sum(-1, keepdim=True)
    gate_up, activation, down = [], [], []
    for token, experts in zip(s["post_norm"].flatten(0, 1), s["chosen_experts"].flatten(0, 1).tolist(), strict=True):
        for prefix in (f"mlp.experts.{expert}." for expert in experts):
            gate, up = token @ w[prefix + "gate_proj"].T, token @ w[prefix + "up_proj"].T
            gate_up.append(torch.cat([gate, up]))
            activation.append(F.silu(gate) * up)
            down.append(activation[-1] @ w[prefix + "down_proj"].T)
    each = {"expert_gate_up": gate_up, "expert_activation": activation, "expert_down": down}
    s |= {name: torch.stack(rows).reshape(*s["chosen_experts"].shape, -1) for name, rows in each.items()}
    s["down"] = (s["expert_weights"][..., None] * s["expert_down"]).sum(-2)
    s["output"] = x + s["down"]
    return s


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """arXiv 1910.07467, over the last axis."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE (arXiv 2104.09864): turn the pairs (i, i + D/2) of x (B, heads, L, D) by angles (L, D/2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rotation(config: Qwen3Config, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (L, D/2) of the angles of positions 0 to L - 1."""
    D, theta = config.head_dim, config.rope_theta
    inv_freq = theta ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)  # radians per token, (D/2,)
    inv_freq = inv_freq / stretching(inv_freq, config.rope_scaling, theta)
    # Every implementation has float32 angles; at position 40,000 their rounding shows.
    angles = torch.arange(length, dtype=torch.float32)[:, None] * inv_freq.float()
    return angles.cos(), angles.sin()


def stretching(inv_freq: torch.Tensor, scaling: Scaling | None, theta: float) -> torch.Tensor | float:
    """The factors by which each pair turns more slowly, (D/2,) or one number, to allow a longer context."""
    if isinstance(scaling, Linear):
        return scaling.factor
    if isinstance(scaling, LongRope):
        return torch.tensor(scaling.short_factor, dtype=torch.float64)
    if isinstance(scaling, Yarn):
        keep = yarn_keep(scaling, 2 * len(inv_freq), theta)
    elif isinstance(scaling, Llama3):  # turns within the original context, between the two limits
        turns = scaling.original_max_position_embeddings * inv_freq / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        keep = ((turns - low) / (high - low)).clamp(0, 1)
    else:
        return 1.0
    return 1 / (keep + (1 - keep) / scaling.factor)


def yarn_keep(yarn: Yarn, D: int, theta: float) -> torch.Tensor:
    """YaRN (arXiv 2309.00071), (D/2,): 1 for pairs that make many turns within the original context, 0 for few."""

    def pair(turns: float) -> float:  # the index of the pair that makes this many turns in the original context
        return D * math.log(yarn.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(yarn.beta_fast), pair(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, D - 1)
    ramp = (torch.arange(D // 2, dtype=torch.float64) - low) / (high - low if high != low else 0.001)
    return 1 - ramp.clamp(0, 1)


def attention_scale(config: Qwen3Config) -> float:
    """D ** -0.5. YaRN multiplies both q and k by its attention factor; here the scale takes its square instead."""
    return config.head_dim**-0.5 * config.attention_factor**2
