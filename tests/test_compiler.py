"""C++ that is compiled on this machine: kept, shared by processes, and refused with a reason."""

import os
import shutil
import sys

import pytest

from mlx_qwen3 import compiler

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs g++ on Linux")


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A file with one function, and a folder of its own for what is compiled."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    compiler.library.cache_clear()
    yield tmp_path / "twice.cpp"
    compiler.library.cache_clear()


def write(source, factor=2):
    source.write_text(f'extern "C" int twice(int x) {{ return {factor} * x; }}')
    return source


def kept(source):
    return sorted(source.parent.glob("mlx-qwen3-*/*"))


def test_a_function_is_compiled_once(source, monkeypatch):
    assert compiler.library(write(source)).twice(4) == 8
    compiler.library.cache_clear()
    monkeypatch.setenv("PATH", "")  # no compiler any more
    assert compiler.library(source).twice(5) == 10
    assert len(kept(source)) == 1


def test_another_text_or_processor_is_compiled_again(source, monkeypatch):
    compiler.library(write(source))
    compiler.library.cache_clear()
    assert compiler.library(write(source, 3)).twice(4) == 12
    compiler.library.cache_clear()
    monkeypatch.setattr(compiler, "_processor", lambda: "another")
    compiler.library(source)
    assert len(kept(source)) == 3


def test_the_processor_has_a_name():
    assert len(compiler._processor()) > 20


def test_a_mistake_is_quoted_and_nothing_is_kept(source):
    source.write_text("no C++")
    with pytest.raises(OSError, match=r"g\+\+ failed: .*twice\.cpp"):
        compiler.library(source)
    assert kept(source) == []


def test_no_compiler_is_an_error(source, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(OSError, match=r"g\+\+"):
        compiler.library(write(source))


def test_a_folder_of_others_is_not_used(source):
    folder = source.parent / f"mlx-qwen3-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(OSError, match="not a folder that only you can write to"):
        compiler.library(write(source))


def test_another_system_is_refused(source, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OSError, match="darwin"):
        compiler.library(write(source))
