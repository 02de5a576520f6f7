"""`verify SOURCE --adapter`: what is right is counted, and what is wrong is named."""

import json

import numpy as np
import pytest
from adapting import ATTENTION, write_mlx_lm, write_peft
from checkpoints import AFFINE_4, PACKABLE, TINY, TINY_MOE, write_packed

from mlx_qwen3.compare import steps
from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.conversion.verify_adapters import MERGED, PEFT, TRANSFORMERS, verify_adapters
from mlx_qwen3.errors import CheckpointError, UsageError, VerificationError
from mlx_qwen3.model import adapted as module

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def lines(found) -> list[str]:
    return [getattr(part, "text", part) for part in found.report()]


def test_adapters_on_their_base(tiny, tmp_path):
    first, second = write_peft(tmp_path / "a"), write_mlx_lm(tmp_path / "b", "dora")
    found = verify_adapters(tiny, [f"{first}=0.5", str(second)])
    assert [(a.tensors, a.parts) for a in found.adapters] == [(16, 8), (42, 14)]
    assert [state.place for state in found.states][:3] == ["the embedding", "layer 0", "layer 1"]
    assert all(state.relative < 2e-6 for state in found.states)  # measured: 6e-7
    assert lines(found)[0].startswith(f"{first}=0.5: a PEFT LoRA adapter of rank 4 for Qwen/Qwen3-0.6B; its 16 tensors")
    assert lines(found)[-1].startswith("the logits (final norm, output matrix): ")
    assert MERGED in lines(found)[-1]
    assert json.loads(json.dumps(found.summary()))["adapters"][1]["kind"].startswith("an mlx-lm DoRA adapter")


def test_packed_and_sparse_bases(tiny_moe, tmp_path):
    config = {**TINY, **PACKABLE}
    packed = write_packed(tmp_path / "packed", AFFINE_4)
    adapter = write_peft(tmp_path / "a", (*ATTENTION, "up_proj"), config)
    assert all(state.relative < 2e-6 for state in verify_adapters(packed, [str(adapter)]).states)
    experts = write_mlx_lm(tmp_path / "b", model=TINY_MOE)
    assert all(state.relative < 2e-6 for state in verify_adapters(tiny_moe, [str(experts)]).states)


@pytest.mark.parametrize("kind", ["PEFT", "mlx-lm", "without PEFT"])
def test_against_transformers(kind, tiny, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    adapter = write_mlx_lm(tmp_path) if kind == "mlx-lm" else write_peft(tmp_path, (*ATTENTION, "down_proj"))
    if kind == "without PEFT":
        found = steps.find_spec
        monkeypatch.setattr(steps, "find_spec", lambda name: None if name == "peft" else found(name))
    verified = verify_adapters(tiny, [f"{adapter}=0.5", str(adapter)], transformers=True)
    assert verified.against == (PEFT if kind == "PEFT" else TRANSFORMERS)
    assert all(state.relative < 2e-6 for state in verified.states)


def test_a_value_that_is_not_finite_is_named(tiny, tmp_path):
    def damage(tensors):
        tensors[f"{Q0}.lora_B.weight"][3, 1] = np.nan
        tensors[f"{Q0}.lora_B.weight"][4] = np.inf

    folder = write_peft(tmp_path, change=damage)
    with pytest.raises(VerificationError, match=r"q_proj\.lora_B\.weight in .* has 5 values that are NaN or infinite"):
        verify_adapters(tiny, [str(folder)])


def test_a_tensor_that_does_not_fit_is_named(tiny, tmp_path):
    folder = write_peft(tmp_path, change=lambda tensors: tensors.pop(f"{Q0}.lora_B.weight"))
    with pytest.raises(CheckpointError, match=r"q_proj\.lora_B\.weight"):
        verify_adapters(tiny, [str(folder)])


@pytest.mark.parametrize("transformers", [False, True])
def test_a_mistake_of_the_model_is_found(transformers, tiny, tmp_path, monkeypatch):
    """q and k change places in the fused matrix of the adapted model, but not in the merged weights."""
    if transformers:
        pytest.importorskip("peft")
    parts = {name: tuple(reversed(kinds[:2])) + kinds[2:] for name, kinds in module.NAME_MAP.items()}
    monkeypatch.setattr(module, "NAME_MAP", parts)
    with pytest.raises(VerificationError, match=r"^layer 0 differs from .* all before it agrees"):
        verify_adapters(tiny, [str(write_peft(tmp_path))], transformers=transformers)


def test_a_folder_that_has_adapters_merged_in_needs_its_source(tiny, tmp_path):
    adapter = str(write_peft(tmp_path / "adapter"))
    convert(tiny, tmp_path / "out", adapters=[adapter], divergence=False)
    with pytest.raises(UsageError, match="give it with --source"):
        verify_adapters(tmp_path / "out", [adapter])
