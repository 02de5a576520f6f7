"""Mistakes that a port of Qwen3 can make, planted one by one: the comparison with the oracle must find each.

MUTATIONS at the end of this file is the list.
"""

import mlx.core as mx
import numpy as np
import oracle
import pytest
from arrays import as_numpy
from checkpoints import TINY, YARN, random_weights, write_checkpoint

from mlx_qwen3.engine.runner import decode_step
from mlx_qwen3.model import kernels
from mlx_qwen3.model.cache import KVCache
from mlx_qwen3.model.load import load_model
from mlx_qwen3.model.qwen3 import Block
from mlx_qwen3.model.view import EagerView

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


def errors(model, ids, expected) -> dict[str, float]:
    """Largest difference of the logits: of a prompt in two chunks, then of single passes and of decode steps."""
    found: dict[str, float] = {}

    def compare(name, logits, first):
        for row, pad in enumerate(PADDING):
            skip = max(0, pad - first)
            right = expected[row][first + skip - pad : first + logits.shape[1] - pad]
            found[name] = max(found.get(name, 0.0), float(np.abs(logits[row, skip:] - right).max()))

    single = {"passes": lambda tokens, cache: model(tokens[:, None], cache)[:, 0], "steps": decode_step(model)}
    for name, step in single.items():
        cache = model.make_cache(2, PADDING)
        for first, end in ((0, 20), (20, 30)):
            compare("prompt", as_numpy(model(mx.array(ids[:, first:end]), cache)), first)
        for place in range(30, 37):
            compare(name, as_numpy(step(mx.array(ids[:, place]), cache))[:, None], place)
    return found


def swap(module, first, second):
    module[first], module[second] = module[second], module[first]


def swap_qk_norms(model, patch):
    for layer in model.layers:
        swap(layer.self_attn, "q_norm", "k_norm")


def swap_block_norms(model, patch):
    swap(model.layers[1], "input_layernorm", "post_attention_layernorm")


def drop_qk_norm(model, patch):
    patch.setattr(kernels, "qk_norm", lambda qk, weight, eps: qk * weight)


def drop_final_norm(model, patch):
    model.norm.weight = mx.ones_like(model.norm.weight)


def other_epsilon(model, patch):
    for layer in model.layers:
        layer.self_attn.q_norm.eps = layer.self_attn.k_norm.eps = 1e-2


def with_positions(model, change):
    """`change` computes the positions of the rotation from those of the view."""
    turn = model.rope
    model.rope = lambda positions: turn(change(positions))


def off_by_one_in_decode(model, patch):
    with_positions(model, lambda positions: positions + (1 if positions.shape[1] == 1 else 0))


def standing_still(model, patch):
    with_positions(model, lambda positions: mx.minimum(positions, 20))


def neighbours(model, patch):
    def rotate(x, cos, sin):
        cos, sin = (mx.repeat(half[..., : half.shape[-1] // 2], 2, axis=-1) for half in (cos, -sin))
        swapped = mx.stack([-x[..., 1::2], x[..., ::2]], axis=-1).reshape(x.shape)
        return x * cos + swapped * sin

    patch.setattr(kernels, "rotate", rotate)


def no_attention_factor(model, patch):
    for layer in model.layers:
        layer.self_attn.scale = layer.self_attn.head_dim**-0.5


def scale_by_hidden_over_heads(model, patch):
    for layer in model.layers:
        layer.self_attn.scale *= (CONFIG["head_dim"] / (CONFIG["hidden_size"] / CONFIG["num_attention_heads"])) ** 0.5


def kv_heads_in_turn(model, patch):
    attend = kernels.attend

    def tiled(q, kv, scale, mask):
        return attend(q, mx.tile(kv, (1, 1, q.shape[1] // kv.shape[2], 1, 1)), scale, mask)

    patch.setattr(kernels, "attend", tiled)


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
    attend = EagerView.attend

    def forgetful(view, layer, q, kv, scale):
        if layer == 1 and len(view.buffers) > 1:
            view.buffers[1][0, :, :, : view._first] = 0
        return attend(view, layer, q, kv, scale)

    patch.setattr(EagerView, "attend", forgetful)


def keys_as_values(model, patch):
    patch.setattr(EagerView, "attend", lambda v, i, q, kv, scale, real=EagerView.attend: real(v, i, q, kv[::-1], scale))


def padding_visible(model, patch):
    patch.setattr(KVCache, "mask", lambda c, length: "causal" if length > 1 else None)


def queries_shifted_against_keys(model, patch):
    """A shift of both is invisible, since RoPE is relative."""
    turn = model.rope

    def apart(positions):
        queries, keys = turn(positions + 1), turn(positions)
        return [mx.concatenate([q] * 6 + [k] * 2, axis=1) for q, k in zip(queries, keys, strict=True)]

    model.rope = apart


def no_activation(model, patch):
    patch.setattr(kernels, "swiglu", lambda gate_up: mx.multiply(*mx.split(gate_up, 2, axis=-1)))


def post_norm(model, patch):
    def block(m, x, turn, view, keep=None):
        q, kv = m.self_attn.project(x, turn, view)
        out = view.attend(m.self_attn.layer, q, kv, m.self_attn.scale)
        x = m.input_layernorm(m.self_attn.merge(x, out, view))
        return m.mlp(m.post_attention_layernorm(x), x, view)

    patch.setattr(Block, "__call__", block)


def norm_over_all_heads(model, patch):
    norm = kernels.qk_norm

    def wide(qk, weight, eps):
        return norm(qk, weight, eps) * mx.rsqrt(mx.mean(qk**2, axis=(-1, -2), keepdims=True))

    patch.setattr(kernels, "qk_norm", wide)


MUTATIONS = [
    swap_qk_norms,
    swap_block_norms,
    drop_qk_norm,
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
    keys_as_values,
    padding_visible,
    queries_shifted_against_keys,
    no_activation,
    post_norm,
    norm_over_all_heads,
]


def test_the_model_as_it_is_passes(folder, ids, expected):
    assert max(errors(load_model(folder, "fp32"), ids, expected).values()) < 2e-5


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_a_planted_mistake_is_seen(mutate, folder, ids, expected, monkeypatch):
    model = load_model(folder, "fp32")
    mutate(model, monkeypatch)
    found = errors(model, ids, expected)
    if mutate is off_by_one_in_decode:
        assert found.pop("prompt") < 2e-5
    assert min(found.values()) > 1e-3, found  # fifty times the tolerance
