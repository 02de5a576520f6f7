"""A checkpoint folder as one object, which functions pass on: each of its files is opened and parsed once."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from . import adapter_config
from .config import Qwen3Config
from .forms import NO_GGUF
from .headers import StoredTensor, TensorFile, tensors_of
from .layout import Part, head_differs, locate_parts, repeated_head
from .members import CONFIG, INDEX, members
from .reading import exists, parse_json, read_file, short, some
from .surplus import is_ignored
from .values import same_values

Content = tuple[bytes, os.stat_result]
KEPT_BYTES = 1 << 20  # a file of settings is kept in memory; a vocabulary, which is larger, is not


@dataclass(frozen=True)
class Stamp:
    """The state of a file, to tell later whether the file changed; taken without reading the weights."""

    size: int
    modified_ns: int
    sha256: str  # of the header of a safetensors file, of the whole of any other file
    status: tuple[int, ...]

    def lasting(self) -> list[Any]:
        """What stays the same as long as the content does, as JSON values."""
        return [self.size, self.modified_ns, self.sha256]


class Checkpoint:
    """A folder that holds a checkpoint in any supported layout. Nothing is read before it is asked for.

    Every property raises ConfigError or CheckpointError if the files are missing, broken or contradict each other.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._contents: dict[str, Content] = {}
        self._settings: dict[str, dict[str, Any]] = {}

    @classmethod
    def of(cls, place: "Checkpoint | str | Path") -> "Checkpoint":
        """The checkpoint itself, or that of a folder."""
        return place if isinstance(place, Checkpoint) else cls(place)

    def __contains__(self, name: str) -> bool:
        """Whether the folder has a file of this name; a link that leads nowhere counts."""
        return exists(self.folder / name)

    @property
    def raw_config(self) -> Mapping[str, Any]:
        """config.json as it is."""
        if CONFIG not in self:
            if adapter_config.has_adapter(self.folder):
                raise CheckpointError(adapter_config.what_it_is(self.folder, str(self.folder)))
            _refuse_other_content(self.folder)
            raise CheckpointError(f"{self.folder / CONFIG} does not exist; a checkpoint folder needs {CONFIG}")
        return self.settings(CONFIG)

    @cached_property
    def config(self) -> Qwen3Config:
        return Qwen3Config.from_hf(self.raw_config)

    @cached_property
    def files(self) -> tuple[TensorFile, ...]:
        """The safetensors files, opened."""
        return tuple(TensorFile(path) for path in _weight_files(self.folder, self._index))

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor by its name in the files; reads headers only."""
        found: dict[str, StoredTensor] = {}
        for file in self.files:
            for tensor in tensors_of(file):
                if twin := found.get(tensor.name):
                    places = f"{twin.path.name} and {file.path.name}"
                    raise CheckpointError(f"{short(tensor.name)} is stored twice, in {places}; remove one of them")
                found[tensor.name] = tensor
        if self._index:
            _check_index(self._index, found)
        return found

    @cached_property
    def parts(self) -> dict[str, Part]:
        """Every part of the model (see layout.py) with its tensors, in the order of the forward pass."""
        return locate_parts(self.folder, self.tensors, self.config)

    def settings(self, name: str) -> dict[str, Any]:
        """The object in a JSON file of the folder, {} if there is none."""
        if name not in self._settings:
            self._settings[name] = parse_json(self.folder / name, self.content(name)) if name in self else {}
        return self._settings[name]

    def content(self, name: str) -> bytes:
        """All of a small file of the folder."""
        return self._content(name)[0]

    def check_repeated_head(self) -> None:
        """Compare an lm_head with the embedding that it is tied to. Reads both: only for code that uses the weights.

        Raises CheckpointError if their values differ: transformers 4 then uses the embedding, transformers 5 the head.
        """
        for name, (head, embedding) in repeated_head(self.tensors, self.config).items():
            if not same_values(head, embedding):
                raise head_differs(name)

    def stamps(self) -> dict[str, Stamp]:
        """The state of every file that belongs to the checkpoint, for `changed`."""
        opened = {file.path.name: (file.header, file.status) for file in self.files}
        names = sorted({*members(self.folder), *opened})
        return {name: _stamp(*(opened.get(name) or self._content(name))) for name in names}

    def changed(self, before: Mapping[str, Stamp]) -> str | None:
        """The first file that was written, added or removed after `before` was taken; a new link to it is no change."""
        for name in sorted({*members(self.folder), *before}):
            if name not in before or name not in self:
                return name
            if not unchanged(self.folder / name, before[name]):
                return name
        return None

    def _content(self, name: str) -> Content:
        if name in self._contents:
            return self._contents[name]
        found = read_file(self.folder / name)
        if len(found[0]) <= KEPT_BYTES:
            self._contents[name] = found
        return found

    @cached_property
    def _index(self) -> dict[str, str]:
        """The file of every tensor, as the index says; {} if there is no index."""
        return _places(self.folder / INDEX, self.settings(INDEX)) if INDEX in self else {}


def _places(path: Path, index: Mapping[str, Any]) -> dict[str, str]:
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{path} has no weight_map; download it again")
    known: set[str] = set()  # thousands of experts lie in a few files
    for name, file in places.items():
        if isinstance(file, str) and file in known:
            continue
        if not isinstance(file, str) or Path(file).name != file or file in ("", "..") or "\0" in file:
            raise CheckpointError(
                f"{path} names the file {short(repr(file))} for {short(name)}; expected a name inside the folder"
            )
        known.add(file)
    return places


def _weight_files(folder: Path, index: Mapping[str, str]) -> list[Path]:
    try:
        present = sorted(folder.glob("model*.safetensors"))
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read ({error.strerror})") from None
    if index:
        listed = sorted(folder / file for file in set(index.values()))
        if missing := [path.name for path in listed if not exists(path)]:
            raise CheckpointError(f"{folder} lacks {some(missing)}, which {INDEX} lists; download it again")
        if extra := [path.name for path in present if path not in listed]:
            raise CheckpointError(f"{folder} has {some(extra)}, which {INDEX} does not list; remove it")
        return listed
    if present:
        return present
    if adapter_config.has_adapter(folder):
        raise CheckpointError(adapter_config.what_it_is(folder, str(folder)))
    _refuse_other_content(folder)
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} has its weights in {short(pickles[0])}, a pickle file, which can run code when it is opened; "
            "save it with transformers' save_pretrained, which writes safetensors"
        )
    raise CheckpointError(f"{folder} has no model*.safetensors; expected a Hugging Face or mlx-lm checkpoint folder")


def _refuse_other_content(folder: Path) -> None:
    """For a folder that lacks what a checkpoint needs: its weights may be in another form, or in folders inside it."""
    if packed := sorted(path.name for path in folder.glob("*.gguf")):
        raise CheckpointError(f"{folder} has its weights in {short(packed[0])}, a GGUF file; {NO_GGUF}")
    if steps := [path.parent for path in folder.glob("checkpoint-*/*config.json")]:
        last = max(steps, key=lambda step: (len(step.name), step.name))
        raise CheckpointError(f"{folder} has checkpoints of a training, and no model; give one of them, as in {last}")


def _check_index(index: Mapping[str, str], tensors: Mapping[str, StoredTensor]) -> None:
    """Index and headers name the same tensors, so that none is lost and none is used by accident."""
    for name, file in index.items():
        found = tensors.get(name)
        if found is None or found.path.name != file:
            place = "in no file" if found is None else f"in {short(found.path.name)}"
            raise CheckpointError(
                f"{short(name)} is in {short(file)} by {INDEX}, but {place}; download the checkpoint again"
            )
    if unlisted := [name for name in tensors if name not in index and not is_ignored(name)]:
        where = short(tensors[unlisted[0]].path.name)
        raise CheckpointError(
            f"{where} holds {some(unlisted)}, which {INDEX} does not list; download the checkpoint again, "
            "or add what belongs to the model to the index"
        )


def _stamp(content: bytes, status: os.stat_result) -> Stamp:
    return Stamp(status.st_size, status.st_mtime_ns, hashlib.sha256(content).hexdigest(), _status(status))


def _status(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def unchanged(path: Path, before: Stamp) -> bool:
    """Whether a file has the content that it had. It is read again only if its status changed."""
    try:
        return _status(path.stat()) == before.status or stamp_of(path).lasting() == before.lasting()
    except (OSError, CheckpointError):
        return False


def stamp_of(path: Path) -> Stamp:
    """The state of a file now. Raises CheckpointError."""
    if path.suffix == ".safetensors":
        file = TensorFile(path)
        return _stamp(file.header, file.status)
    return _stamp(*read_file(path))
