"""The parts of a result by kind: sizes, and the tensor or expert that lost most."""

import mlx.core as mx
import pytest
from quantizing import MOE, source_in
from screens import on_screen

from mlx_qwen3.conversion.certificate import Certificate
from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.conversion.groups import groups
from mlx_qwen3.conversion.summary import groups_table
from mlx_qwen3.files.checkpoint import Checkpoint

WORST = "model.layers.2.mlp.experts.5.down_proj.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """One outlier in every group of one expert's down projection."""
    folder = source_in(tmp_path_factory.mktemp("source"), mx.float32, **MOE)
    weights = mx.load(str(folder / "model.safetensors"))
    weights[WORST][:, ::64] *= 20
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("layout", "worst"),
    [("hf", "model.layers.2.mlp.switch_mlp.down_proj.weight"), ("native", "layers.2.mlp.experts.down_proj.weight")],
)
def test_the_worst_expert_is_named_and_the_sizes_are_those_of_the_file(source, layout, worst, tmp_path):
    certificate = convert(source, tmp_path / "out", quantize="affine4", layout=layout, divergence=False)
    assert Certificate.read(tmp_path / "out").groups == certificate.groups
    found = certificate.groups
    assert list(found) == ["norms", "embedding and output", "attention", "routers", "experts", "MLP"]
    assert found["experts"].worst == f"{worst}, expert 5"
    record = next(record for record in certificate.tensors if record.name == worst)
    assert found["experts"].relative == max(record.error.experts) == record.error.experts[5]
    stored = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert sum(group.bytes for group in found.values()) == sum(array.nbytes for array in stored.values())
    assert found["experts"].weights == 2 * 7 * 3 * 128 * 128
    assert found["experts"].bits_per_weight == 4 + 64 / 64  # float32 scales and biases
    assert found["routers"].bits_per_weight == 8 + 64 / 64
    assert found["norms"].relative is None


def test_experts_that_are_tensors_of_their_own_are_named_too(source, tmp_path):
    certificate = convert(source, tmp_path / "out", dtype="bf16", layout="hf", divergence=False)
    assert groups(certificate.tensors, Checkpoint(source).config) == certificate.groups
    assert ".mlp.experts." in certificate.groups["experts"].worst
    assert "expert " not in certificate.groups["experts"].worst


def test_at_80_columns(source, tmp_path, monkeypatch):
    certificate = convert(source, tmp_path / "out", quantize="affine4", divergence=False)
    lines = on_screen([groups_table(certificate)], monkeypatch)
    assert all(len(line.split(": ", 1)[-1]) <= 80 for line in lines)
    text = " ".join(" ".join(lines).split())
    assert "routers" in text
    assert "expert 5" in text
