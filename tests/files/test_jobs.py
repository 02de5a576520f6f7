"""Work that several threads share."""

import gc
import threading
import weakref
from contextlib import suppress
from functools import partial

import pytest

from mlx_qwen3.files import jobs
from mlx_qwen3.files.jobs import THREADS, run


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_every_job_runs_once(count):
    done: list[int] = []
    run([partial(done.append, number) for number in range(count)])
    assert sorted(done) == list(range(count))


def test_jobs_run_at_the_same_time():
    everybody = threading.Barrier(THREADS, timeout=60)
    run([everybody.wait] * THREADS)  # each waits for all others


def test_an_error_is_raised_and_no_job_begins_after_it():
    begun: list[int] = []
    failed = threading.Event()

    def fail() -> None:
        failed.set()
        raise ValueError("no such block")

    def work() -> None:
        begun.append(1)
        assert failed.wait(60)
        sum(range(10_000))  # all of them would take seconds, in which the other thread raises

    with pytest.raises(ValueError, match="no such block"):
        run([fail, *[work] * 100_000])
    assert len(begun) < 100_000


def test_an_error_keeps_nothing_alive():
    class Block:
        def fail(self) -> None:
            raise ValueError("cannot be read")

    block = Block()
    alive = weakref.ref(block)
    gc.disable()  # what only the collector would find stays
    try:
        with suppress(ValueError):
            run([block.fail, lambda: None])
        del block
        assert alive() is None
    finally:
        gc.enable()


def test_ctrl_c_ends_the_work(monkeypatch):
    begun: list[int] = []
    released = threading.Event()

    def interrupted(*_, **__):
        released.set()
        raise KeyboardInterrupt

    def work() -> None:
        begun.append(1)
        assert released.wait(60)

    monkeypatch.setattr(jobs, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run([work] * 100_000)
    assert len(begun) < 100_000
