"""Extra tensors: those that transformers ignores are ignored, and those that training added are named."""

from pathlib import Path

import pytest

from mlx_qwen3.errors import CheckpointError
from mlx_qwen3.files.surplus import is_ignored, refuse_added

ADDED = {
    "v_head.summary.bias": "a value head of reinforcement learning, .*save_pretrained",
    "pretrained_model.v_head.summary.weight": "a value head",
    "value_head.summary.weight": "a value head",
    "score.weight": "a classification head, which generates no text; use the model that it was trained from",
    "classifier.bias": "a classification head",
    "qa_outputs.weight": "a question-answering head",
    "reward_head.weight": "a reward head",
    "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": "an adapter; merge it",
    "layers.3.self_attn.q_proj.lora_B.default.weight": "an adapter",
}


@pytest.mark.parametrize(("name", "message"), ADDED.items())
def test_what_training_added_is_named(name, message):
    with pytest.raises(CheckpointError, match=f"folder holds {name}, {message}"):
        refuse_added(Path("folder"), ["norm.weight", name])


def test_the_tensors_of_a_model_are_not(tiny):
    from safetensors.numpy import load_file

    names = load_file(tiny / "model.safetensors").keys()
    refuse_added(tiny, [name.removeprefix("model.") for name in names])
    assert not any(map(is_ignored, names))


def test_angles_of_rope_are_ignored_wherever_they_stand():
    assert is_ignored("model.rotary_emb.inv_freq")
    assert is_ignored("layers.7.self_attn.rotary_emb.inv_freq")
