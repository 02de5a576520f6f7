"""The forward pass against transformers and against the float64 oracle."""

from typing import Any

import mlx.core as mx
import numpy as np
import oracle
import pytest
from arrays import as_numpy, relative
from checkpoints import TINY, YARN, random_weights, write_checkpoint

from mlx_qwen3.errors import PromptError
from mlx_qwen3.model import kernels
from mlx_qwen3.model.load import load_model

VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "yarn": {"rope_scaling": YARN},
    "yarn with its own attention factor": {"rope_scaling": {**YARN, "attention_factor": 1.7}},
    "one kv head": {"num_key_value_heads": 1},
    "as many kv heads as heads": {"num_key_value_heads": 6},
    "head_dim = hidden / heads": {"head_dim": 8},
    "one layer": {"num_hidden_layers": 1},
}
# Measured: at most 3e-6.
TOLERANCE = 2e-5


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def variant(request, tmp_path):
    return write_checkpoint(tmp_path / "model", **request.param), {**TINY, **request.param}


def assert_layers_agree(ours: list[mx.array], theirs: list[np.ndarray], tolerance: float) -> None:
    assert len(ours) == len(theirs)
    for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        name = f"layer {place - 1}" if place else "the embedding"
        assert relative(a, b) < tolerance, f"after {name} the hidden states differ"


def test_float32_equals_transformers(variant, ids, transformers_model, transformers_states):
    folder, _ = variant
    states, logits = transformers_states(transformers_model(folder), ids)
    model = load_model(folder, "fp32")
    assert 3 < np.abs(logits).max() < 12
    assert_layers_agree(list(model.residuals(mx.array(ids))), states, 1e-6)
    assert np.abs(as_numpy(model(mx.array(ids))) - logits).max() < TOLERANCE


def test_float32_equals_the_float64_oracle(variant, ids):
    folder, config = variant
    weights = random_weights(config)
    model = load_model(folder, "fp32")
    assert_layers_agree(list(model.residuals(mx.array(ids))), oracle.hidden_states(config, weights, ids), 1e-6)
    assert np.abs(as_numpy(model(mx.array(ids))) - oracle.logits(config, weights, ids)).max() < TOLERANCE


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_is_as_near_to_float32_as_transformers_is(
    dtype, tmp_path, ids, transformers_model, transformers_states
):
    """Each kernel rounds differently, so the yardstick is the error of rounding itself."""
    folder = write_checkpoint(tmp_path / "half", weights=rounded(random_weights(TINY), dtype))
    _, exact = transformers_states(transformers_model(folder), ids)
    states, theirs = transformers_states(
        transformers_model(folder, {"bf16": "bfloat16", "fp16": "float16"}[dtype]), ids
    )
    model = load_model(folder, dtype)
    ours = model(mx.array(ids))
    assert ours.dtype == {"bf16": mx.bfloat16, "fp16": mx.float16}[dtype]
    assert_layers_agree(list(model.residuals(mx.array(ids))), states, {"bf16": 1.5e-2, "fp16": 2e-3}[dtype])
    assert relative(ours, exact) < 1.3 * relative(theirs, exact)
    assert (as_numpy(ours).argmax(-1) == theirs.argmax(-1)).mean() > 0.9


def rounded(weights: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """float32 tensors with values that the narrower dtype holds exactly."""
    narrow = {"bf16": mx.bfloat16, "fp16": mx.float16}[dtype]
    return {name: np.array(mx.array(value).astype(narrow).astype(mx.float32)) for name, value in weights.items()}


@pytest.mark.parametrize("path", ["self_attn.q_norm", "self_attn.k_norm", "self_attn.qkv_proj", "mlp.down_proj"])
def test_a_weight_that_is_replaced_after_a_pass_counts(path, tiny, ids):
    """The model keeps what it derives from weights: their transposes, the norms of all heads."""
    used, fresh = load_model(tiny, "fp32"), load_model(tiny, "fp32")
    before = used(mx.array(ids))
    for model in (used, fresh):
        owner, leaf = path.split(".")
        module = model.layers[1][owner][leaf]
        module.weight = module.weight[::-1]
    assert mx.array_equal(used(mx.array(ids)), fresh(mx.array(ids)))
    assert not mx.allclose(used(mx.array(ids)), before, atol=1e-2)


@pytest.mark.parametrize("name", ["tiny", "untied"])
def test_logits_come_only_for_the_positions_asked_for(name, ids, request):
    model = load_model(request.getfixturevalue(name), "fp32")
    hidden = model.hidden(mx.array(ids))
    assert hidden.shape == (2, 37, TINY["hidden_size"])
    assert model.logits(hidden[:, -1:]).shape == (2, 1, TINY["vocab_size"])


def test_key_value_heads_are_not_repeated(tiny, ids, monkeypatch):
    seen = []
    attend = kernels.attend
    monkeypatch.setattr(kernels, "attend", lambda q, kv, *a: seen.append((q.shape, kv.shape)) or attend(q, kv, *a))
    load_model(tiny)(mx.array(ids))
    assert seen == [((2, 6, 37, 20), (2, 2, 2, 37, 20))] * 2


def test_projections_are_fused(tiny):
    shapes = {
        name: array.shape for name, array in load_model(tiny).layers[0].parameters()["self_attn"]["qkv_proj"].items()
    }
    assert shapes == {"weight": ((6 + 2 * 2) * 20, 48)}
    assert load_model(tiny).layers[0].mlp.gate_up_proj.weight.shape == (2 * 80, 48)


def test_the_graph_is_lazy(tiny, ids):
    """Building a step computes nothing: its cost is the host's alone until someone asks for a number."""
    model = load_model(tiny)
    mx.synchronize()
    before = mx.get_active_memory()
    logits = model(mx.array(ids[:1]))  # a longer prompt is computed at once on a CPU
    assert mx.get_active_memory() - before < ids.nbytes + logits.nbytes // 2


@pytest.mark.parametrize("form", [np.asarray, np.asfortranarray, np.ndarray.tolist, lambda ids: ids.astype(np.uint8)])
def test_ids_may_be_arrays_of_numpy_or_lists(tiny, ids, form):
    model = load_model(tiny)
    assert mx.array_equal(model(form(ids)), model(mx.array(ids)))


@pytest.mark.parametrize("form", [mx.array, np.array, list])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([1, 2], r"token ids have shape \(2,\); expected \(batch, length\)"),
        ([[[1]]], r"token ids have shape \(1, 1, 1\)"),
        ([[1.0]], r"token ids are float(32|64); expected integers"),
        ([[True]], r"token ids are bool"),
    ],
)
def test_ids_of_another_shape_or_type_are_refused(tiny, form, bad, message):
    with pytest.raises(PromptError, match=message):
        load_model(tiny)(form(bad))


def test_rows_of_different_lengths_are_refused(tiny):
    with pytest.raises(PromptError, match="rows of different lengths"):
        load_model(tiny)([[1], [2, 3]])


def test_a_cache_of_another_batch_is_refused(tiny, ids):
    model = load_model(tiny)
    with pytest.raises(ValueError, match="2 rows, the cache 3"):
        model(mx.array(ids), cache=model.make_cache(3))
