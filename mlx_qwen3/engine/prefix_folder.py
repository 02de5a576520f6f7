"""A folder of prefixes: those that do not fit in memory, and those for later processes.

Several processes may share a folder. Each file appears whole or not at all. If another process removes a file, its
prefix is no longer known.
"""

import fcntl
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import OutputError, Qwen3Error, UsageError, warn
from ..model.cache import KVCache
from ..report import PARTIAL, replace_file
from .beginnings import Beginnings
from .prefix_file import OtherModel, PrefixFile, UnusablePrefix, pieces

FOLDER_BYTES = 10 * 10**9  # of the files in a folder
SUFFIX = ".prefix.safetensors"


class Known(NamedTuple):
    """A file of the folder, and the tokens that it has."""

    path: Path
    ids: np.ndarray
    nbytes: int


class PrefixFolder:
    """The prefixes of one model in a folder, which may hold those of others."""

    def __init__(self, folder: str | Path, model: str, limit: int = FOLDER_BYTES):
        """`model` is the result of `model_key`. The files of all models may take `limit` bytes; the oldest are removed.

        Makes the folder. Raises OutputError if it cannot be written to.
        """
        if not str(folder).strip():
            raise UsageError("cache_dir is empty, which would be the current folder; give a name")
        self.folder, self._model, self._limit = Path(folder), model, limit
        self._writes = True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder, os.O_RDONLY)
        except OSError as error:
            raise OutputError(f"{folder} cannot be used as a folder of prefixes ({error.strerror})") from None
        if not os.access(self.folder, os.W_OK):
            raise OutputError(f"{folder} cannot be written to; give another folder")
        self._clean()
        self._known: Beginnings[Known] = Beginnings()
        for path in self._files():
            if (file := self._open(path)) and not self._known.longer(file.ids):
                self._known.add(file.ids, Known(path, file.ids, file.size))

    def close(self) -> None:
        """Release the folder. Its files stay."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def longest(self, ids: np.ndarray) -> int:
        """How many tokens of `ids` the best file has."""
        return self._known.best(ids)[0]

    def best(self, ids: np.ndarray) -> Known | None:
        """The file that has most of `ids`."""
        return self._known.best(ids)[1]

    def read(self, known: Known) -> tuple[np.ndarray, KVCache] | None:
        """The ids and the cache of a file, if it is in order."""
        if (file := self._open(known.path)) is None:
            return None
        try:
            cache = file.read()
        except UnusablePrefix as error:
            self._ignore(known.path, error)
            return None
        with suppress(OSError):
            os.utime(known.path)  # it is the one used last
        return file.ids, cache

    def write(self, ids: np.ndarray, cache: KVCache) -> None:
        """Keep a prefix, unless a file has it already. If the disk is full, says so once and writes no more."""
        path = self.folder / f"{_name(self._model, ids)}{SUFFIX}"
        if self._known.longer(ids) or not self._writes or not cache.end:
            return
        try:
            replace_file(path, pieces(self._model, ids, cache))
        except OSError as error:
            self._writes = False
            warn(f"{self.folder} cannot be written to ({error.strerror}); prefixes are kept in memory only")
            return
        if shorter := self._known.add(ids, Known(path, np.array(ids, np.int32), cache.nbytes)):
            self._remove(shorter.path)
        self._shrink()

    def _files(self) -> list[Path]:
        """The prefixes of all models, the one used last at the end."""
        found = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            with suppress(OSError):
                found.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(found)]

    def _shrink(self) -> None:
        sizes = {}
        for path in self._files():
            with suppress(OSError):
                sizes[path] = path.stat().st_size
        total = sum(sizes.values())
        for path, size in sizes.items():
            if total <= self._limit:
                return
            self._remove(path)
            total -= size

    def _remove(self, path: Path) -> None:
        self._forget(path)
        with suppress(OSError):
            path.unlink()

    def _forget(self, path: Path) -> None:
        for known in self._known:
            if known.path == path:
                self._known.remove(known.ids)
                return

    def _open(self, path: Path) -> PrefixFile | None:
        try:
            return PrefixFile(path, self._model)
        except OtherModel:
            return None
        except (UnusablePrefix, Qwen3Error) as error:
            self._ignore(path, error)
            return None

    def _ignore(self, path: Path, reason: Exception) -> None:
        self._forget(path)
        if os.path.lexists(path):  # else another process has removed it
            warn(f"the prefix in {path} is not used: {reason}")

    def _clean(self) -> None:
        """Remove partial files of a killed process, if no other process uses the folder now."""
        with suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in self.folder.glob(f".*{PARTIAL}"):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _name(model: str, ids: np.ndarray) -> str:
    return hashlib.sha256(model.encode() + np.array(ids, np.int32).tobytes()).hexdigest()[:40]
