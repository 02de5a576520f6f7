"""The dtypes that a checkpoint can hold, with their names in options, in safetensors and in config.json."""

import math
from collections import Counter
from collections.abc import Iterable

import mlx.core as mx

from ..errors import UsageError

DTYPES = {"bf16": mx.bfloat16, "fp16": mx.float16, "fp32": mx.float32}  # what a user may ask for
STORED = {  # in safetensors
    "F8_E4M3": mx.uint8,  # its bits: MLX has no such dtype. Before U8, so that NAMES has U8
    "F32": mx.float32,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "F64": mx.float64,
    "U32": mx.uint32,
    "U8": mx.uint8,
    "BOOL": mx.bool_,
    "I8": mx.int8,
    "I16": mx.int16,
    "I32": mx.int32,
    "I64": mx.int64,
    "U16": mx.uint16,
    "U64": mx.uint64,
    "C64": mx.complex64,
}
NAMES = {dtype: name for name, dtype in STORED.items()}
FLOATS = (mx.float32, mx.float16, mx.bfloat16)


def dtype_name(dtype: mx.Dtype) -> str:
    """The name that config.json uses, such as bfloat16."""
    return str(dtype).removeprefix("mlx.core.")


def prevailing(tensors: Iterable[tuple[mx.Dtype, tuple[int, ...]]]) -> mx.Dtype:
    """The float dtype of most values, of tensors given as (dtype, shape); bfloat16 if there are no floats.

    The largest tensor would not do: a fine-tune may keep its head in float32 beside layers in bfloat16.
    """
    values: Counter[mx.Dtype] = Counter()
    for dtype, shape in tensors:
        values[dtype] += math.prod(shape) if dtype in FLOATS else 0
    return max(values, key=lambda dtype: values[dtype]) if values.total() else mx.bfloat16


def parse_dtype(dtype: str | mx.Dtype | None) -> mx.Dtype | None:
    """The MLX dtype of bf16, fp16 or fp32. Raises UsageError for another name or dtype."""
    if dtype is None:
        return None
    named = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if named is None or named not in FLOATS:
        raise UsageError(f"dtype is {dtype!r}; expected {', '.join(DTYPES)}")
    return named
