"""How a cache stores keys and values: as they are, or quantized to 8 or 4 bits.

A stored array has one slot for each token on its fourth axis, so that a cache can move tokens without knowing the
format.

B batch, L new tokens, S keys, H query heads, K key/value heads, D head_dim, G values that share a scale
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx

from ..errors import UsageError
from . import kernels

KV_BITS = (8, 4)
# Values along head_dim that share a scale and a bias. 64 is the usual group; 32 is for models whose head_dim is not a
# multiple of 64.
GROUPS = (64, 32)


class KVFormat(Protocol):
    @property
    def arrays(self) -> int:
        """The number of arrays that store one layer."""

    def names(self, arrays: int) -> list[str]:
        """The names, in a file, of the first `arrays` arrays of a cache."""

    def reads_parts(self) -> bool:
        """Whether attention reads the first slots of a buffer without a copy of them."""

    def pack(self, kv: mx.array) -> Sequence[mx.array]:
        """The arrays (2, B, K, L, any) that store keys and values (2, B, K, L, D)."""

    def unpack(self, stored: Sequence[mx.array]) -> mx.array:
        """The keys and values (2, B, K, S, D) that arrays store."""

    def attend(self, q: mx.array, stored: Sequence[mx.array], scale: float, mask: kernels.Mask) -> mx.array:
        """`kernels.attend` over the keys and values that arrays store."""


@dataclass(frozen=True)
class Plain:
    """Keys and values as the model computes them."""

    arrays: int = 1

    def names(self, arrays: int) -> list[str]:
        return [f"layers.{layer}.kv" for layer in range(arrays)]

    def reads_parts(self) -> bool:
        return True

    def pack(self, kv: mx.array) -> Sequence[mx.array]:
        return (kv,)

    def unpack(self, stored: Sequence[mx.array]) -> mx.array:
        return stored[0]

    def attend(self, q: mx.array, stored: Sequence[mx.array], scale: float, mask: kernels.Mask) -> mx.array:
        return kernels.attend(q, stored[0], scale, mask)


@dataclass(frozen=True)
class Quantized:
    """Integers of `bits` bits, packed into uint32, and a scale and a bias for each `group` of values of a head.

    Attention reads the stored values, also those of the pass's own tokens. So the logits do not depend on how a prompt
    is split.
    """

    bits: int
    group: int
    arrays: int = 3

    def names(self, arrays: int) -> list[str]:
        parts = ("packed", "scales", "biases")
        return [f"layers.{i // 3}.kv{self.bits}g{self.group}.{parts[i % 3]}" for i in range(arrays)]

    def reads_parts(self) -> bool:
        return kernels.on_gpu()  # a CPU's product with a packed matrix copies a part of one

    def pack(self, kv: mx.array) -> Sequence[mx.array]:
        packed: Sequence[mx.array] = mx.quantize(kv, group_size=self.group, bits=self.bits)
        return packed

    def unpack(self, stored: Sequence[mx.array]) -> mx.array:
        packed, scales, biases = stored
        return mx.dequantize(packed, scales, biases, group_size=self.group, bits=self.bits)

    def attend(self, q: mx.array, stored: Sequence[mx.array], scale: float, mask: kernels.Mask) -> mx.array:
        if q.shape[2] > kernels.FEW_QUERIES:  # unpack this layer; it is freed after its attention
            return kernels.attend(q, self.unpack(stored), scale, mask)
        keys, values = ([array[side, :] for array in stored] for side in (0, 1))
        return kernels.attend_quantized(q, keys, values, scale, mask, self.group, self.bits)


PLAIN = Plain()
FORMATS: tuple[KVFormat, ...] = (PLAIN, *(Quantized(bits, group) for bits in KV_BITS for group in GROUPS))


def kv_format(kv_bits: Any, head_dim: int) -> KVFormat:
    """The format for `kv_bits`: 8, 4, or None for keys and values as the model computes them.

    Raises UsageError for another number, and for a head_dim that cannot be cut into groups.
    """
    if kv_bits is None:
        return PLAIN
    if type(kv_bits) is not int or kv_bits not in KV_BITS:
        raise UsageError(f"kv_bits is {kv_bits!r}; expected 8 or 4, or leave it out for an unquantized cache")
    group = next((group for group in GROUPS if head_dim % group == 0), None)
    if group is None:
        raise UsageError(
            f"kv_bits is {kv_bits}, but the model's head_dim is {head_dim}, not a multiple of {GROUPS[-1]}; "
            "leave kv_bits out"
        )
    return Quantized(kv_bits, group)
