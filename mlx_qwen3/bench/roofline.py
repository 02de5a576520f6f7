"""The speed limits that memory bandwidth and arithmetic set for every program.

L prompt tokens, N weights of the layers' matrices for one token, H query heads, D head_dim
"""

from ..files.config import Qwen3Config


def decode_limit(bytes_per_second: float, bytes_per_token: float) -> float:
    """Tokens per second, if every byte of weights and cache is read once for each token."""
    return bytes_per_second / bytes_per_token


def prefill_limit(flops: float, config: Qwen3Config, length: int) -> float:
    """Tokens per second, if only what causal attention and one row of logits need is computed."""
    return length * flops / prefill_operations(config, length)


def prefill_operations(config: Qwen3Config, L: int) -> int:
    """Additions and multiplications of a prompt: the matrices, half of the L x L scores twice, one row of logits."""
    N = layer_weights(config)
    attention = 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * L * L
    return 2 * N * L + attention + 2 * config.hidden_size * config.vocab_size


def layer_weights(config: Qwen3Config) -> int:
    """Of all layers, without the experts that a token does not go through."""
    c = config
    heads = (2 * c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim  # q, o; k, v
    routers = len(c.moe.layers) * c.moe.num_experts if c.moe else 0
    return c.hidden_size * (c.num_hidden_layers * heads + 3 * sum(c.active_widths) + routers)
