"""How tensors are renamed, stacked, cast and split again."""

import json

import mlx.core as mx
import pytest
from checkpoints import TINY, random_weights, stored, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.errors import Qwen3Error
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
