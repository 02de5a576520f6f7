"""The safetensors files of a checkpoint: which tensors each holds, and where their bytes lie.

https://huggingface.co/docs/safetensors: the length of the header in 8 bytes, the header as JSON, the tensors.
Every file is opened once: header and tensors are read through the same descriptor.
"""

import json
import math
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import CheckpointError
from .dtypes import NAMES, STORED
from .filling import BYTES, Filling, Range
from .jobs import Job
from .reading import open_file, short

MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors library
CHUNK = 1 << 24  # bytes of one read


class TensorFile:
    """An open safetensors file: its header as JSON, and any bytes of it. Closes when nothing uses it any more."""

    def __init__(self, path: Path):
        """Opens the file and reads its header. Raises CheckpointError."""
        self.path = path
        self.descriptor = open_file(path)
        weakref.finalize(self, os.close, self.descriptor)
        self.status = os.fstat(self.descriptor)
        self.size = self.status.st_size
        self.header = self._read_header()  # the bytes of the JSON

    @property
    def start(self) -> int:
        """Bytes from the beginning of the file to the first tensor."""
        return 8 + len(self.header)

    def read_into(self, target: memoryview, start: int, name: str) -> None:
        """Fill the bytes of `target` from byte `start` of the file; `name` is for the error message.

        Raises CheckpointError if the file has become shorter.
        """
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self.descriptor, [target[done : done + CHUNK]], start + done)
            except OSError as error:
                raise CheckpointError(f"{short(self.path)} cannot be read ({error.strerror})") from None
            if not count:
                raise CheckpointError(f"{short(self.path)} ends inside {short(name)}; it changed while it was read")
            done += count

    def read(self, start: int, count: int, name: str = "its header") -> bytes | bytearray:
        """`count` bytes from byte `start` of the file. Raises CheckpointError as `read_into` does."""
        if count <= CHUNK:  # one call, which needs no zeroed buffer
            with suppress(OSError):  # read_into raises the error that names the file
                if len(content := os.pread(self.descriptor, count, start)) == count:
                    return content
        buffer = bytearray(count)
        self.read_into(memoryview(buffer), start, name)
        return buffer

    def _read_header(self) -> bytes:
        if self.size < 8:
            raise broken(self.path, f"it has {self.size} bytes")
        length = int.from_bytes(self.read(0, 8), "little")
        if length > min(MAX_HEADER, self.size - 8):
            raise broken(self.path, f"its header would have {length} bytes, the file has {self.size}")
        return bytes(self.read(8, length))


Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, or some consecutive rows of it: either is one range of bytes."""

    name: str
    dtype: mx.Dtype
    shape: tuple[int, ...]
    file: TensorFile
    start: int  # bytes from the beginning of the file
    code: str = ""  # the name of its dtype in the file if MLX has no such dtype

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def dtype_name(self) -> str:
        """As in safetensors: BF16."""
        return self.code or NAMES[self.dtype]

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the tensors in the files that it is made of."""
        return (self.name,)

    @property
    def kept(self) -> mx.Dtype:
        """The dtype that a conversion gives it if none was asked for."""
        return self.dtype

    @property
    def kept_bytes(self) -> int:
        """Its size in the files, or in the dtype that it is kept in."""
        return self.nbytes

    @property
    def made(self) -> str:
        """How its values come from the file, for the certificate; empty if they are stored as they are."""
        return ""

    @property
    def note(self) -> str:
        return ""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.size

    def rows(self, first: int, count: int) -> "StoredTensor":
        """`count` rows of a matrix, from row `first`."""
        start = self.start + first * (self.nbytes // self.shape[0])
        return replace(self, shape=(count, *self.shape[1:]), start=start)

    def row_blocks(self, size: int) -> "Iterator[StoredTensor]":
        """Its rows in blocks of at most `size` bytes, but of one row at least. A vector is one block."""
        if len(self.shape) == 1:
            yield self
            return
        step = max(1, size // (self.nbytes // self.shape[0]))
        for first in range(0, self.shape[0], step):
            yield self.rows(first, min(step, self.shape[0] - first))

    def read(self) -> Buffer:
        """All of its bytes. Raises CheckpointError if the file has become shorter."""
        return self.file.read(self.start, self.nbytes, self.name)

    def chunks(self, size: int = CHUNK) -> Iterator[Buffer]:
        """Its bytes, at most `size` at a time."""
        for first in range(0, self.nbytes, size):
            yield self.file.read(self.start + first, min(size, self.nbytes - first), self.name)

    def jobs(self, target: memoryview) -> list[Job]:
        """What to run for all of its bytes to be in `target`, by any threads. Raises CheckpointError as `read` does."""
        return [
            partial(self.file.read_into, target[first : first + CHUNK], self.start + first, self.name)
            for first in range(0, self.nbytes, CHUNK)
        ]

    def filling(self, target: memoryview) -> Filling:
        """The same as `jobs`, for `fill`."""
        whole = Range(self.start, 1, self.file.descriptor, BYTES)
        return Filling(target, partial(self.jobs, target), self.nbytes, (whole,))


def join(runs: Sequence[StoredTensor]) -> tuple[StoredTensor, ...]:
    """The same rows in the same order, with neighbouring rows of one tensor merged into one range."""
    joined = list(runs[:1])
    for run in runs[1:]:
        last = joined[-1]
        if run.file is last.file and run.name == last.name and run.start == last.start + last.nbytes:
            joined[-1] = replace(last, shape=(last.shape[0] + run.shape[0], *last.shape[1:]))
        else:
            joined.append(run)
    return tuple(joined)


def stacked_shape(runs: Sequence[StoredTensor]) -> tuple[int, ...]:
    """The shape of runs that are stacked along the rows."""
    return (sum(run.shape[0] for run in runs), *runs[0].shape[1:]) if runs[0].shape else ()


def tensors_of(file: TensorFile) -> list[StoredTensor]:
    """Every tensor that the header of a file lists, in the order of their bytes.

    Raises CheckpointError for a header that is broken or does not fit the file, as the safetensors library does, and
    for a dtype that no supported checkpoint has.
    """
    try:
        header = json.loads(file.header.decode("utf-8"), object_pairs_hook=_unique)
        header.pop("__metadata__", None)
        entries = sorted(((name, *_entry(name, entry)) for name, entry in header.items()), key=lambda entry: entry[3:])
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise broken(file.path, f"header: {short(error)}") from None
    tensors, end = [], 0
    for name, dtype, shape, first, last in entries:
        bits = math.prod(shape) * _bits(dtype)
        if first != end or last - first != -(-bits // 8):
            raise broken(file.path, f"header: the bytes {first} to {last} of {short(name)} do not fit")
        end = last
        if dtype not in STORED:
            raise CheckpointError(
                f"{short(name)} in {short(file.path.name)} has dtype {short(dtype)}; supported: {', '.join(STORED)}"
            )
        code = "" if NAMES[STORED[dtype]] == dtype else dtype
        tensors.append(StoredTensor(name, STORED[dtype], shape, file, file.start + first, code))
    if file.start + end != file.size:
        raise broken(file.path, f"its tensors end at byte {file.start + end}, the file has {file.size}")
    return tensors


def broken(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{short(path)} is not a whole safetensors file ({reason}); download it again")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{short(next(name for name in names if names.count(name) > 1))} is listed twice")
    return found


def _entry(name: str, entry: dict[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype, shape, first byte, byte after the last) of a tensor. Raises ValueError, TypeError or KeyError."""
    dtype, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise ValueError(f"{short(name)} has no dtype and shape")
    if not all(type(number) is int and number >= 0 for number in (*shape, first, last)):
        raise ValueError(f"{short(name)} has a number that cannot be")
    return dtype, tuple(shape), first, last


def _bits(dtype: str) -> int:
    """Bits of one value, from the name of the dtype: F8_E4M3 has 8. A name without a number, such as BOOL, has 8."""
    digits = "".join(character if character.isdigit() else " " for character in dtype).split()
    return int(digits[0]) if digits and len(digits[0]) < 4 else 8
