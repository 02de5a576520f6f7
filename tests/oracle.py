"""Qwen3 in float64 NumPy, from its definition: no cache, no fused projections, no code shared with the package.

B batch, L tokens, H query heads, K key/value heads, D head_dim
"""

import math
from typing import Any

import numpy as np

Weights = dict[str, np.ndarray]


def hidden_states(
    config: dict[str, Any], weights: Weights, ids: np.ndarray, first_position: int = 0
) -> list[np.ndarray]:
    """The residual stream (B, L, hidden) after the embedding and after each layer, for token ids (B, L)."""
    w = {name.removeprefix("model."): value.astype(np.float64) for name, value in weights.items()}
    cos, sin = rotation(config, np.arange(ids.shape[1]))
    x = w["embed_tokens.weight"][ids]
    states = [x]
    for i in range(config["num_hidden_layers"]):
        layer = {n.removeprefix(f"layers.{i}."): v for n, v in w.items() if n.startswith(f"layers.{i}.")}
        x = x + attention(config, layer, rms_norm(x, layer["input_layernorm.weight"], config), cos, sin)
        y = rms_norm(x, layer["post_attention_layernorm.weight"], config)
        x = x + (experts(config, layer, y) if "mlp.gate.weight" in layer else mlp(layer, "mlp", y))
        states.append(x)
    return states


def logits(config: dict[str, Any], weights: Weights, ids: np.ndarray) -> np.ndarray:
    """(B, L, V)."""
    x = hidden_states(config, weights, ids)[-1]
    head = weights["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return rms_norm(x, weights["model.norm.weight"], config) @ head.astype(np.float64).T


def mlp(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    gate, up = x @ w[f"{name}.gate_proj.weight"].T, x @ w[f"{name}.up_proj.weight"].T
    return (gate / (1 + np.exp(-gate)) * up) @ w[f"{name}.down_proj.weight"].T


def experts(config: dict[str, Any], w: Weights, x: np.ndarray) -> np.ndarray:
    """Every expert for every token, x (B, L, hidden); the weights of those that are not chosen are 0."""
    scores = x @ w["mlp.gate.weight"].T  # (B, L, E)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    least = np.sort(p, axis=-1)[..., -config["num_experts_per_tok"], None]
    p = np.where(p >= least, p, 0)
    if config.get("norm_topk_prob", False):
        p /= p.sum(-1, keepdims=True)
    outputs = [mlp(w, f"mlp.experts.{number}", x) for number in range(config["num_experts"])]
    return np.einsum("ble,eblh->blh", p, np.array(outputs))


def rms_norm(x: np.ndarray, weight: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weight


def attention(config: dict[str, Any], w: Weights, x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    B, L, _ = x.shape
    H, K, D = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    q = rms_norm((x @ w["self_attn.q_proj.weight"].T).reshape(B, L, H, D), w["self_attn.q_norm.weight"], config)
    k = rms_norm((x @ w["self_attn.k_proj.weight"].T).reshape(B, L, K, D), w["self_attn.k_norm.weight"], config)
    v = (x @ w["self_attn.v_proj.weight"].T).reshape(B, L, K, D)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    out = np.zeros((B, L, H, D))
    for head in range(H):
        shared = head * K // H  # consecutive query heads share a key/value head
        for t in range(L):
            scores = np.einsum("bd,bsd->bs", q[:, t, head], k[:, : t + 1, shared]) / math.sqrt(D)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, t, head] = np.einsum("bs,bsd->bd", p / p.sum(-1, keepdims=True), v[:, : t + 1, shared])
    return out.reshape(B, L, H * D) @ w["self_attn.o_proj.weight"].T


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Turn the pairs (i, i + D/2) of x (B, L, heads, D) by angles (L, D/2)."""
    first, second = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def rotation(config: dict[str, Any], positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin (L, D/2), multiplied by YaRN's attention factor if there is one."""
    D, theta = config["head_dim"], config["rope_theta"]
    frequency = theta ** (-np.arange(0, D, 2) / D)
    factor = 1.0
    if yarn := config.get("rope_scaling"):
        stretch, original = yarn["factor"], yarn["original_max_position_embeddings"]
        low, high = (D * math.log(original / (n * 2 * math.pi)) / (2 * math.log(theta)) for n in (32, 1))
        low, high = max(math.floor(low), 0), min(math.ceil(high), D - 1)
        ramp = np.clip((np.arange(D // 2) - low) / (high - low), 0, 1)
        frequency = frequency * (1 - ramp) + frequency / stretch * ramp
        factor = yarn.get("attention_factor", 0.1 * math.log(stretch) + 1)
    angles = positions[:, None] * frequency
    return np.cos(angles) * factor, np.sin(angles) * factor


def attention_over(q: np.ndarray, kv: np.ndarray, scale: float, causal: bool) -> np.ndarray:
    """Attention of q (B, H, L, D) over keys and values (2, B, K, S, D); causal: the last query sees all keys."""
    q, (keys, values) = q.astype(np.float64), kv.astype(np.float64)
    keys, values = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (keys, values))
    scores = scale * q @ keys.swapaxes(2, 3)
    L, S = scores.shape[2:]
    if causal:
        scores = np.where(np.arange(S) <= np.arange(S - L, S)[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights @ values / weights.sum(axis=-1, keepdims=True)
