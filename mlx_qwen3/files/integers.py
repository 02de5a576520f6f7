"""Matrices of 4 and 8 bit integers in groups, as AWQ, GPTQ and compressed-tensors store them.

All three mean w[r, c] = (code[r, c] - zero[r, g]) * scale[r, g], where g is the group of column c. That is MLX's affine
form, w = scale * code + bias, if every 32, 64 or 128 neighbouring columns are of one group; then no code changes. A
scale has at most 11 significant bits and a code 8, so in float32 the products and their sum are exact.

R rows, C columns, G groups, N codes in a word of 32 bits
"""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .derived import Latest, Rows
from .headers import StoredTensor
from .quantization import QUANTIZATION_MODES
from .values import Floats, floats_of, unpack

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of the columns in a word, from the lowest bits up
WORD = 32  # bits


@dataclass(frozen=True)
class Integers:
    """A packed matrix, by rows. `words` are in MLX's order, which is also compressed-tensors': lowest bits first."""

    bits: int
    groups_of: np.ndarray  # (C,) the group of every column
    words: Rows  # uint32 (rows, C / N)
    scales: Rows  # float32 (rows, G)
    zeros: Rows  # float32 (rows, G)

    @property
    def group_size(self) -> int | None:
        """The largest group of MLX's affine form that never spans two groups; None if there is no such group."""
        columns = len(self.groups_of)
        for size in sorted(QUANTIZATION_MODES["affine"]["group_size"], reverse=True):
            if columns % size == 0:
                runs = self.groups_of.reshape(-1, size)
                if (runs == runs[:, :1]).all():
                    return size
        return None

    def affine_scales(self, first: int, count: int) -> Floats:
        return np.ascontiguousarray(self.scales(first, count)[:, self._groups()])

    def affine_biases(self, first: int, count: int) -> Floats:
        products = self.zeros(first, count) * self.scales(first, count)
        return -products[:, self._groups()]

    def values(self, first: int, count: int) -> Floats:
        """float32 (rows, C)"""
        codes = unpack(np.ascontiguousarray(self.words(first, count)).view(np.uint8), self.bits)
        result = codes[:, : len(self.groups_of)].astype(np.float32)
        result -= self.zeros(first, count).take(self.groups_of, axis=1)  # take is faster than an index
        result *= self.scales(first, count).take(self.groups_of, axis=1)
        return result

    def _groups(self) -> np.ndarray:
        """The group of every group of the affine form."""
        return self.groups_of[:: self.group_size or 1]


@dataclass(frozen=True)
class Columns:
    """The tensors of AWQ or GPTQ: the matrix is stored transposed, a row for each input."""

    codes: StoredTensor
    scales: StoredTensor  # (G, R)
    zeros: StoredTensor  # (G, R / N)
    latest: Latest

    def integers(self, bits: int, groups_of: np.ndarray, turn: "Turn", zeros: "Turn") -> Integers:
        """`turn` makes words (R, C / N) from the stored ones, `zeros` makes zero points (G, R)."""
        return Integers(
            bits,
            groups_of,
            self._rows("words", lambda: turn(words_of(self.codes))),
            self._rows("scales", lambda: floats_of(self.scales).T),
            self._rows("zeros", lambda: zeros(words_of(self.zeros)).T.astype(np.float32)),
        )

    def _rows(self, key: str, make: Callable[[], np.ndarray]) -> Rows:
        def rows(first: int, count: int) -> np.ndarray:
            whole = self.latest.get(self.codes.name, key, lambda: np.ascontiguousarray(make()))
            return whole[first : first + count]

        return rows


Turn = Callable[[np.ndarray], np.ndarray]


def gptq(tensors: Columns, bits: int, groups_of: np.ndarray, zero_offset: int) -> Integers:
    """A word holds N inputs of one output, so the transposed words are MLX's. The first format stores zeros - 1."""

    def zeros(words: np.ndarray) -> np.ndarray:
        return (unpack(words.view(np.uint8), bits) + np.uint8(zero_offset)) & np.uint8(2**bits - 1)

    return tensors.integers(bits, groups_of, np.transpose, zeros)


def awq(tensors: Columns, groups_of: np.ndarray) -> Integers:
    """A word holds 8 outputs of one input, in AWQ_ORDER."""

    def zeros(words: np.ndarray) -> np.ndarray:
        codes = unpack(words.view(np.uint8), 4).reshape(len(words), -1, 8)
        return codes[..., np.argsort(AWQ_ORDER)].reshape(len(words), -1)

    return tensors.integers(4, groups_of, awq_words, zeros)


def awq_words(words: np.ndarray) -> np.ndarray:
    """uint32 (C, R / 8) with 8 outputs in a word -> (R, C / 8) with 8 inputs in a word."""
    inputs, columns = words.shape
    lanes = [np.ascontiguousarray(words[lane::8].T) for lane in range(8)]  # each (R / 8, C / 8)
    # 8 words are 8 x 8 codes. They are transposed by blocks: 4 x 4 codes change places, then 2 x 2, then single ones.
    for distance, mask in ((4, 0x0000FFFF), (2, 0x00FF00FF), (1, 0x0F0F0F0F)):
        shift = np.uint32(4 * distance)
        for place in (place for place in range(8) if not place & distance):
            low, high = lanes[place], lanes[place + distance]
            changed = ((low >> shift) ^ high) & np.uint32(mask)
            high ^= changed
            low ^= changed << shift
    result = np.empty((columns, 8, inputs // 8), np.uint32)
    for place, output in enumerate(AWQ_ORDER):
        result[:, output] = lanes[place]
    return result.reshape(columns * 8, inputs // 8)


def compressed(
    words: StoredTensor,
    scales: StoredTensor,
    zeros: StoredTensor | None,
    bits: int,
    groups_of: np.ndarray,
    latest: Latest,
) -> Integers:
    """compressed-tensors: signed codes and zeros, each stored with half of their range added, which cancels out."""
    height = words.shape[0]

    def zero_rows(first: int, count: int) -> np.ndarray:
        if zeros is None:
            return np.full((count, scales.shape[1]), 2 ** (bits - 1), np.float32)
        turned = latest.get(words.name, "zeros", lambda: _zeros_by_rows(zeros, bits, height))
        return turned[first : first + count]

    return Integers(
        bits,
        groups_of,
        lambda first, count: words_of(words.rows(first, count)),
        lambda first, count: floats_of(scales.rows(first, count)),
        zero_rows,
    )


def _zeros_by_rows(zeros: StoredTensor, bits: int, height: int) -> np.ndarray:
    """float32 (R, G) of words (R / N, G), which hold N rows each."""
    turned = np.ascontiguousarray(words_of(zeros).T)  # (G, R / N)
    codes = unpack(turned.view(np.uint8), bits)[:, :height]
    return np.ascontiguousarray(codes.T).astype(np.float32)


def words_of(tensor: StoredTensor) -> np.ndarray:
    """Stored integers of 32 bits, without sign."""
    return np.frombuffer(tensor.read(), np.uint32).reshape(tensor.shape)


def integers_of(tensor: StoredTensor) -> np.ndarray:
    """A small tensor of signed integers: a list of groups, or a shape."""
    return np.frombuffer(tensor.read(), {mx.int32: np.int32, mx.int64: np.int64}[tensor.dtype]).reshape(tensor.shape)
