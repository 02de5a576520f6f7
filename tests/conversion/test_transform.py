"""How tensors are renamed, stacked, cast and split again."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import TINY, random_weights, stored, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from releases import Release, write_awq, write_compressed, write_fp8, write_gptq

from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.conversion.verify import verify
from mlx_qwen3.errors import Qwen3Error, Qwen3Warning, UsageError
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.files.values import read_rows
from mlx_qwen3.model.load import load_model


def test_parts_of_different_dtypes_are_not_forced_into_one(tmp_path):
    source = write_checkpoint(tmp_path / "source")
    arrays = {name: mx.array(value) for name, value in random_weights(TINY).items()}
    odd = "model.layers.0.self_attn.k_proj.weight"
    arrays[odd] = arrays[odd].astype(mx.bfloat16)
    mx.save_safetensors(str(source / "model.safetensors"), arrays)
    convert(source, tmp_path / "native")
    assert "layers.0.self_attn.k_proj.weight" in stored(tmp_path / "native")
    assert "layers.1.self_attn.qkv_proj.weight" in stored(tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "hf", layout="hf")
    assert stored(tmp_path / "hf") == stored(source)
    same = mx.array([[1, 2, 3]])
    assert mx.array_equal(load_model(tmp_path / "native")(same), load_model(source)(same))


def test_names_and_shapes_of_the_native_layout(tiny, tmp_path):
    convert(tiny, tmp_path / "native")
    shapes = {name: shape for name, (_, shape, _) in stored(tmp_path / "native").items()}
    block = {
        "input_layernorm.weight": (48,),
        "self_attn.qkv_proj.weight": (200, 48),
        "self_attn.q_norm.weight": (20,),
        "self_attn.k_norm.weight": (20,),
        "self_attn.o_proj.weight": (48, 120),
        "post_attention_layernorm.weight": (48,),
        "mlp.gate_up_proj.weight": (160, 48),
        "mlp.down_proj.weight": (48, 80),
    }
    expected = {f"layers.{i}.{name}": shape for i in (0, 1) for name, shape in block.items()}
    assert shapes == {**expected, "embed_tokens.weight": (151, 48), "norm.weight": (48,)}


@pytest.mark.parametrize(("option", "dtype"), [("bf16", mx.bfloat16), ("fp16", mx.float16), ("fp32", mx.float32)])
@pytest.mark.parametrize("layout", ["native", "hf"])
def test_dtype_casts_every_tensor_once(tiny, option, dtype, layout, tmp_path):
    certificate = convert(tiny, tmp_path / "out", dtype=option, layout=layout)
    weights = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert {array.dtype for array in weights.values()} == {dtype}
    name = {"native": "layers.1.mlp.down_proj.weight", "hf": "model.layers.1.mlp.down_proj.weight"}[layout]
    expected = mx.array(random_weights(TINY)["model.layers.1.mlp.down_proj.weight"]).astype(dtype)
    assert mx.array_equal(weights[name], expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == certificate.dtype == str(dtype).removeprefix("mlx.core.")


def test_float16_overflow_is_refused_and_writes_nothing(tmp_path):
    weights = random_weights(TINY)
    weights["model.norm.weight"][0] = 70000
    source = write_checkpoint(tmp_path / "source", weights=weights)
    with pytest.raises(Qwen3Error, match=r"model\.norm\.weight reaches 70000, past float16's 65504"):
        convert(source, tmp_path / "out", dtype="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@settings(max_examples=25, deadline=None)
@given(
    layers=st.integers(1, 3),
    head_dim=st.sampled_from([2, 6, 20]),
    kv_heads=st.integers(1, 3),
    repeats=st.integers(1, 3),
    inner=st.integers(1, 70),
    hidden=st.integers(1, 50),
    vocabulary=st.integers(1, 97),
    tied=st.booleans(),
    limit=st.integers(1, 20_000),
    prefix=st.booleans(),
)
def test_any_shape_names_and_split_come_back(
    tmp_path_factory, layers, head_dim, kv_heads, repeats, inner, hidden, vocabulary, tied, limit, prefix
):
    """To native in files of any size and back, from names with and without `model.`."""
    config = {
        "num_hidden_layers": layers,
        "head_dim": head_dim,
        "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * repeats,
        "intermediate_size": inner,
        "hidden_size": hidden,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }
    folder = tmp_path_factory.mktemp("any")
    weights = random_weights({**TINY, **config})
    named = weights if prefix else {name.removeprefix("model."): value for name, value in weights.items()}
    source = write_checkpoint(folder / "source", {**TINY, **config}, named)
    native = convert(source, folder / "native", shard_bytes=limit, divergence=False)
    convert(folder / "native", folder / "hf", layout="hf", shard_bytes=limit, divergence=False)
    back = stored(folder / "hf")
    assert {name: (shape, raw) for name, (_, shape, raw) in back.items()} == {
        name: (value.shape, value.tobytes()) for name, value in weights.items()
    }
    assert {name for record in native.tensors for name in record.sources} == named.keys()


# --- releases in FP8, AWQ, GPTQ and compressed-tensors

DOWN = "model.layers.1.mlp.down_proj"


def differences(folder, release: Release) -> dict[str, float]:
    """The largest difference of every weight of a result from the values of its source."""
    parts = Checkpoint(folder).parts
    found = {}
    for name, expected in release.weights.items():
        part = parts[name.removeprefix("model.").removesuffix(".weight")]
        found[name] = float(np.abs(read_rows(part.leaves, part.quantization, 0, len(expected)) - expected).max())
    return found


@pytest.mark.parametrize("layout", ["native", "hf"])
def test_fp8_becomes_bf16_rounded_once(layout, tmp_path):
    release = write_fp8(tmp_path / "release", scheme="static")
    certificate = convert(release.folder, tmp_path / "out", layout=layout)
    name = DOWN if layout == "hf" else DOWN.removeprefix("model.")
    found = mx.load(str(tmp_path / "out" / "model.safetensors"))[f"{name}.weight"]
    rounded = mx.array(release.weights[f"{DOWN}.weight"]).astype(mx.bfloat16)
    assert found.dtype == mx.bfloat16
    assert mx.array_equal(found, rounded)
    (record,) = [record for record in certificate.tensors if record.name == f"{name}.weight"]
    assert record.made == "unpacked from fp8"
    assert record.sources == (f"{DOWN}.weight", f"{DOWN}.weight_scale_inv")
    loss = np.abs(np.array(rounded.astype(mx.float32)) - release.weights[f"{DOWN}.weight"]).max()
    assert record.error.max == pytest.approx(loss, rel=1e-6)
    assert certificate.dropped[f"{DOWN}.activation_scale"] == "activations are not rounded here"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["torch_dtype"] == "bfloat16"


def test_fp8_becomes_float32_exactly(tmp_path):
    release = write_fp8(tmp_path / "release", block=(48, 80))
    certificate = convert(release.folder, tmp_path / "out", dtype="fp32")
    assert set(differences(tmp_path / "out", release).values()) == {0}
    assert certificate.divergence.logits_max == 0
    verify(tmp_path / "out", release.folder)


def test_fp8_is_packed_in_one_pass_and_its_loss_is_that_of_the_fp8_values(tmp_path):
    release = write_fp8(tmp_path / "release")
    certificate = convert(release.folder, tmp_path / "out", quantize="affine4g32")
    exact = release.weights[f"{DOWN}.weight"]
    packed = mx.quantize(mx.array(exact).astype(mx.bfloat16), 32, 4)
    found = mx.load(str(tmp_path / "out" / "model.safetensors"))
    for leaf, expected in zip(("weight", "scales", "biases"), packed, strict=True):
        assert mx.array_equal(found[f"{DOWN}.{leaf}"], expected)
    record = next(record for record in certificate.tensors if record.name == f"{DOWN}.weight")
    assert record.made == "unpacked from fp8, quantized affine 4 bits, groups of 32"
    loss = np.abs(
        np.array(mx.dequantize(*(p.astype(mx.float32) if p.dtype != mx.uint32 else p for p in packed), 32, 4)) - exact
    )
    assert record.error.max == pytest.approx(loss.max(), rel=1e-5)
    verify(tmp_path / "out", release.folder)


REPACKED = {
    "awq": (write_awq, {}),
    "gptq": (write_gptq, {"bits": 8}),
    "gptq symmetric": (write_gptq, {"sym": True}),
    "compressed": (write_compressed, {}),
}


@pytest.mark.parametrize("name", REPACKED)
@pytest.mark.parametrize("layout", ["native", "hf"])
def test_integers_keep_their_codes_and_scales(name, layout, tmp_path):
    write, arguments = REPACKED[name]
    release = write(tmp_path / "release", **arguments)
    certificate = convert(release.folder, tmp_path / "out", layout=layout)
    worst = max(differences(tmp_path / "out", release).values())
    symmetric = name in ("gptq symmetric", "compressed")
    # A bias is -zero * scale: exact in float16 for a zero that is a power of 2, else rounded to 11 bits.
    largest = max(record.error.max for record in certificate.tensors if record.error)
    assert worst == pytest.approx(largest, rel=1e-5)
    assert (worst == 0) if symmetric else 0 < worst < 2**-11 * 0.4  # the largest bias is below 0.4 here
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quant_method" not in config.get("quantization_config", {})
    if layout == "native":
        verify(tmp_path / "out", release.folder)
    else:
        assert config["quantization"]["bits"] == arguments.get("bits", 4)


def test_with_float32_nothing_of_a_release_is_rounded(tmp_path):
    release = write_awq(tmp_path / "release")
    convert(release.folder, tmp_path / "out", dtype="fp32", divergence=False)
    assert set(differences(tmp_path / "out", release).values()) == {0}
    convert(release.folder, tmp_path / "plain", dtype="fp32", quantize="none", divergence=False)
    assert set(differences(tmp_path / "plain", release).values()) == {0}


def test_act_order_is_unpacked_and_the_certificate_says_so(tmp_path):
    release = write_gptq(tmp_path / "release", order="shuffled")
    with pytest.warns(Qwen3Warning, match="14 of the 14 gptq matrices are unpacked"):
        certificate = convert(release.folder, tmp_path / "out", dtype="fp32", divergence=False)
    assert set(differences(tmp_path / "out", release).values()) == {0}
    notes = {record.note for record in certificate.tensors if "unpacked from gptq" in record.made}
    assert notes == {"not packed: no 32 neighbouring columns share a group"}
    assert certificate.dropped[f"{DOWN}.bias"] == "zero everywhere"


def test_integers_are_not_packed_a_second_time(tmp_path):
    release = write_awq(tmp_path / "release")
    with pytest.raises(UsageError, match="is packed already"):
        convert(release.folder, tmp_path / "out", quantize="affine4")


def test_what_mlx_lm_reads_after_a_conversion(tmp_path, ids):
    """Its logits are those of the release: mlx-lm itself refuses GPTQ with g_idx and knows no compressed-tensors."""
    mlx_lm = pytest.importorskip("mlx_lm")
    for index, (write, arguments) in enumerate(REPACKED.values()):
        release = write(tmp_path / f"release {index}", **arguments)
        out = tmp_path / f"out {index}"
        convert(release.folder, out, layout="hf", dtype="fp32", divergence=False)
        theirs = mlx_lm.utils.load_model(Path(out))[0](mx.array(ids))
        ours = load_model(release.folder, "fp32")(mx.array(ids))
        assert mx.linalg.norm(theirs - ours).item() < 1e-5 * mx.linalg.norm(ours).item()  # measured: 5.4e-7
