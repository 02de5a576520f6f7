"""Who runs, with which dtype, and who cannot."""

import pytest
from adapting import write_mlx_lm, write_peft
from benching import chosen, main
from checkpoints import AFFINE_4, write_packed
from releases import write_awq, write_gptq

from mlx_qwen3.bench import options
from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.errors import UsageError


def test_a_missing_package_is_named_with_the_remedy(chat, monkeypatch, capsys):
    real = options.find_spec
    monkeypatch.setattr(options, "find_spec", lambda name: None if name == "mlx_lm" else real(name))
    assert main(chat, "--against", "mlx-lm") == 2
    assert "--against mlx-lm needs the package mlx_lm; pip install mlx-lm, or leave it out" in capsys.readouterr().err
    assert [c.name for c in chosen(chat)] == ["mlx-qwen3", "transformers", "reference"]  # unasked, it is left out


def test_who_runs_with_which_dtype(chat):
    assert [(c.name, c.dtype) for c in chosen(chat)] == [
        ("mlx-qwen3", None),
        ("transformers", None),
        ("reference", None),
        ("mlx-lm", None),
    ]
    names = "transformers:fp32", "mlx-lm", "mlx-lm:fp32", "transformers"
    found = chosen(chat, against=names, dtype="bf16", reference=False)
    assert [(c.name, c.dtype) for c in found] == [
        ("mlx-qwen3", "bf16"),
        ("transformers:fp32", "fp32"),
        ("mlx-lm", "bf16"),
        ("mlx-lm:fp32", "fp32"),
        ("transformers", "bf16"),
    ]


def test_weights_are_of_this_package_alone(chat, tmp_path):
    packed = write_packed(tmp_path / "packed", AFFINE_4)
    found = chosen(packed, against=("mlx-qwen3:packed", "mlx-qwen3:fp32", "mlx-lm"), weights="unpacked")
    assert [(c.name, c.dtype, c.weights) for c in found] == [
        ("mlx-qwen3", None, "unpacked"),
        ("mlx-qwen3:packed", None, "packed"),
        ("mlx-qwen3:fp32", "fp32", "unpacked"),
        ("mlx-lm", None, None),
    ]
    with pytest.raises(UsageError, match="mlx-lm takes one of bf16, fp16, fp32 after the colon"):
        chosen(packed, against=("mlx-lm:packed",))
    with pytest.raises(UsageError, match="weights is packed, but the checkpoint is not quantized"):
        chosen(chat, weights="packed")


def test_a_blas_to_share(chat, monkeypatch):
    monkeypatch.setattr(options.blas, "in_use", "/lib/blas.so")
    assert [c.blas for c in chosen(chat, against=("mlx-lm",), same_blas=True)] == ["", "/lib/blas.so"]
    monkeypatch.setattr(options.blas, "in_use", None)
    with pytest.raises(UsageError, match="--same-blas needs a BLAS to share"):
        chosen(chat, same_blas=True)


def test_what_a_contestant_cannot_read(chat, tmp_path):
    packed = write_packed(tmp_path / "packed", AFFINE_4)
    assert [c.name for c in chosen(packed)] == ["mlx-qwen3", "mlx-lm"]
    with pytest.raises(UsageError, match="the checkpoint is quantized, which transformers cannot read; leave it out"):
        chosen(packed, against=("transformers", "mlx-lm"))
    convert(chat, tmp_path / "native", divergence=False)
    assert [c.name for c in chosen(tmp_path / "native")] == ["mlx-qwen3"]
    with pytest.raises(UsageError, match=r"native layout, which mlx-lm cannot read; .* convert with --layout hf"):
        chosen(tmp_path / "native", against=("mlx-lm",))


def test_releases_that_others_cannot_read(tmp_path):
    awq, gptq = write_awq(tmp_path / "awq").folder, write_gptq(tmp_path / "gptq").folder
    assert [c.name for c in chosen(awq)] == ["mlx-qwen3", "mlx-lm"]
    with pytest.raises(UsageError, match="the checkpoint is an AWQ release, which transformers cannot read"):
        chosen(awq, against=("transformers",))
    assert [c.name for c in chosen(gptq)] == ["mlx-qwen3"]
    with pytest.raises(UsageError, match=r"an FP8, GPTQ or .* release, which mlx-lm cannot read; .* --layout hf"):
        chosen(gptq, against=("mlx-lm",))


def test_who_can_be_measured_with_an_adapter(chat, tmp_path):
    peft, mlx_lm = str(write_peft(tmp_path / "a")), str(write_mlx_lm(tmp_path / "b"))
    assert [c.name for c in chosen(chat, adapters=(mlx_lm,))] == ["mlx-qwen3", "mlx-lm"]
    assert [c.name for c in chosen(chat, adapters=(f"{mlx_lm}=0.5", peft))] == ["mlx-qwen3"]
    assert chosen(chat, adapters=(f"{mlx_lm}=0.5",))[0].adapters == (f"{mlx_lm}=0.5",)
    for against, adapters, message in (
        (("mlx-lm",), (peft,), "a is a PEFT LoRA adapter of rank 4 .*, which mlx-lm cannot apply; leave mlx-lm out"),
        (("transformers",), (mlx_lm,), "which transformers cannot apply"),
        (("mlx-lm:fp32",), (f"{mlx_lm}=0.5",), "one adapter and without a scale; leave mlx-lm:fp32 out"),
        (("mlx-lm",), (mlx_lm, mlx_lm), "one adapter and without a scale"),
    ):
        with pytest.raises(UsageError, match=message):
            chosen(chat, against=against, adapters=adapters)


def test_transformers_needs_peft_for_an_adapter(chat, tmp_path, monkeypatch):
    found, adapters = options.find_spec, (str(write_peft(tmp_path)),)
    monkeypatch.setattr(options, "find_spec", lambda name: None if name == "peft" else found(name))
    assert "transformers" not in [c.name for c in chosen(chat, adapters=adapters)]
    with pytest.raises(UsageError, match="needs the package peft"):
        chosen(chat, against=("transformers",), adapters=adapters)
