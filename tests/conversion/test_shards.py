"""The files of a result: every tensor once, whatever the size of a file."""

import json

import mlx.core as mx
from checkpoints import stored, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.model.load import load_model


@settings(max_examples=20, deadline=None)
@given(limit=st.integers(1, 200_000))
def test_shards_hold_everything_once_whatever_their_size(tiny, tmp_path_factory, limit):
    out = tmp_path_factory.mktemp("shards") / "out"
    convert(tiny, out, layout="hf", shard_bytes=limit)
    assert stored(out) == stored(tiny)
    for path in out.glob("*.safetensors"):
        tensors = load_file(path)
        assert len(tensors) == 1 or sum(array.nbytes for array in tensors.values()) <= limit
    assert mx.array_equal(load_model(out)(mx.array([[1, 2]])), load_model(tiny)(mx.array([[1, 2]])))


@settings(max_examples=25, deadline=None)
@given(limit=st.integers(1, 60_000), layout=st.sampled_from(["native", "hf"]))
def test_packed_tensors_split_over_files_are_the_same(tmp_path_factory, limit, layout):
    """A file may end between the weight and its scales."""
    folder = tmp_path_factory.mktemp("split")
    source = write_checkpoint(folder / "source", hidden_size=64, head_dim=32, intermediate_size=64)
    convert(source, folder / "one", quantize="affine4g32", layout=layout, divergence=False)
    convert(source, folder / "many", quantize="affine4g32", layout=layout, shard_bytes=limit, divergence=False)
    assert stored(folder / "many") == stored(folder / "one")
    for path in (folder / "many").glob("*.safetensors"):
        tensors = mx.load(str(path))
        assert len(tensors) == 1 or sum(array.nbytes for array in tensors.values()) <= limit
    index = folder / "many" / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        assert content["weight_map"].keys() == stored(folder / "one").keys()
        assert content["metadata"]["total_size"] == sum(len(raw) for _, _, raw in stored(folder / "one").values())
