"""The fingerprint of a model: a short text that differs if the model would compute other keys and values."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict

import mlx.core as mx

from .checkpoint import Checkpoint
from .dtypes import dtype_name
from .headers import StoredTensor

SAMPLE = 64  # bytes, from three places of every tensor


def fingerprint(checkpoint: Checkpoint, dtype: mx.Dtype, unpacked: bool = False) -> str:
    """Tells models apart: two fine-tunes with equal shapes, two compute dtypes, two settings of RoPE,
    packed weights and the same `unpacked`, which round differently.

    It reads headers and samples of the weights, not all of them. A copy of the files has another fingerprint.
    """
    digest = hashlib.sha256(json.dumps(asdict(checkpoint.config), sort_keys=True, default=str).encode())
    digest.update(dtype_name(dtype).encode())
    if unpacked:
        digest.update(b"unpacked")
    for file in checkpoint.files:
        digest.update(f"{file.size} {file.status.st_mtime_ns}".encode())
        digest.update(file.header)
    for tensor in checkpoint.tensors.values():
        for sample in samples(tensor):
            digest.update(sample)
    return digest.hexdigest()


def samples(tensor: StoredTensor) -> Iterator[bytes | bytearray]:
    """Some bytes of the beginning, the middle and the end of a tensor."""
    last = max(0, tensor.nbytes - SAMPLE)
    for first in sorted({0, last // 2, last}):
        yield tensor.file.read(tensor.start + first, min(SAMPLE, tensor.nbytes), tensor.name)
