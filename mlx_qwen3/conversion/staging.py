"""Writes a folder so that it appears whole or not at all. A killed run can be resumed.

The work for OUT is done in `.OUT.partial`, on the same file system, and published by one rename:

    new/            what will be OUT
    old/            the OUT that --overwrite replaces, while the two are exchanged
    journal.json    the settings, and a record of every file that is complete and on disk

An error or Ctrl-C removes the work. A kill or a power cut leaves it: the next run with the same settings resumes after
the last complete file, and a run with other settings is refused. --overwrite needs two renames. If a kill falls between
them, OUT is absent and both folders are complete: the next run for this OUT finishes the exchange first, with any
options. At every other moment OUT is complete, or absent if it was absent before.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from .. import interrupt
from ..errors import CheckpointError, OutputError, UsageError
from ..files.reading import read_json
from ..report import replace_file, sync

CHECKPOINT = ("config.json", "certificate.json")  # --overwrite replaces only a folder that has one of these


class _Refusal(OutputError):
    """Raised before anything is written. Unfinished work of an earlier run is kept, because it may still be needed."""


class Staging:
    """The folder `new`, and the journal of its complete files."""

    def __init__(self, work: Path, settings: Mapping[str, Any]):
        self.folder = work / "new"
        self._journal = work / "journal.json"
        self._content: dict[str, Any] = {"settings": dict(settings), "finished": {}}
        if self._journal.exists():
            self._resume(work)
        else:
            self.folder.mkdir()
            self._write()

    def finished(self, file: str) -> Any:
        """The record that `finish` got for a file, or None if the file must be written."""
        return self._content["finished"].get(file) if (self.folder / file).exists() else None

    def finish(self, file: str, record: Any) -> None:
        """Note that a file is complete and on disk."""
        sync(self.folder)
        self._content["finished"][file] = record
        self._write()

    def _resume(self, work: Path) -> None:
        stored = _read_journal(self._journal)
        before, now = stored["settings"], json.loads(json.dumps(self._content["settings"]))
        if before != now:
            key = next(key for key in {**now, **before} if before.get(key) != now.get(key))
            raise _Refusal(
                f"{work} holds an unfinished conversion with other settings: {key} was {_short(before.get(key))}, "
                f"now it is {_short(now.get(key))}; repeat it with those settings, or remove that folder to start again"
            )
        self._content = stored
        self.folder.mkdir(exist_ok=True)
        for path in self.folder.iterdir():  # an unfinished file is written again, and a draft has a name of its own
            if path.name not in stored["finished"]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _write(self) -> None:
        replace_file(self._journal, json.dumps(self._content).encode(), durable=True)


def _read_journal(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
        if all(isinstance(content[key], dict) for key in ("settings", "finished")):
            return content
    except (CheckpointError, KeyError):
        pass
    raise _Refusal(f"{path} is damaged, so the conversion cannot be resumed; remove {path.parent} to start again")


@contextmanager
def staging(out: Path, settings: Mapping[str, Any], overwrite: bool) -> Iterator[Staging]:
    """Yields the work for `out`, new or resumed, and renames it to `out` at the end.

    Raises OutputError if `out` exists and may not be overwritten, if its parent cannot be written, if another process
    works on it, or if there is unfinished work with other `settings` (JSON values).
    """
    work = work_folder(out)
    accepted = False

    def withdraw() -> None:
        if accepted or not (work / "journal.json").exists():  # otherwise it is earlier work, which may still be needed
            _withdraw(work, out)

    with _failing_clearly(out), _parents(out), _locked(out, work, withdraw):
        _recover(out, work)
        try:
            check_free(out, overwrite)
            with interrupt.postponed():
                stage = Staging(work, settings)
                accepted = True
            yield stage
            _publish(work, out, overwrite)
        except BaseException as error:
            if not (isinstance(error, _Refusal) and (work / "journal.json").exists()):
                _remove(work, out)
            raise
        _remove(work, out)


def work_folder(out: Path) -> Path:
    return out.parent / f".{out.name}.partial"


def check_free(out: Path, overwrite: bool) -> None:
    """Raises OutputError unless `out` is free, or a checkpoint folder that may be overwritten."""
    if out.name in ("", ".."):
        raise _Refusal(f"OUT {str(out)!r} has no name of its own; give the name of the new folder")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise _Refusal(f"{out} exists and is not a folder; remove it or give another place")
    if not out.exists():
        return
    if not overwrite:
        raise _Refusal(f"{out} exists already; give another place, remove it, or use --overwrite")
    content = {path.name for path in out.iterdir()}
    if content and not content.intersection(CHECKPOINT):
        raise _Refusal(
            f"{out} has no config.json, so it is not a checkpoint that may be overwritten; give another place"
        )


def check_apart(source: Path, out: Path) -> None:
    """Raises UsageError if replacing `out` would remove the source."""
    source, out = source.resolve(), out.resolve()
    if source == out or out in source.parents:
        raise UsageError(f"OUT {out} holds SOURCE {source}, which would be replaced; give another place")


def _publish(work: Path, out: Path, overwrite: bool) -> None:
    new = work / "new"
    for path in new.rglob("*"):
        sync(path)
    sync(new)
    check_free(out, overwrite)
    old = work / "old"
    if out.exists():
        out.rename(old)
        sync(work)
    try:
        new.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    sync(out.parent)


def _recover(out: Path, work: Path) -> None:
    """Finish an exchange that was interrupted between its two renames, and remove the rest of finished work."""
    old, new = work / "old", work / "new"
    if old.exists() and out.exists() and new.exists():
        raise OutputError(
            f"{out} appeared while it was being replaced; {old} has the folder from before and {new} the new one: "
            f"move what you need elsewhere and remove {work}"
        )
    if old.exists() and not out.exists():
        (new if new.exists() else old).rename(out)  # `old` is there only after `new` was complete and on disk
        sync(out.parent)
    if old.exists() or not (work / "journal.json").exists() or not new.exists():
        _clear(work)


def _withdraw(work: Path, out: Path) -> None:
    """Undo on Ctrl-C: `out` stays as it was, or is complete; the work is removed."""
    if (work / "old").exists() and not out.exists():
        (work / "old").rename(out)
    _remove(work, out)


def _remove(work: Path, out: Path) -> None:
    if (work / "old").exists() and not out.exists():
        return  # it is the only copy; the next run restores it
    with suppress(OSError):
        _clear(work)
        shutil.rmtree(work)


def _clear(work: Path) -> None:
    """Remove everything but the lock. The journal is removed first, so that it never lists a missing file."""
    (work / "journal.json").unlink(missing_ok=True)
    with suppress(OSError):  # the rest must be removed even on a full disk
        sync(work)
    for path in work.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def _parents(out: Path) -> Iterator[None]:
    """Make the folders above `out`. If the work fails, those that were made are removed again."""
    made = [folder for folder in out.parents if not folder.exists()]

    def undo() -> None:
        for folder in made:
            with suppress(OSError):  # unfinished work of a killed run may lie there
                folder.rmdir()

    with interrupt.cleaning(undo):
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            yield
        except BaseException:
            undo()
            raise


@contextmanager
def _locked(out: Path, work: Path, withdraw: Callable[[], None]) -> Iterator[None]:
    """One process at a time. A kill releases this lock; a file that only exists would stay.

    While the lock is held, Ctrl-C calls `withdraw`.
    """
    with interrupt.postponed():  # or Ctrl-C could come after the folder is made, but before its clean-up is registered
        while True:
            work.mkdir(exist_ok=True)
            file = _lock(out, work / "lock")
            if (work / "lock").exists() and os.fstat(file.fileno()).st_ino == (work / "lock").stat().st_ino:
                break
            file.close()  # another process has just finished and removed the folder
        interrupt.register(withdraw)
    try:
        yield
    finally:
        interrupt.unregister(withdraw)
        file.close()


def _lock(out: Path, path: Path) -> TextIO:
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise OutputError(f"another process is converting to {out}; wait for it, or give another place") from None
    return file


@contextmanager
def _failing_clearly(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place = f"{out.parent} cannot be written" if not work_folder(out).exists() else f"{out} could not be written"
        raise OutputError(f"{place} ({error.strerror or error}); nothing was written; give another place") from None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
