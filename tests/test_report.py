"""Strict JSON; output files whole or not at all, and what is not a plain file."""

import os
import stat
import subprocess
import sys
import threading

import pytest

from mlx_qwen3 import report
from mlx_qwen3.errors import OutputError
from mlx_qwen3.report import check_place, finite, replace_file, write_file


def test_strict_json_has_no_nan():
    value = {"a": [1.0, float("nan"), (float("inf"), "x")], "b": {"c": -float("inf")}, "d": 3}
    assert finite(value) == {"a": [1.0, None, [None, "x"]], "b": {"c": None}, "d": 3}


# --- files


@pytest.fixture(params=["new", "there"])
def file(request, tmp_path):
    path = tmp_path / "x.json"
    if request.param == "there":
        path.write_text("before")
    return path


def test_a_file_is_replaced_and_nothing_else_is_left(file, tmp_path):
    check_place(file)
    write_file(file, b"after")
    assert file.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("fails", ["replace", "fsync"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_a_file_is_whole_or_as_before(fails, error, file, tmp_path, monkeypatch):
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def refuse(*_):
        raise error

    monkeypatch.setattr(os, fails, refuse)
    with pytest.raises(type(error)):
        replace_file(file, b"after", durable=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_error_names_the_file_and_the_remedy(tmp_path):
    with pytest.raises(OutputError, match=r"x\.json cannot be written \(No such file or directory\)"):
        write_file(tmp_path / "missing" / "x.json", b"")


def test_the_mode_is_the_umasks_or_stays(tmp_path):
    path = tmp_path / "x"
    before = os.umask(0o027)
    try:
        replace_file(path, b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    replace_file(path, b"2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_stays_a_link(dangling, tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    link.symlink_to("folder/target")
    if not dangling:
        target.write_text("before")
    check_place(link)
    replace_file(link, b"after")
    assert link.is_symlink()
    assert target.read_bytes() == b"after"
    assert list(target.parent.iterdir()) == [target]


def test_a_named_pipe_is_written_to(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    check_place(pipe)
    replace_file(pipe, b"content")
    reader.join()
    assert got == [b"content"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_is_written_to():
    check_place(report.Path("/dev/null"))
    replace_file(report.Path("/dev/null"), b"content")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="no /dev/stdout here")
@pytest.mark.parametrize("to", ["pipe", "file"])
def test_standard_output_as_a_file_keeps_what_was_printed(to, tmp_path):
    """A rename would put another file in the place of the one that the shell opened."""
    program = (
        "from pathlib import Path; from mlx_qwen3.report import check_place, write_file\n"
        "path = Path('/dev/stdout'); print('first'); check_place(path); write_file(path, b'second\\n'); print('third')"
    )
    with (tmp_path / "out").open("wb") as file:
        stdout = subprocess.PIPE if to == "pipe" else file
        printed = subprocess.run([sys.executable, "-c", program], stdout=stdout, check=True).stdout
    assert (printed if to == "pipe" else (tmp_path / "out").read_bytes()) == b"first\nsecond\nthird\n"


def test_a_place_that_cannot_be_written_is_refused_first(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match="missing is not a folder; make it first"):
        check_place(tmp_path / "missing" / "x")
    with pytest.raises(OutputError, match="is a folder; give a file name"):
        check_place(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
    with pytest.raises(OutputError, match=f"{tmp_path} cannot be written to"):
        check_place(tmp_path / "x")
