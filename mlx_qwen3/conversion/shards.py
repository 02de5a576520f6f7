"""Writes safetensors files of a limited size as a stream, with the sha256 of every tensor and every file.

The format (https://huggingface.co/docs/safetensors): length of the header, JSON header, bytes. The safetensors library
is not used because it needs the whole file in memory.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO

from ..files.dtypes import NAMES
from ..files.headers import Buffer, TensorFile
from ..progress import Progress, Stage
from .tally import Tally, TensorError
from .transform import Job, OutputTensor

READ_BYTES = 1 << 22
PENDING = 4  # blocks that wait to be hashed


@dataclass(frozen=True)
class Shard:
    """A file of the result and its tensors. The tensors of one job may be in two files."""

    file: str
    jobs: tuple[Job, ...]
    tensors: tuple[OutputTensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True)
class TensorRecord:
    """A tensor of the result: where it is, where it came from, and its error."""

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    made: str
    note: str
    file: str
    start: int  # bytes from the beginning of the file
    bytes: int
    sha256: str
    error: TensorError | None  # None if no value can have changed


@dataclass(frozen=True)
class FileRecord:
    bytes: int
    sha256: str


def plan_shards(jobs: Sequence[Job], limit: int) -> list[Shard]:
    """One file, or several numbered ones. Each has at most `limit` bytes of tensors, or a single larger tensor."""
    files: list[list[tuple[Job, OutputTensor]]] = [[]]
    size = 0
    for job in jobs:
        for tensor in job.tensors:
            if files[-1] and size + tensor.nbytes > limit:
                files.append([])
                size = 0
            files[-1].append((job, tensor))
            size += tensor.nbytes
    count = len(files)
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    return [
        Shard(name, tuple({id(job): job for job, _ in entries}.values()), tuple(tensor for _, tensor in entries))
        for name, entries in zip(["model.safetensors"] if count == 1 else names, files, strict=True)
    ]


def write_shard(
    folder: Path, shard: Shard, format_name: str, progress: Progress, stage: Stage
) -> tuple[FileRecord, list[TensorRecord]]:
    """Write and fsync one file of a `stage` in bytes; a thread computes its digests meanwhile."""
    header, starts = _header(shard.tensors, format_name)
    errors: dict[str, TensorError | None] = {}
    with (folder / shard.file).open("w+b") as file, _Hasher() as hasher:
        file.write(header)
        hasher.add(header, 0)
        ends = dict(starts)  # where the next bytes of each tensor go
        for job in shard.jobs:
            tally = Tally(job.tensors[0].sources[0], job.tensors[0].shape)
            for tensor, raw in job.blocks(tally):
                if tensor.name in ends:  # the others are in another file
                    file.seek(ends[tensor.name])
                    file.write(raw)
                    hasher.add(raw, ends[tensor.name], tensor.name)
                    ends[tensor.name] += len(raw)
                    progress(stage, len(raw))
            hasher.catch_up(file)
            errors[job.tensors[0].name] = tally.error if tally.used else None  # of the weight, not of its scales
        file.flush()
        os.fsync(file.fileno())
        whole, digests = hasher.result()
    records = [
        TensorRecord(
            name=tensor.name,
            sources=tensor.sources,
            shape=tensor.shape,
            dtype=NAMES[tensor.dtype],
            made=tensor.made,
            note=tensor.note,
            file=shard.file,
            start=starts[tensor.name],
            bytes=tensor.nbytes,
            sha256=digests[tensor.name],
            error=errors.get(tensor.name),
        )
        for tensor in shard.tensors
    ]
    return FileRecord(len(header) + shard.nbytes, whole), records


def sha256(path: Path, start: int = 0, count: int | None = None) -> str:
    """Digest of a file, or of `count` of its bytes from `start`."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while left := READ_BYTES if count is None else min(count, READ_BYTES):
            if not (length := file.readinto(buffer[:left])):
                break
            digest.update(buffer[:length])
            count = None if count is None else count - length
    return digest.hexdigest()


class SourceDigests:
    """sha256 of the files of a source, computed in a thread while they are converted."""

    def __init__(self, files: Iterable[TensorFile]):
        self._stop = Event()
        self._pool = ThreadPoolExecutor(1)
        self._results = {file.path.name: self._pool.submit(self._digest, file) for file in files}

    def _digest(self, file: TensorFile) -> FileRecord:
        digest, buffer = hashlib.sha256(), memoryview(bytearray(READ_BYTES))
        for start in range(0, file.size, READ_BYTES):
            if self._stop.is_set():
                break
            block = buffer[: min(READ_BYTES, file.size - start)]
            file.read_into(block, start, "its tensors")
            digest.update(block)
        return FileRecord(file.size, digest.hexdigest())

    def __enter__(self) -> "SourceDigests":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    def result(self) -> dict[str, FileRecord]:
        """By file name. Raises CheckpointError if a file has become shorter."""
        return {name: future.result() for name, future in self._results.items()}


class _Hasher:
    """sha256 of a file that is being written: of the whole and of each tensor. Its thread may be a few blocks late.

    The blocks of a tensor come in order. Tensors that are made together, such as a weight and its scales, may grow side
    by side. So that none of them must be in memory, `catch_up` reads again what the digest of the whole could not take.
    """

    def __init__(self) -> None:
        self._whole = hashlib.sha256()
        self._end = 0  # of the part of the file that is in the digest of the whole
        self._tensors: dict[str, Any] = {}
        self._pool = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> "_Hasher":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, raw: Buffer, start: int, tensor: str | None = None) -> None:
        """Add a block that begins at byte `start` of the file."""
        next_in_file = start == self._end
        if next_in_file:
            self._end += len(raw)
        if len(self._pending) >= PENDING:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._update, raw, next_in_file, tensor))

    def catch_up(self, file: BinaryIO) -> None:
        """Read the bytes from where the digest of the whole stands to the end of the file."""
        file.seek(self._end)
        while raw := file.read(READ_BYTES):
            self.add(raw, self._end)

    def result(self) -> tuple[str, dict[str, str]]:
        for future in self._pending:
            future.result()
        return self._whole.hexdigest(), {name: digest.hexdigest() for name, digest in self._tensors.items()}

    def _update(self, raw: Buffer, whole: bool, tensor: str | None) -> None:
        if whole:
            self._whole.update(raw)
        if tensor is not None:
            self._tensors.setdefault(tensor, hashlib.sha256()).update(raw)


def _header(tensors: Sequence[OutputTensor], format_name: str) -> tuple[bytes, dict[str, int]]:
    """(length and JSON header, where each tensor starts in the file)."""
    header: dict[str, Any] = {"__metadata__": {"format": format_name}}
    offsets: dict[str, int] = {}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        offsets[tensor.name] = start
        header[tensor.name] = {"dtype": NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start on a multiple of 8, as the library writes them
    encoded = len(encoded).to_bytes(8, "little") + encoded
    return encoded, {name: len(encoded) + start for name, start in offsets.items()}
