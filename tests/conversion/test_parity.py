"""`verify` with transformers: every layer agrees, and the first that does not is named."""

import json

import mlx.core as mx
import pytest
from checkpoints import VOCABULARY, write_checkpoint

from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.conversion.parity import compare_with_transformers
from mlx_qwen3.conversion.verify import report, verify
from mlx_qwen3.errors import UsageError, VerificationError
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.model import qwen3 as model_module
from mlx_qwen3.table import Line

PACKABLE = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256, "vocab_size": VOCABULARY}


@pytest.mark.parametrize("options", [{}, {"dtype": "bf16"}, {"quantize": "affine4"}, {"quantize": "mxfp4"}], ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_every_layer_agrees_with_transformers(options, tied, tmp_path):
    pytest.importorskip("torch")
    source = write_checkpoint(tmp_path / "source", **PACKABLE, tie_word_embeddings=tied)
    convert(source, tmp_path / "out", **options)
    found = verify(tmp_path / "out", transformers=True)
    assert [state.place for state in found.transformers][:3] == ["the embedding", "layer 0", "layer 1"]
    assert len(found.transformers) == 4
    assert all(state.relative < 2e-6 for state in found.transformers)  # the weights are the same; measured 5e-7
    found = verify(tmp_path / "out", source, transformers=True)
    assert all(state.relative < state.bound for state in found.transformers)
    assert any(isinstance(part, Line) and part.text.startswith("layer 1: ") for part in report(found))
    assert found.summary()["transformers"][1] == vars(found.transformers[1])
    assert found.summary()["transformers"][1].keys() == {"place", "relative", "bound"}


@pytest.mark.parametrize(
    ("tensor", "place"),
    [
        ("embed_tokens.weight", "the embedding"),
        ("layers.0.self_attn.k_norm.weight", "layer 0"),
        ("layers.1.mlp.down_proj.weight", "layer 1"),
        ("norm.weight", r"the logits \(final norm, output matrix\)"),
    ],
)
def test_the_first_layer_that_differs_is_named(tiny, tensor, place, tmp_path):
    """Against the source: one weight of the result is wrong, its certificate is not asked."""
    pytest.importorskip("torch")
    convert(tiny, tmp_path / "out", divergence=False)
    path = tmp_path / "out" / "model.safetensors"
    weights = mx.load(str(path))
    weights[tensor] = weights[tensor] * 1.5 + mx.arange(weights[tensor].shape[-1]) * 0.01
    mx.save_safetensors(str(path), weights)
    with pytest.raises(
        VerificationError, match=f"^{place} differs from transformers by .* past 0.0001; all before it agrees"
    ):
        list(compare_with_transformers(Checkpoint(tmp_path / "out"), Checkpoint(tiny)))


def test_a_nan_on_one_side_is_a_difference(tiny, tmp_path):
    pytest.importorskip("torch")
    convert(tiny, tmp_path / "out", divergence=False)
    path = tmp_path / "out" / "model.safetensors"
    weights = mx.load(str(path))
    weights["layers.1.mlp.down_proj.weight"][3, 5] = float("nan")
    mx.save_safetensors(str(path), weights)
    with pytest.raises(VerificationError, match=r"^layer 1 has NaN or infinite values where transformers has none"):
        list(compare_with_transformers(Checkpoint(tmp_path / "out"), Checkpoint(tiny)))


def test_a_mistake_in_the_forward_pass_is_seen_without_the_source(tiny, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    convert(tiny, tmp_path / "out", divergence=False)
    real = model_module.MLP.__call__
    calls = []

    def second_is_wrong(self, x, *rest):
        calls.append(0)
        return real(self, x, *rest) * (1.1 if len(calls) % 2 == 0 else 1)

    monkeypatch.setattr(model_module.MLP, "__call__", second_is_wrong)
    with pytest.raises(VerificationError, match=r"^layer 1 differs from transformers"):
        verify(tmp_path / "out", transformers=True)


def test_without_transformers_it_says_so(tiny, tmp_path, monkeypatch):
    import sys

    convert(tiny, tmp_path / "out", divergence=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match="--transformers needs torch and transformers; pip install torch transformers"):
        verify(tmp_path / "out", transformers=True)


def test_rope_settings_and_eos_reach_transformers(tmp_path):
    pytest.importorskip("torch")
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10240}
    source = write_checkpoint(tmp_path / "source", rope_scaling=scaling, eos_token_id=[3, 4])
    convert(source, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rope_scaling"] == scaling
    assert max(state.relative for state in verify(tmp_path / "out", transformers=True).transformers) < 2e-6
