"""Rotary positions against transformers' own rotation, and the values written out."""

from copy import deepcopy

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import TINY, YARN

from mlx_qwen3.files.config import Qwen3Config
from mlx_qwen3.model.rope import RoPE, inverse_frequencies, rotate

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.03 * pair for pair in range(64)],
    "long_factor": [2.0 + 0.5 * pair for pair in range(64)],
}
SCALINGS = {
    "default": None,
    "yarn": YARN,
    "yarn, not truncated": {**YARN, "truncate": False},
    "yarn, other betas": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn, mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.4},
    "yarn, attention factor": {**YARN, "attention_factor": 1.3},
    "yarn, no original": {"rope_type": "yarn", "factor": 4.0},
    "yarn, factor from the lengths": {**YARN, "factor": None},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.5},
    "llama3": LLAMA3,
    "llama3, narrow": {**LLAMA3, "low_freq_factor": 2.0, "high_freq_factor": 2.5, "factor": 32.0},
    "longrope": LONGROPE,
    "longrope, factor": {**LONGROPE, "factor": 4.0},
    "longrope, attention factor": {**LONGROPE, "factor": 4.0, "attention_factor": 1.3},
}

# Ramps that meet the ends of the head: no release has them, so only the formula is compared.
EXTREME = {
    "both ends cut": {**YARN, "original_max_position_embeddings": 64, "beta_fast": 16.0},
    "no length": {**YARN, "original_max_position_embeddings": 4, "beta_fast": 2.0},
}


def with_scaling(scaling):
    return {**TINY, "head_dim": 128, **({"rope_scaling": dict(scaling)} if scaling else {})}


@pytest.fixture(params=SCALINGS.values(), ids=SCALINGS.keys())
def settings(request):
    return with_scaling(request.param)


@pytest.fixture
def reference(settings):
    modeling = pytest.importorskip("transformers.models.qwen3.modeling_qwen3")
    return modeling.Qwen3RotaryEmbedding(modeling.Qwen3Config(**deepcopy(settings))), modeling.apply_rotary_pos_emb


def turned(config, x, positions):
    """x (B, heads, L, D) at positions (B, L)"""
    return np.array(rotate(mx.array(x), *RoPE(config)(mx.array(positions))))


@pytest.mark.parametrize("position", [0, 1_000, 8_000, 40_000])
def test_rotation_equals_transformers(settings, reference, position):
    torch = pytest.importorskip("torch")
    embedding, apply = reference
    config = Qwen3Config.from_hf(settings)
    x = np.random.default_rng(position).normal(size=(2, 3, 5, 128)).astype(np.float32)
    positions = torch.arange(position, position + 5)[None]
    theirs, _ = apply(torch.tensor(x), torch.tensor(x), *embedding(torch.tensor(x), positions))
    ours = turned(config, x, positions.expand(2, 5).numpy())
    factor = config.attention_factor  # ours is folded into the scale of the scores
    # Measured at 40,000: 2.8e-6, and 9.4e-5 with YaRN. It is one unit in the last place of a frequency, 40,000-fold.
    assert np.abs(ours * factor - theirs.numpy()).max() < (2e-4 if config.rope_scaling else 5e-6)


@pytest.mark.parametrize("scaling", [*SCALINGS.values(), *EXTREME.values()], ids=[*SCALINGS, *EXTREME])
def test_frequencies_and_attention_factor_equal_transformers(scaling):
    modeling = pytest.importorskip("transformers.models.qwen3.modeling_qwen3")
    settings = with_scaling(scaling)
    theirs = modeling.Qwen3RotaryEmbedding(modeling.Qwen3Config(**deepcopy(settings)))
    config = Qwen3Config.from_hf(settings)
    ours = inverse_frequencies(128, config.rope_theta, config.rope_scaling)
    np.testing.assert_allclose(ours, theirs.inv_freq.numpy(), rtol=3e-7)  # measured: 2.01e-7
    assert config.attention_factor == pytest.approx(theirs.attention_scaling)


def test_halves_are_rotated_and_not_neighbours():
    config = Qwen3Config.from_hf({**TINY, "head_dim": 4, "rope_theta": 10000.0})
    x = np.array([1.0, 0.0, 0.0, 0.0], np.float32).reshape(1, 1, 1, 4)
    assert turned(config, x, [[1]]).ravel() == pytest.approx([np.cos(1), 0, np.sin(1), 0])


def test_rows_can_start_at_different_positions():
    config, x = Qwen3Config.from_hf(TINY), np.random.default_rng(0).normal(size=(2, 3, 4, 20)).astype(np.float32)
    together = turned(config, x, [[7, 8, 9, 10], [2, 3, 4, 5]])
    alone = turned(config, x[:1], [[7, 8, 9, 10]]), turned(config, x[1:], [[2, 3, 4, 5]])
    assert np.array_equal(together, np.concatenate(alone))
