"""What a conversion is going to do: sizes in words, the dtype of the result."""

import mlx.core as mx
import pytest
from checkpoints import TINY, random_weights, write_checkpoint

from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.conversion.plan import parse_size
from mlx_qwen3.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("20G", 20 * 10**9),
        ("500MB", 5 * 10**8),
        ("512M", 512 * 10**6),
        ("4.1M", 4_100_000),
        ("4.1MB", 4_100_000),
        ("0.1 t", 10**11),
        ("2GiB", 2**31),
        ("1.5 kb", 1500),
        ("3b", 3),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "5", "5000000000", "GB", "-1GB", "5 XB", "0GB", "0.1B", "1e9", "five", "5Gi", "٥GB", "nanGB"]
)
def test_sizes_that_are_none(text):
    with pytest.raises(UsageError, match="expected a number with a unit"):
        parse_size(text)


def test_the_dtype_of_a_checkpoint_is_that_of_most_of_it(tmp_path):
    source = write_checkpoint(tmp_path / "source")
    arrays = {name: mx.array(value).astype(mx.bfloat16) for name, value in random_weights(TINY).items()}
    arrays["model.norm.weight"] = arrays["model.norm.weight"].astype(mx.float32)
    mx.save_safetensors(str(source / "model.safetensors"), arrays)
    assert convert(source, tmp_path / "out", divergence=False).dtype == "bfloat16"
