"""A prefix in a file: a safetensors file of token ids, their keys and values, and a digest.

Tensors: `ids` (S,) int32, the arrays of `KVCache.stored`, and at the end `sha256` (32,), of all bytes before it.
The header's metadata: `format`, and `model`, which names the model and the settings that the values depend on.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError
from ..files.dtypes import NAMES
from ..files.headers import StoredTensor, TensorFile, tensors_of
from ..files.values import stored, to_mlx
from ..model.cache import KVCache
from ..report import Buffer

FAMILY = "mlx-qwen3 prefix "
FORMAT = FAMILY + "1"
DIGEST = "sha256"


class UnusablePrefix(Exception):
    """Why a file is not used. `ours` says whether this package wrote it, so that it may be replaced."""

    def __init__(self, reason: str, ours: bool = False):
        super().__init__(reason)
        self.ours = ours


class PrefixFile:
    """An open file. Its header and its ids have been read and checked, but not its keys and values."""

    def __init__(self, path: Path, model: str):
        """Raises UnusablePrefix if the file is not a prefix, and OtherModel if it belongs to another model."""
        try:
            self._file = TensorFile(path)
        except CheckpointError:
            raise UnusablePrefix("it cannot be read as a safetensors file") from None
        self.size = self._file.size
        self._tensors = {tensor.name: tensor for tensor in _checked(self._file, model)}
        try:
            self.ids = np.frombuffer(self._tensors["ids"].read(), np.int32)
        except CheckpointError as error:
            raise UnusablePrefix(str(error), ours=True) from None

    def read(self) -> KVCache:
        """The keys and values. Raises UnusablePrefix if a byte of the file is not what was written."""
        digest = hashlib.sha256(len(self._file.header).to_bytes(8, "little") + self._file.header)
        arrays = {}
        try:
            for name, tensor in self._tensors.items():
                if name == DIGEST:
                    if bytes(tensor.read()) != digest.digest():
                        raise UnusablePrefix("it is damaged", ours=True)
                    break
                arrays[name] = stored(tensor)
                digest.update(_bytes(arrays[name]))
            del arrays["ids"]
            return KVCache.restored(arrays, len(self.ids))
        except (CheckpointError, ValueError) as error:
            raise UnusablePrefix(str(error), ours=True) from None


class OtherModel(UnusablePrefix):
    def __init__(self) -> None:
        super().__init__("it is of another model or other settings", ours=True)


def pieces(model: str, ids: Sequence[int] | np.ndarray, cache: KVCache) -> Iterator[Buffer]:
    """The bytes of a file, piece by piece: only one layer at a time is in memory twice."""
    arrays = {"ids": to_mlx(np.array(ids, np.int32)), **cache.stored()}
    header = _header(model, arrays)
    digest = hashlib.sha256()
    yield _counted(digest, len(header).to_bytes(8, "little"))
    yield _counted(digest, header)
    for array in arrays.values():
        yield _counted(digest, _bytes(array))
    yield digest.digest()


def _counted(digest: Any, piece: Buffer) -> Buffer:
    digest.update(piece)
    return piece


def _bytes(array: mx.array) -> memoryview:
    raw = mx.contiguous(array).view(mx.uint8)
    mx.eval(raw)
    return memoryview(raw).cast("B")  # type: ignore[arg-type]


def _header(model: str, arrays: Mapping[str, mx.array]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": FORMAT, "model": model}}
    end = 0
    for name, array in arrays.items():
        first, end = end, end + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype], "shape": array.shape, "data_offsets": [first, end]}
    header[DIGEST] = {"dtype": "U8", "shape": [32], "data_offsets": [end, end + 32]}
    text = json.dumps(header).encode()
    return text + b" " * (-len(text) % 8)  # aligned, as the safetensors library writes it


def _checked(file: TensorFile, model: str) -> list[StoredTensor]:
    """The tensors in the order of the file. Raises UnusablePrefix, or CheckpointError for a broken file."""
    try:
        metadata = json.loads(file.header).get("__metadata__", {})
        format_, of = metadata.get("format"), metadata.get("model")
    except (ValueError, AttributeError, RecursionError):
        raise UnusablePrefix("its header cannot be read") from None
    if not isinstance(format_, str) or not format_.startswith(FAMILY):
        raise UnusablePrefix("it is not a file of prefixes")
    if format_ != FORMAT:
        raise UnusablePrefix(f"its format is {format_[:40]!r}, this version reads {FORMAT!r}", ours=True)
    if of != model:
        raise OtherModel
    try:
        tensors = tensors_of(file)
    except CheckpointError:
        raise UnusablePrefix("it is damaged", ours=True) from None
    if len(tensors) < 3 or (tensors[0].name, tensors[-1].name) != ("ids", DIGEST) or tensors[0].dtype != mx.int32:
        raise UnusablePrefix("its tensors are not those of a prefix", ours=True)
    return tensors
