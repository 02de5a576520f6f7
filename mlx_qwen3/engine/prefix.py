"""Prefixes: keys and values of earlier prompts and replies, which a new prompt may begin with."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..errors import UsageError, warn
from ..files.reading import exists
from ..model.cache import KVCache
from ..model.qwen3 import Qwen3
from ..report import check_place, write_file
from .beginnings import Beginnings, shared_length
from .prefix_file import PrefixFile, UnusablePrefix, pieces
from .prefix_folder import PrefixFolder
from .threads import shared_stream

PREFIX_BYTES = 1 << 30  # of keys and values that are kept for later prompts
WORTH_READING = 32  # a file is read only if it has at least so many more tokens than the memory
UNUSED = 1.25  # a cache with more slots than this for each token is copied to one that fits


class Prefix:
    """Token ids and a cache of one row that holds them, of the base or of one of its adapters."""

    def __init__(self, ids: Sequence[int] | np.ndarray, cache: KVCache, adapter: str | None = None):
        self.ids, self.cache, self.nbytes = np.array(ids, np.int32), cache, cache.nbytes
        self.adapter = adapter


class PrefixStore:
    """The prefixes that were used last, up to a number of bytes. Others go to a folder, if there is one.

    Those of the base and of each adapter are kept apart, but the bytes are for all of them.
    """

    def __init__(self, limit: int, folders: PrefixFolder | Mapping[str | None, PrefixFolder] | None = None):
        """`folders` are one for each adapter, by name, or that of the base alone."""
        self._limit = limit
        self._folders: dict[str | None, PrefixFolder] = {}
        self._folders |= {None: folders} if isinstance(folders, PrefixFolder) else folders or {}
        self._prefixes: dict[str | None, Beginnings[Prefix]] = defaultdict(Beginnings)  # by adapter
        self._used: dict[Prefix, None] = {}  # all of them, the one used last at the end
        self.nbytes = 0  # of them

    @property
    def last(self) -> Prefix | None:
        """The prefix used last."""
        return next(reversed(self._used), None)

    def longest(self, ids: np.ndarray, adapter: str | None = None) -> int:
        """How many tokens of `ids` the best prefix has."""
        kept, _ = self._prefixes[adapter].best(ids)
        folder = self._folders.get(adapter)
        on_disk = folder.longest(ids) if folder else 0
        return on_disk if on_disk >= kept + WORTH_READING else kept

    def take(self, ids: np.ndarray, room: int | None = None, adapter: str | None = None) -> KVCache | None:
        """A new cache with the longest known beginning of `ids`; None if no beginning is known.

        Prefixes keep at most `room` bytes beside it: other prefixes are dropped first, then the one that it comes from.
        """
        kept, best = self._prefixes[adapter].best(ids)
        if self.longest(ids, adapter) > kept and (read := self._read(ids, room, adapter)):
            kept, best = shared_length(ids, read.ids), read
        limit = self._limit if room is None else min(room, self._limit)
        if best is None:
            self.shrink(limit)
            return None
        if best.nbytes <= limit:
            self._keep(best)
            self.shrink(limit)
            return best.cache.copy(kept)
        self._drop(best)
        self.shrink(limit)
        self._let_go(best)
        best.cache.trim(best.cache.end - kept)
        best.cache.fit()
        return best.cache

    def put(self, ids: Sequence[int] | np.ndarray, cache: KVCache, adapter: str | None = None) -> None:
        """Keep a cache of one row that holds `ids`. The store owns it from now on."""
        ids = np.array(ids, np.int32)
        if longer := self._prefixes[adapter].longer(ids):
            self._keep(longer)
            return
        if cache.capacity > UNUSED * cache.end:
            cache.fit()
        self._keep(Prefix(ids, cache, adapter))

    def shrink(self, limit: int) -> None:
        """Drop the least recently used prefixes until at most `limit` bytes are left."""
        while self._used and self.nbytes > limit:
            self._drop(oldest := next(iter(self._used)))
            self._let_go(oldest)

    def close(self) -> None:
        """Write the prefixes to the folder, and drop them. Call it in any thread, but not during a step."""
        with shared_stream():
            self.shrink(0)
        for folder in self._folders.values():
            folder.close()

    def _read(self, ids: np.ndarray, room: int | None, adapter: str | None) -> Prefix | None:
        """The best prefix of the folder, if what it has beyond `ids` fits the room."""
        folder = self._folders[adapter]  # only a folder knows more than the memory
        known = folder.best(ids)
        if known is None:
            return None
        if room is not None:
            if known.nbytes - known.nbytes * shared_length(ids, known.ids) // len(known.ids) > room:
                return None
            self.shrink(max(0, room - known.nbytes))
        found = folder.read(known)
        return Prefix(*found, adapter) if found else None

    def _keep(self, prefix: Prefix) -> None:
        """Add a prefix as the one used last. It replaces one that is a beginning of it."""
        self._drop(prefix)
        replaced = self._prefixes[prefix.adapter].add(prefix.ids, prefix)
        self._used[prefix] = None
        self.nbytes += prefix.nbytes
        if replaced:
            del self._used[replaced]
            self.nbytes -= replaced.nbytes
        self.shrink(self._limit)

    def _drop(self, prefix: Prefix) -> None:
        if prefix in self._used:
            self._prefixes[prefix.adapter].remove(prefix.ids)
            del self._used[prefix]
            self.nbytes -= prefix.nbytes

    def _let_go(self, prefix: Prefix) -> None:
        if folder := self._folders.get(prefix.adapter):
            folder.write(prefix.ids, prefix.cache)


@contextmanager
def kept(
    model: Qwen3,
    folder: str | Path | None = None,
    file: str | Path | None = None,
    limit: int = PREFIX_BYTES,
    kv_bits: int | None = None,
) -> Iterator[PrefixStore | None]:
    """A store for one reply, filled from a folder or a file or both, to which the reply's prefix is written at the end.

    None if neither is given. A file that is damaged or of another model is not used, but replaced; see `check_file`.
    Raises OutputError if one of them cannot be written to.
    """
    if folder is None and file is None:
        yield None
        return
    key = model_key(model, kv_bits)
    store = PrefixStore(limit, PrefixFolder(folder, key) if folder is not None else None)
    if file is not None and (found := _read(Path(file), key, limit)):
        store.put(*found)
    before = store.last
    try:
        yield store
    finally:
        if file is not None and (last := store.last) and last is not before:
            with shared_stream():
                write_file(Path(file), pieces(key, last.ids, last.cache))
        store.close()


def check_file(path: str | Path) -> None:
    """Raises UsageError or OutputError if `kept` cannot or must not write this file. Call it before the work starts."""
    check_place(Path(path))
    if _has_content(Path(path)):
        try:
            PrefixFile(Path(path), "")
        except UnusablePrefix as error:
            if not error.ours:
                raise UsageError(f"{path} is not a prompt cache ({error}); give another name, or remove it") from None


def _read(path: Path, key: str, limit: int) -> tuple[np.ndarray, KVCache] | None:
    """The prefix in a file; None if there is no file, or if it cannot be used."""
    if not _has_content(path):
        return None
    try:
        if (size := path.stat().st_size) > limit:
            raise UnusablePrefix(f"it takes {size:,} bytes of memory, and prefixes may take {limit:,}")
        file = PrefixFile(path, key)
        with shared_stream():
            return file.ids, file.read()
    except UnusablePrefix as error:
        warn(f"the prompt cache in {path} is not used: {error}")
        return None


def _has_content(path: Path) -> bool:
    return exists(path) and path.stat().st_size > 0


def model_key(model: Qwen3, kv_bits: int | None = None) -> str:
    """A text for everything that keys and values depend on: model, dtype, settings, device, and `kv_bits`.

    Raises UsageError for a model that `load_model` did not make, because it cannot be distinguished from others.
    """
    if model.fingerprint is None:
        raise UsageError("this model was not loaded from a checkpoint; only a loaded one can keep prefixes in files")
    return f"{model.fingerprint} {mx.default_device().type.name}" + (f" kv{kv_bits}" if kv_bits else "")
