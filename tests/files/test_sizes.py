"""Sizes in words and in bytes."""

import numpy as np
import pytest

from mlx_qwen3.errors import UsageError
from mlx_qwen3.files.sizes import bytes_of, parse_size


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
def test_wrong_sizes(text):
    with pytest.raises(UsageError, match="expected a number with a unit"):
        parse_size(text)


@pytest.mark.parametrize("size", ["12GB", 12 * 10**9, np.int64(12 * 10**9)])
def test_bytes_of_a_text_or_a_number(size):
    assert bytes_of(size, "memory") == 12 * 10**9


@pytest.mark.parametrize("size", [0, -1, 1.5, True, None, float("inf"), b"5GB", "5", "12 apples"])
def test_a_wrong_size_is_refused_by_name(size):
    with pytest.raises(UsageError, match=r"^memory is .*; expected "):
        bytes_of(size, "memory")
