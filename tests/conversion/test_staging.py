"""A conversion that is killed or fails: OUT is absent or complete, and the same call resumes."""

import errno
import fcntl
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from checkpoints import write_checkpoint, write_tokenizer
from releases import write_gptq

from mlx_qwen3.conversion import shards, staging
from mlx_qwen3.conversion.certificate import Certificate
from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.conversion.verify import verify
from mlx_qwen3.errors import CheckpointError, OutputError, VerificationError

POINTS = 50
PACKABLE = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 128}
MANY_FILES = {"shard_bytes": 50_000, "divergence": False}  # about ten
PACKED = {**MANY_FILES, "shard_bytes": 10_000, "quantize": "affine4"}
REPACKED = {**MANY_FILES, "shard_bytes": 10_000}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_tokenizer(write_checkpoint(tmp_path_factory.mktemp("source"), **PACKABLE))


@pytest.fixture(scope="module")
def old(tmp_path_factory, source):
    """What --overwrite replaces: another conversion of the same model."""
    out = tmp_path_factory.mktemp("old") / "out"
    convert(source, out, dtype="fp16", divergence=False)
    return out


@pytest.fixture
def memory(tmp_path):
    """A folder in memory if the system has one: hundreds of conversions with fsync would take a minute on a disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the certificate, which names the place it was written for."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "certificate.json"}


def crash(source: Path, folder: Path, options: dict, points: list[int], signal: str = "SIGKILL") -> int:
    """Convert up to each point. If a point is -1, returns the number of events."""
    command = [
        sys.executable,
        str(Path(__file__).parents[1] / "crashing.py"),
        str(source),
        str(folder),
        json.dumps(options),
        signal,
    ]
    # Not measured by coverage: it would write a file for each of the hundreds of forks.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    environment = {**kept, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run([*command, *map(str, points)], capture_output=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr
    return int(result.stdout or 0)


def inodes(work: Path) -> dict[str, int]:
    journal = work / "journal.json"
    if not journal.exists():
        return {}
    return {name: (work / "new" / name).stat().st_ino for name in json.loads(journal.read_text())["finished"]}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_gptq(tmp_path_factory.mktemp("release")).folder


@pytest.mark.parametrize(
    ("of", "options"),
    [("source", MANY_FILES), ("source", PACKED), ("release", REPACKED)],
    ids=["copied", "quantized", "repacked"],
)
def test_killed_at_fifty_points_out_is_absent_or_complete_and_the_next_run_resumes(of, options, memory, request):
    source = request.getfixturevalue(of)
    events = crash(source, memory, options, [-1])
    expected = content(memory / "-1" / "out")
    assert events > 2 * POINTS
    points = sorted(random.Random(events).sample(range(events), POINTS))
    crash(source, memory, options, points)
    resumed = 0
    for point in points:
        out, work = memory / str(point) / "out", memory / str(point) / ".out.partial"
        if out.exists():
            assert content(out) == expected, point
            Certificate.read(out)
        else:
            finished = inodes(work)
            convert(source, out, **options)
            assert content(out) == expected, point
            assert {name: (out / name).stat().st_ino for name in finished} == finished  # not written again
            resumed += bool(finished)
        assert {path.name for path in out.parent.iterdir()} <= {"out", ".out.partial"}
    assert resumed > POINTS / 2


def test_only_finished_files_outlive_a_kill(tmp_path):
    """An unfinished file has a name of its own, so later files do not replace it."""
    stage = staging.Staging(tmp_path, {})
    for name in ("done", "half", ".draft.partial"):
        (stage.folder / name).write_text(name)
    stage.finish("done", {})
    assert [path.name for path in staging.Staging(tmp_path, {}).folder.iterdir()] == ["done"]


def test_killed_while_it_overwrites_the_old_or_the_new_is_there_or_comes_back(source, old, memory):
    options = {"divergence": False, "overwrite": True}
    (memory / "-1").mkdir()
    shutil.copytree(old, memory / "-1" / "out")
    events = crash(source, memory, options, [-1])
    before, after = content(old), content(memory / "-1" / "out")
    assert before != after
    for point in range(events):
        shutil.copytree(old, memory / str(point) / "out")
    crash(source, memory, options, list(range(events)))
    absent = 0
    for point in range(events):
        out, work = memory / str(point) / "out", memory / str(point) / ".out.partial"
        if out.exists():
            assert content(out) in (before, after), point
        else:  # between the two renames
            absent += 1
            assert (content(work / "old"), content(work / "new")) == (before, after)
            with pytest.raises(OutputError, match="out exists already"):  # any next run finishes the exchange
                convert(source, out, dtype="bf16")
            assert content(out) == after
        convert(source, out, **options)
        assert content(out) == after
        assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert absent  # killed in the window: before it syncs the first rename, before the second


@pytest.mark.parametrize("overwrite", [False, True])
def test_ctrl_c_leaves_out_as_it_was_or_complete_and_finished_files(overwrite, source, old, memory):
    """At every event of a command, and of the clean-up at its end."""
    options = {**MANY_FILES, "overwrite": overwrite}
    (memory / "-1").mkdir()
    events = crash(source, memory, options, [-1])
    before, after = content(old), content(memory / "-1" / "out")
    for point in range(events):
        (memory / str(point)).mkdir()
        if overwrite:
            shutil.copytree(old, memory / str(point) / "out")
    crash(source, memory, options, list(range(events)), "SIGINT")
    untouched = complete = kept = 0
    for point in range(events):
        out, work = memory / str(point) / "out", memory / str(point) / ".out.partial"
        names = {path.name for path in out.parent.iterdir()}
        assert names <= {"out", work.name}
        if work.exists():
            assert only_finished_files_are_in(work)
            kept += 1
        if out.exists() and content(out) == after:
            complete += names == {"out"}
        else:
            untouched += content(out) == before if overwrite else not out.exists()
    assert untouched + complete == events
    assert 0 < kept < untouched  # nothing is kept until a file is complete
    assert complete  # published, and cut in the removal of the work
    some = [point for point in range(events) if (memory / str(point) / ".out.partial").exists()]
    for point in random.Random(1).sample(some, 10):
        out = memory / str(point) / "out"
        finished = inodes(out.parent / ".out.partial")
        convert(source, out, **options)
        assert content(out) == after
        assert {name: (out / name).stat().st_ino for name in finished} == finished  # not written again


def only_finished_files_are_in(work: Path) -> bool:
    finished = inodes(work)
    return bool(finished) and {path.name for path in (work / "new").iterdir()} == set(finished)


def killed_half_way(source: Path, folder: Path, options: dict) -> Path:
    """OUT of a conversion that stopped after some files."""
    events = crash(source, folder, options, [-1])
    crash(source, folder, options, [events // 2])
    out = folder / str(events // 2) / "out"
    assert inodes(out.parent / ".out.partial")
    return out


def test_other_settings_are_not_mixed_with_what_is_there(source, tmp_path):
    out = killed_half_way(source, tmp_path, MANY_FILES)
    before = inodes(out.parent / ".out.partial")
    for change, message in (
        ({"dtype": "bf16"}, 'dtype was null, now it is "bf16"'),
        ({"layout": "hf"}, 'layout was "native", now it is "hf"'),
        ({"quantize": "affine8", "layout": "native"}, 'quantize was null, now it is "affine8"'),
        ({"shard_bytes": 10**6}, "shard_bytes was 50000, now it is 1000000"),
    ):
        with pytest.raises(OutputError, match=f"unfinished conversion with other settings: {message}; repeat it with"):
            convert(source, out, **{**MANY_FILES, **change})
    assert inodes(out.parent / ".out.partial") == before
    assert not out.exists()
    convert(source, out, **MANY_FILES)


def test_another_source_is_not_mixed_with_what_is_there(source, tmp_path):
    changing = shutil.copytree(source, tmp_path / "changing")
    out = killed_half_way(changing, tmp_path, MANY_FILES)
    os.utime(changing / "model.safetensors", ns=(1, 1))
    with pytest.raises(OutputError, match=r"other settings: source file model\.safetensors was .*, now it is"):
        convert(changing, out, **MANY_FILES)
    with pytest.raises(OutputError, match="other settings: source was"):
        convert(source, out, **MANY_FILES)


def test_a_finished_file_that_is_gone_is_written_again(source, tmp_path):
    out = killed_half_way(source, tmp_path, MANY_FILES)
    work = out.parent / ".out.partial"
    name = next(iter(inodes(work)))
    (work / "new" / name).unlink()
    convert(source, out, **MANY_FILES)
    assert verify(out).files == len(content(out))


def test_two_at_a_time_are_refused(source, tmp_path):
    work = tmp_path / ".out.partial"
    work.mkdir()
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match=r"another process is converting to .*out"):
            convert(source, tmp_path / "out", divergence=False)
        assert work.exists()
    convert(source, tmp_path / "out", divergence=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- errors that a process survives


def full_disk(monkeypatch, after: int) -> None:
    """Writing fails after `after` calls, as on a full disk."""
    real = os.fsync
    calls = iter(range(10**6))

    def fsync(descriptor: int) -> None:
        if next(calls) >= after:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


KEPT = r"(1 finished file is|\d+ finished files are) kept in .*/\.out\.partial; rerun the command to resume"


@pytest.mark.parametrize("after", [0, 1, 3, 7, 20])
@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk(source, old, existing, after, tmp_path, monkeypatch):
    out, work = tmp_path / "out", tmp_path / ".out.partial"
    if existing:
        shutil.copytree(old, out)
    with monkeypatch.context() as patch:
        full_disk(patch, after)
        with pytest.raises(
            OutputError, match=r"No space left on device\); (nothing was written|" + KEPT + ")"
        ) as error:
            convert(source, out, overwrite=True, **MANY_FILES)
    assert ("kept" in str(error.value)) == work.exists() == (after >= 7)
    assert not work.exists() or only_finished_files_are_in(work)
    assert content(out) == content(old) if existing else not out.exists()
    convert(source, out, overwrite=True, **MANY_FILES)
    assert verify(out).files == len(content(out))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [CheckpointError("a tensor is broken"), KeyboardInterrupt(), ZeroDivisionError()])
def test_an_error_says_what_is_kept_and_the_same_call_resumes(error, source, tmp_path):
    done = []

    def fail(stage, amount):
        done.append(amount)
        if len(done) == 20:
            raise error

    with pytest.raises(type(error)) as raised:
        convert(source, tmp_path / "out", progress=fail, **MANY_FILES)
    said = [str(raised.value), *getattr(raised.value, "__notes__", [])]
    assert any(re.search(KEPT, text) for text in said)
    before = inodes(tmp_path / ".out.partial")
    assert before
    convert(source, tmp_path / "out", **MANY_FILES)
    assert {name: (tmp_path / "out" / name).stat().st_ino for name in before} == before


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting needs root")
def test_a_disk_that_is_really_full(source, tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(OutputError, match=r"No space left on device\); nothing was written"):
            convert(source, tmp_path / "out", divergence=False)
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting needs root")
def test_a_folder_that_is_really_read_only(source, tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(OutputError, match=r"cannot be written \(Read-only file system\).*give another place"):
            convert(source, tmp_path / "out", divergence=False)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_read_only_folder(source, tmp_path, monkeypatch):
    def mkdir(*_args, **_options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(OutputError, match=r"cannot be written \(Permission denied\).*give another place"):
        convert(source, tmp_path / "out", divergence=False)
    assert list(tmp_path.iterdir()) == []


def test_overwrite_keeps_the_old_where_the_exchange_fails(source, old, tmp_path, monkeypatch):
    out = shutil.copytree(old, tmp_path / "out")
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(errno.EIO, "Input/output error")
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(OutputError, match=rf"Input/output error\); {KEPT}"):
            convert(source, out, overwrite=True, divergence=False)
    assert content(out) == content(old)
    assert only_finished_files_are_in(tmp_path / ".out.partial")
    convert(source, out, overwrite=True, divergence=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_old_survives_a_gate_that_fails(source, old, tmp_path):
    out = shutil.copytree(old, tmp_path / "out")
    with pytest.raises(VerificationError, match=r"past the 0 allowed; .* replaces it"):
        convert(source, out, overwrite=True, quantize="affine2", max_kl=0)
    assert content(out) == content(old)


@pytest.mark.parametrize("change", [{"max_kl": 100}, {"quantize": "affine8"}], ids=["accepted", "other settings"])
def test_what_a_gate_refused_is_accepted_or_replaced(change, source, tmp_path):
    refused = {"quantize": "affine2", "max_kl": 0}
    with pytest.raises(VerificationError, match=r"what was written is kept in .*\.out\.partial"):
        convert(source, tmp_path / "out", **refused)
    written = (tmp_path / ".out.partial" / "new" / "model.safetensors").stat().st_mtime_ns
    made = convert(source, tmp_path / "out", **{**refused, "max_kl": None, **change})
    assert made.quantize == {**refused, **change}["quantize"]
    verify(tmp_path / "out")
    assert ((tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == written) == ("max_kl" in change)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_settings_replace_work_without_a_complete_file(tmp_path):
    (staging.Staging(tmp_path, {"bits": 4}).folder / "half").write_text("")
    assert list(staging.Staging(tmp_path, {"bits": 5}).folder.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda folder: os.utime(folder / "model.safetensors", ns=(5, 5)), "model.safetensors"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{}"), "tokenizer_config.json"),
        (lambda folder: (folder / "config.json").write_text((folder / "config.json").read_text() + " "), "config.json"),
        (lambda folder: (folder / "generation_config.json").unlink(missing_ok=True), "generation_config.json"),
    ],
    ids=["weights", "tokenizer", "config", "gone"],
)
def test_a_source_that_changes_meanwhile(source, change, name, tmp_path):
    changing = shutil.copytree(source, tmp_path / "changing")
    with pytest.raises(CheckpointError, match=f"{name} changed while it was converted, so OUT was not written"):
        convert(changing, tmp_path / "out", progress=lambda *_: change(changing), divergence=False)
    assert [path.name for path in tmp_path.iterdir()] == ["changing"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: os.truncate(path, 9000), "ends inside"),
        (lambda path: path.unlink(), "changed while it was converted"),
    ],
    ids=["cut", "gone"],
)
def test_a_source_that_is_removed_meanwhile(source, change, message, tmp_path):
    changing = shutil.copytree(source, tmp_path / "changing")
    begun = []

    def once(*_):
        if not begun:
            begun.append(True)
            change(changing / "model.safetensors")

    with pytest.raises(CheckpointError, match=rf"model\.safetensors {message}"):
        convert(changing, tmp_path / "out", progress=once, divergence=False)
    assert [path.name for path in tmp_path.iterdir()] == ["changing"]


def test_every_file_is_on_disk_before_out_appears(source, tmp_path, monkeypatch):
    """The order of the operations, seen from outside: each file is synced after it was last written."""
    synced: set[int] = set()
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        real_fsync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        if target == tmp_path / "out":
            assert {path.stat().st_ino for path in [self, *self.iterdir()]} <= synced
            synced.clear()
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    convert(source, tmp_path / "out", divergence=False)
    assert tmp_path.stat().st_ino in synced  # and the rename itself


def test_the_parts_that_the_tests_patch_are_those_that_run():
    assert shards.os is os
    assert staging.os is os
