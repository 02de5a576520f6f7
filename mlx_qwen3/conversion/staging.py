"""Writes a folder so that it appears whole or not at all. A run that was cut can be resumed.

The work for OUT is done in `.OUT.partial`, on the same file system, and published by one rename:

    new/            what will be OUT
    old/            the OUT that --overwrite replaces, while the two are exchanged
    journal.json    the settings, and a record of every file that is complete and on disk

A kill, a power cut, an error and Ctrl-C leave the complete files: the next run with the same settings resumes after the
last of them, and a run with other settings is refused. The work is removed if no file is complete yet, or if no later
run can use it (`Staging.discard`).

--overwrite needs two renames. If a kill falls between them, OUT is absent and both folders are complete: the next run
for this OUT finishes the exchange first, with any options. At every other moment OUT is complete, or absent if it was
absent before.
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
from ..errors import CheckpointError, OutputError, Qwen3Error
from ..files.reading import read_json
from ..report import replace_file, sync
from .places import check_free

NEW, OLD, JOURNAL = "new", "old", "journal.json"


class Staging:
    """The folder `new`, and the journal of its complete files."""

    def __init__(self, work: Path, settings: Mapping[str, Any]):
        self.folder = work / NEW
        self.useful = True  # to a later run, if this one fails
        self._journal = work / JOURNAL
        self._content: dict[str, Any] = {"settings": dict(settings), "finished": {}, "refused": False}
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

    def refuse(self) -> None:
        """Note that the result is not good enough: a later run with other settings may replace it."""
        self._content["refused"] = True
        self._write()

    def discard(self) -> None:
        """No later run can use these files: they are removed if this run fails."""
        self.useful = False

    def _resume(self, work: Path) -> None:
        stored = _read_journal(self._journal)
        before, now = stored["settings"], json.loads(json.dumps(self._content["settings"]))
        if before == now:
            self._content["finished"] = stored["finished"]
        elif stored["finished"] and not stored["refused"]:
            key = next(key for key in {**now, **before} if before.get(key) != now.get(key))
            raise OutputError(
                f"{work} holds an unfinished conversion with other settings: {key} was {_short(before.get(key))}, "
                f"now it is {_short(now.get(key))}; repeat it with those settings, or remove that folder to start again"
            )
        self._write()
        self.folder.mkdir(exist_ok=True)
        _prune(work)

    def _write(self) -> None:
        replace_file(self._journal, json.dumps(self._content).encode(), durable=True)


def _read_journal(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
        if all(isinstance(content[key], dict) for key in ("settings", "finished")):
            return {"refused": False, **content}
    except (CheckpointError, KeyError):
        pass
    raise OutputError(f"{path} is damaged, so the conversion cannot be resumed; remove {path.parent} to start again")


@contextmanager
def staging(out: Path, settings: Mapping[str, Any], overwrite: bool) -> Iterator[Staging]:
    """Yields the work for `out`, new or resumed, and renames it to `out` at the end.

    Raises OutputError if `out` exists and may not be overwritten, if its parent cannot be written, if another process
    works on it, or if there is unfinished work with other `settings` (JSON values). An error from the block is told
    what is kept of the work, and how to go on.
    """
    work = work_folder(out)
    stage: Staging | None = None

    def leave() -> None:
        """After an error or Ctrl-C: `out` is as it was, or complete; the work is kept if a later run can use it."""
        if stage:
            _leave(work, out, stage.useful)
        elif not (work / JOURNAL).exists():  # otherwise it is earlier work, which may still be needed
            _remove(work, out)

    with _failing_clearly(out), _parents(out), _locked(out, work, leave):
        _recover(out, work)
        try:
            check_free(out, overwrite)
            with interrupt.postponed():
                stage = Staging(work, settings)
            yield stage
            _publish(work, out, overwrite)
        except BaseException as error:
            leave()
            if stage and (kept := _kept(work)):
                _tell(error, out, kept)
            raise
        _remove(work, out)


def _leave(work: Path, out: Path, useful: bool) -> None:
    kept = _kept(work)
    if not useful or not kept:
        _remove(work, out)
        return
    with suppress(OSError):
        if (work / OLD).exists() and not out.exists():
            (work / OLD).rename(out)
        _prune(work)
    interrupt.last_words(kept)


def _kept(work: Path) -> str:
    """What a later run can use of the work, and how; empty if nothing is complete, or if all of it is published."""
    if not (work / NEW).exists() or not (work / JOURNAL).exists():
        return ""
    journal = _read_journal(work / JOURNAL)
    number = len(journal["finished"])
    if journal["refused"]:
        return f"what was written is kept in {work}, and a run with other settings replaces it"
    files = "1 finished file is" if number == 1 else f"{number} finished files are"
    return f"{files} kept in {work}; rerun the command to resume" if number else ""


def _tell(error: BaseException, out: Path, kept: str) -> None:
    """Raises the error again with what is kept. An error that is not ours gets a note."""
    if isinstance(error, OSError):
        raise OutputError(f"{out} could not be written ({error.strerror or error}); {kept}") from None
    if isinstance(error, Qwen3Error):
        raise type(error)(f"{error}; {kept}") from error
    error.add_note(kept)


def work_folder(out: Path) -> Path:
    return out.parent / f".{out.name}.partial"


def _publish(work: Path, out: Path, overwrite: bool) -> None:
    new = work / NEW
    for path in new.rglob("*"):
        sync(path)
    sync(new)
    check_free(out, overwrite)
    old = work / OLD
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
    old, new = work / OLD, work / NEW
    if old.exists() and out.exists() and new.exists():
        raise OutputError(
            f"{out} appeared while it was being replaced; {old} has the folder from before and {new} the new one: "
            f"move what you need elsewhere and remove {work}"
        )
    if old.exists() and not out.exists():
        (new if new.exists() else old).rename(out)  # `old` is there only after `new` was complete and on disk
        sync(out.parent)
    if old.exists() or not (work / JOURNAL).exists() or not new.exists():
        _clear(work)


def _remove(work: Path, out: Path) -> None:
    if (work / OLD).exists() and not out.exists():
        return  # it is the only copy; the next run restores it
    with suppress(OSError):
        _clear(work)
        shutil.rmtree(work)


def _prune(work: Path) -> None:
    """Remove what is not complete: it is written again, and a draft has a name of its own."""
    finished = _read_journal(work / JOURNAL)["finished"]
    for path in (work / NEW).iterdir():
        if path.name not in finished:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _clear(work: Path) -> None:
    """Remove everything but the lock. The journal is removed first, so that it never lists a missing file."""
    (work / JOURNAL).unlink(missing_ok=True)
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
def _locked(out: Path, work: Path, leave: Callable[[], None]) -> Iterator[None]:
    """One process at a time. A kill releases this lock; a file that only exists would stay.

    While the lock is held, Ctrl-C calls `leave`.
    """
    with interrupt.postponed():  # or Ctrl-C could come after the folder is made, but before its clean-up is registered
        while True:
            work.mkdir(exist_ok=True)
            file = _lock(out, work / "lock")
            if (work / "lock").exists() and os.fstat(file.fileno()).st_ino == (work / "lock").stat().st_ino:
                break
            file.close()  # another process has just finished and removed the folder
        interrupt.register(leave)
    try:
        yield
    finally:
        interrupt.unregister(leave)
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
