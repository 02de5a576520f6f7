"""Dtypes by the names that users, safetensors and config.json have for them."""

import json

import mlx.core as mx
import pytest

from mlx_qwen3.errors import UsageError
from mlx_qwen3.files.dtypes import DTYPES, FLOATS, NAMES, STORED, dtype_name, parse_dtype


def test_stored_names_are_those_of_mlx(tmp_path):
    """MLX writes safetensors too; float64 is the one that it does not write."""
    dtypes = [dtype for dtype in STORED.values() if dtype != mx.float64]
    arrays = {str(dtype): mx.zeros((2,), dtype) for dtype in dtypes}
    mx.save_safetensors(str(tmp_path / "x.safetensors"), arrays)
    content = (tmp_path / "x.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert {str(dtype): header[str(dtype)]["dtype"] for dtype in dtypes} == {str(d): NAMES[d] for d in dtypes}


def test_names_for_users():
    assert [parse_dtype(name) for name in DTYPES] == [mx.bfloat16, mx.float16, mx.float32]
    assert set(DTYPES.values()) == set(FLOATS)
    assert parse_dtype(mx.float16) == mx.float16
    assert parse_dtype(None) is None
    assert dtype_name(mx.bfloat16) == "bfloat16"


@pytest.mark.parametrize("name", ["int8", "float32", "", "BF16", mx.int32, mx.float64])
def test_other_names_are_refused(name):
    with pytest.raises(UsageError, match=r"dtype is .*; expected bf16, fp16, fp32"):
        parse_dtype(name)
