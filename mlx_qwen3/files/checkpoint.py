"""The safetensors files of a checkpoint folder: which tensors there are and where their bytes lie."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError
from .config import read_json

DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16, "U32": mx.uint32, "U8": mx.uint8}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = (mx.float32, mx.float16, mx.bfloat16)
INDEX = "model.safetensors.index.json"


def dtype_name(dtype: mx.Dtype) -> str:
    """The name that config.json has for it, such as bfloat16."""
    return str(dtype).removeprefix("mlx.core.")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, or a run of its rows: both are one range of bytes."""

    name: str
    dtype: mx.Dtype
    shape: tuple[int, ...]
    path: Path
    start: int  # bytes from the beginning of the file
    first_row: int = 0  # within the tensor of that name

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.size

    def rows(self, first: int, count: int) -> "StoredTensor":
        """`count` rows of a matrix, from row `first`."""
        start = self.start + first * (self.nbytes // self.shape[0])
        return replace(self, shape=(count, *self.shape[1:]), start=start, first_row=self.first_row + first)

    def cut(self, array: mx.array) -> mx.array:
        """These rows of the whole tensor's `array`."""
        return array if array.shape == self.shape else array[self.first_row : self.first_row + self.shape[0]]

    def read(self) -> bytes:
        """All of its bytes."""
        return b"".join(self.chunks())

    def row_blocks(self, size: int) -> "Iterator[StoredTensor]":
        """Its rows in runs of at most `size` bytes, or of one row; a vector stays whole."""
        if len(self.shape) == 1:
            yield self
            return
        step = max(1, size // (self.nbytes // self.shape[0]))
        for first in range(0, self.shape[0], step):
            yield self.rows(first, min(step, self.shape[0] - first))

    def chunks(self, size: int = 1 << 24) -> Iterator[bytes]:
        """The bytes, at most `size` at a time. Raises CheckpointError where the file ends before them."""
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.start)
                left = self.nbytes
                while left:
                    chunk = file.read(min(size, left))
                    if not chunk:
                        raise CheckpointError(f"{self.path} ends inside {self.name}; it changed while it was read")
                    left -= len(chunk)
                    yield chunk
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read ({error.strerror}); it was there before") from None


def identity(folder: Path) -> dict[str, list[Any]]:
    """Of every file of a checkpoint: size, time of change in ns, and sha256 of the header, or of all of a small file.

    Two that are equal were not written to in between, and cost no reading of the weights.
    """
    result = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".jinja", ".txt") and path.is_file():
            with path.open("rb") as file:
                start = file.read(8)
                length = min(int.from_bytes(start, "little"), 10**8) if path.suffix == ".safetensors" else -1
                digest = hashlib.sha256(start + file.read(length)).hexdigest()
            status = path.stat()
            result[path.name] = [status.st_size, status.st_mtime_ns, digest]
    return result


def join(runs: Sequence[StoredTensor]) -> tuple[StoredTensor, ...]:
    """The same rows in the same order, with runs that lie behind one another in a file made one."""
    joined = list(runs[:1])
    for run in runs[1:]:
        last = joined[-1]
        if run.path == last.path and run.name == last.name and run.start == last.start + last.nbytes:
            joined[-1] = replace(last, shape=(last.shape[0] + run.shape[0], *last.shape[1:]))
        else:
            joined.append(run)
    return tuple(joined)


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint folder by its name in the files; reads the headers only.

    Raises CheckpointError for pickle weights, files that are missing, truncated or not listed in the index, and
    tensors that are stored twice.
    """
    tensors: dict[str, StoredTensor] = {}
    expected_place = _index(folder)
    for path in _files(folder, expected_place):
        for tensor in _read_header(path):
            if twin := tensors.get(tensor.name):
                files = f"{twin.path.name} and {path.name}"
                raise CheckpointError(f"{tensor.name} is stored twice, in {files}; remove one of them")
            tensors[tensor.name] = tensor
    for name, file in expected_place.items():
        found = tensors.get(name)
        if found is None or found.path.name != file:
            place = "in no file" if found is None else f"in {found.path.name}"
            raise CheckpointError(f"{name} is in {file} by {INDEX}, but {place}; download the checkpoint again")
    return tensors


def _index(folder: Path) -> dict[str, str]:
    path = folder / INDEX
    if not path.exists():
        return {}
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{path} has no weight_map; download it again")
    if outside := next((file for file in places.values() if Path(str(file)).name != file), None):
        raise CheckpointError(f"{path} names the file {outside!r}; expected a name inside the folder")
    return places


def _files(folder: Path, index: dict[str, str]) -> list[Path]:
    present = sorted(folder.glob("model*.safetensors"))
    if index:
        listed = sorted({folder / file for file in index.values()})
        if missing := [path.name for path in listed if not path.exists()]:
            raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which {INDEX} lists; download it again")
        if extra := [path.name for path in present if path not in listed]:
            raise CheckpointError(f"{folder} has {', '.join(extra)}, which {INDEX} does not list; remove it")
        return listed
    if present:
        return present
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} has its weights in {pickles[0]}, a pickle file, which can run code when it is opened; "
            "save it with transformers' save_pretrained, which writes safetensors"
        )
    raise CheckpointError(f"{folder} has no model*.safetensors; expected a Hugging Face or mlx-lm checkpoint folder")


def _read_header(path: Path) -> list[StoredTensor]:
    try:
        with safe_open(path, framework="numpy"):  # the library checks the header against the size of the file
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); download it again") from None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    tensors = []
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(f"{name} in {path.name} has dtype {entry['dtype']}; supported: {', '.join(DTYPES)}")
        start = 8 + length + entry["data_offsets"][0]
        tensors.append(StoredTensor(name, DTYPES[entry["dtype"]], tuple(entry["shape"]), path, start))
    return tensors
