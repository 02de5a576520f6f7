"""Mistakes that a port of Qwen3 can make, planted one by one: the comparison with the oracle must see each.

MUTATIONS at the end of this file is the list.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import oracle
import pytest
from arrays import as_numpy
from checkpoints import TINY, YARN, random_weights, write_checkpoint

from mlx_qwen3.model.cache import KVCache
from mlx_qwen3.model.load import load_model
from mlx_qwen3.model.qwen3 import MLP, Block
from mlx_qwen3.model.rope import RoPE

CONFIG = {**TINY, "rope_scaling": YARN, "rms_norm_eps": 1e-5}
PADDING = [0, 6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("mutations"), CONFIG)


@pytest.fixture(scope="module")
def expected(ids):
    """The second row is shorter and left-padded; the oracle knows only rows."""
    weights = random_weights(CONFIG)
    return [oracle.logits(CONFIG, weights, ids[row : row + 1, pad:])[0] for row, pad in enumerate(PADDING)]


def error(model, ids, expected) -> float:
    """Largest difference of the logits, over a prefill, a second chunk and single steps."""
    cache = model.make_cache(2, PADDING)
    pieces = [
        as_numpy(model(mx.array(piece), cache)) for piece in np.split(ids, [20, 30, 31, 32, 33, 34, 35, 36], axis=1)
    ]
    logits = np.concatenate(pieces, axis=1)
    return max(float(np.abs(logits[row, pad:] - expected[row]).max()) for row, pad in enumerate(PADDING))


def swap(module, first, second):
    module[first], module[second] = module[second], module[first]


def swap_qk_norms(model, patch):
    for layer in model.layers:
        swap(layer.self_attn, "q_norm", "k_norm")


def swap_block_norms(model, patch):
    swap(model.layers[1], "input_layernorm", "post_attention_layernorm")


def drop_q_norm(model, patch):
    model.layers[0].self_attn.q_norm = nn.Identity()


def drop_final_norm(model, patch):
    model.norm.weight = mx.ones_like(model.norm.weight)


def other_epsilon(model, patch):
    for layer in model.layers:
        layer.self_attn.q_norm.eps = layer.self_attn.k_norm.eps = 1e-2


def off_by_one_in_decode(model, patch):
    positions = KVCache.positions.fget
    patch.setattr(KVCache, "positions", property(lambda c: positions(c) + (1 if c.offset else 0)))


def standing_still(model, patch):
    patch.setattr(KVCache, "positions", property(lambda c: min(c.offset, 20) - c.padding))


def neighbours(model, patch):
    def rotate(self, x, offset):
        return mx.fast.rope(x, self.dims, traditional=True, base=None, scale=1.0, offset=offset, freqs=self.freqs)

    patch.setattr(RoPE, "__call__", rotate)


def no_attention_factor(model, patch):
    for layer in model.layers:
        layer.self_attn.scale = layer.self_attn.head_dim**-0.5


def scale_by_hidden_over_heads(model, patch):
    for layer in model.layers:
        layer.self_attn.scale *= (CONFIG["head_dim"] / (CONFIG["hidden_size"] / CONFIG["num_attention_heads"])) ** 0.5


def kv_heads_in_turn(model, patch):
    attention = mx.fast.scaled_dot_product_attention

    def tiled(q, k, v, **options):
        repeats = q.shape[1] // k.shape[1]
        return attention(q, mx.tile(k, (1, repeats, 1, 1)), mx.tile(v, (1, repeats, 1, 1)), **options)

    patch.setattr(mx.fast, "scaled_dot_product_attention", tiled)


def no_causal_mask(model, patch):
    mask = KVCache.mask
    patch.setattr(KVCache, "mask", lambda c, length: mask(c, length)[..., -1:, :])


def swap_gate_and_up(model, patch):
    weight = model.layers[0].mlp.gate_up_proj.weight
    model.layers[0].mlp.gate_up_proj.weight = mx.concatenate(mx.split(weight, 2)[::-1])


def swap_q_and_k_rows(model, patch):
    weight, (H, K, D) = model.layers[1].self_attn.qkv_proj.weight, (6, 2, 20)
    q, k, v = mx.split(weight, [H * D, (H + K) * D])
    model.layers[1].self_attn.qkv_proj.weight = mx.concatenate([k, q, v])


def drop_a_layers_cache(model, patch):
    update = KVCache.update

    def forgetful(cache, layer, k, v):
        keys, values = update(cache, layer, k, v)
        past = keys[:, :, : -k.shape[2]] * (0 if layer == 1 else 1)
        return mx.concatenate([past, k], axis=2), values

    patch.setattr(KVCache, "update", forgetful)


def padding_visible(model, patch):
    patch.setattr(KVCache, "mask", lambda c, length: "causal" if length > 1 else None)


def queries_shifted_against_keys(model, patch):
    """A shift of both is invisible, since RoPE is relative."""
    rotate = RoPE.__call__
    patch.setattr(RoPE, "__call__", lambda self, x, offset: rotate(self, x, offset + (x.shape[1] == 6)))


def no_activation(model, patch):
    patch.setattr(MLP, "__call__", lambda m, x: m.down_proj(mx.multiply(*mx.split(m.gate_up_proj(x), 2, axis=-1))))


def post_norm(model, patch):
    def block(m, x, cache, mask):
        x = m.input_layernorm(x + m.self_attn(x, cache, mask))
        return x + m.mlp(m.post_attention_layernorm(x))

    patch.setattr(Block, "__call__", block)


def norm_over_all_heads(model, patch):
    norm = nn.RMSNorm.__call__

    def wide(m, x):
        return norm(m, x) if x.ndim == 3 else norm(m, x) * mx.rsqrt(mx.mean(x**2, axis=(-1, -2), keepdims=True))

    patch.setattr(nn.RMSNorm, "__call__", wide)


MUTATIONS = [
    swap_qk_norms,
    swap_block_norms,
    drop_q_norm,
    drop_final_norm,
    other_epsilon,
    off_by_one_in_decode,
    standing_still,
    neighbours,
    no_attention_factor,
    scale_by_hidden_over_heads,
    kv_heads_in_turn,
    no_causal_mask,
    swap_gate_and_up,
    swap_q_and_k_rows,
    drop_a_layers_cache,
    padding_visible,
    queries_shifted_against_keys,
    no_activation,
    post_norm,
    norm_over_all_heads,
]


def test_the_model_as_it_is_passes(folder, ids, expected):
    assert error(load_model(folder, "fp32"), ids, expected) < 2e-5


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_a_planted_mistake_is_seen(mutate, folder, ids, expected, monkeypatch):
    model = load_model(folder, "fp32")
    mutate(model, monkeypatch)
    assert error(model, ids, expected) > 1e-3  # fifty times the tolerance
