"""reference.py against transformers and the float64 oracle, from every layout."""

from typing import Any

import mlx.core as mx
import numpy as np
import oracle
import pytest
from arrays import as_numpy, relative
from checkpoints import AFFINE_4, PACKABLE, TINY, TINY_MOE, YARN, random_weights, write_checkpoint, write_packed

from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.errors import CheckpointError
from mlx_qwen3.model.load import load_model

torch = pytest.importorskip("torch")
reference = pytest.importorskip("mlx_qwen3.compare.reference")

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 64
LONG = {"short_factor": [1.0 + 0.2 * pair for pair in range(10)], "long_factor": [4.0] * 10}
VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "yarn": {"rope_scaling": YARN},
    "yarn untruncated": {"rope_scaling": {**YARN, "truncate": False, "beta_fast": 16, "attention_factor": 1.3}},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    "llama3": {"rope_scaling": LLAMA3},
    "longrope": {"rope_scaling": {"rope_type": "longrope", **LONG, "factor": 2.0, "attention_factor": 1.2}},
    "one kv head": {"num_key_value_heads": 1},
    "as many kv heads as heads": {"num_key_value_heads": 6},
    "large epsilon": {"rms_norm_eps": 1e-2},
    "experts": TINY_MOE,
    "experts as they come": {**TINY_MOE, "norm_topk_prob": False},
}
# Measured: 2.1e-6 from both at |logit| up to 8; the bound is the one of the mlx model.
TOLERANCE = 2e-5


def logits(folder, ids) -> np.ndarray:
    return reference.load_reference(folder)(torch.from_numpy(ids)).numpy()


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_it_equals_transformers(changes, ids, tmp_path, transformers_model, transformers_states):
    folder = write_checkpoint(tmp_path / "model", **changes)
    states, theirs = transformers_states(transformers_model(folder), ids)
    assert np.abs(logits(folder, ids) - theirs).max() < TOLERANCE
    steps = list(reference.load_reference(folder).steps(torch.from_numpy(ids)))
    ours = [steps[0]["input"], *(step["output"] for step in steps[:-1])]
    for place, (a, b) in enumerate(zip(ours, states, strict=True)):
        assert relative(a.numpy(), b) < 1e-6, f"after {place} layers"


@pytest.mark.parametrize("name", ["tied", "untied", "yarn", "one kv head", "large epsilon", "experts"])
def test_it_equals_the_oracle(name, ids, tmp_path):
    changes = VARIANTS[name]
    config = {**TINY, **changes}
    folder = write_checkpoint(tmp_path / "model", **changes)
    assert np.abs(logits(folder, ids) - oracle.logits(config, random_weights(config), ids)).max() < TOLERANCE


def test_native_and_hugging_face_files_are_one_model(tiny, ids, tmp_path):
    convert(tiny, tmp_path / "native")
    np.testing.assert_array_equal(logits(tmp_path / "native", ids), logits(tiny, ids))


@pytest.mark.parametrize(
    "packing",
    [AFFINE_4, {"mode": "affine", "bits": 8, "group_size": 32}, {"mode": "mxfp4", "bits": 4, "group_size": 32}],
    ids=["affine 4", "affine 8", "mxfp4"],
)
@pytest.mark.parametrize("native", [False, True], ids=["hf", "native"])
def test_packed_weights_are_unpacked(packing, native, ids, tmp_path):
    """The mlx model multiplies the packed rows; measured 3e-7 apart, where rounding of 4 bits is 0.1."""
    folder = write_packed(tmp_path / "packed", packing)
    if native:
        convert(folder, tmp_path / "native")
        folder = tmp_path / "native"
    ours = as_numpy(load_model(folder, "fp32")(mx.array(ids)))
    assert relative(ours, logits(folder, ids)) < 1e-5
    plain = write_checkpoint(tmp_path / "plain", {**TINY, **PACKABLE})
    assert relative(ours, logits(plain, ids)) > 1e-3


def test_a_broken_checkpoint_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        reference.load_reference(folder)
