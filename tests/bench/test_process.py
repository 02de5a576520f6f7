"""The contestants' processes: what is in them, and how they end."""

import sys
from pathlib import Path

import pytest

from mlx_qwen3.bench import process
from mlx_qwen3.bench.options import KINDS, Contestant
from mlx_qwen3.bench.process import Worker
from mlx_qwen3.errors import BenchError


def test_others_get_neither_this_package_nor_its_blas(chat, monkeypatch):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # every import is a line on stderr
    with Worker(Contestant("mlx-lm", KINDS["mlx-lm"], None)) as worker:
        worker._errors.seek(0)
        names = {line.split("|")[-1].strip() for line in worker._errors.read().decode().splitlines()}
        assert "mlx_lm" in names
        assert not any(name.startswith("mlx_qwen3") for name in names)
        if sys.platform == "linux":
            assert "libmkl_rt" not in Path(f"/proc/{worker._process.pid}/maps").read_text()
        assert worker.greeting["blas"] == "of MLX"


def test_a_worker_that_dies_is_reported_with_its_last_words(monkeypatch):
    monkeypatch.setattr(process, "BOOT", "import sys; sys.exit('no such luck')")
    with pytest.raises(BenchError, match=r"^mlx-qwen3 ended with code 1 \(starting\); its last words: no such luck$"):
        Worker(Contestant("mlx-qwen3", KINDS["mlx-qwen3"], None))


def test_a_worker_that_fails_or_is_killed_is_reported(chat):
    with Worker(Contestant("mlx-qwen3", KINDS["mlx-qwen3"], None)) as worker:
        with pytest.raises(BenchError, match=r"mlx-qwen3 failed \(load\): SourceError|CheckpointError|ConfigError"):
            worker.ask("load", folder="/nowhere", dtype=None)
        worker._process.kill()
        worker._process.wait()
        with pytest.raises(BenchError, match=r"mlx-qwen3 ended with code -9 \(load\)"):
            worker.ask("load", folder=str(chat), dtype=None)


def test_a_worker_ends_with_its_parent():
    worker = Worker(Contestant("mlx-qwen3", KINDS["mlx-qwen3"], None))
    worker._process.stdin.close()  # as the system does it
    assert worker._process.wait(timeout=60) == 1
    worker.close()
