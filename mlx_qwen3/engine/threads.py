"""A reply may be read in any thread, and several threads may run models at once.

In MLX each thread has a default stream of its own, and another thread cannot evaluate arrays of that stream. So the
steps of a reply run on one stream that belongs to no thread. Two threads must not use it at once, so a lock lets one
step run at a time.
"""

import atexit
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import mlx.core as mx

Arguments = ParamSpec("Arguments")
Item = TypeVar("Item")

LAST_WAIT = 1.0  # seconds, at the end of the process
_step = threading.Lock()
_visitors: set[threading.Thread] = set()  # the threads that ran a step, without the main thread


def any_thread(steps: Callable[Arguments, Iterator[Item]]) -> Callable[Arguments, Iterator[Item]]:
    """A generator function whose steps may each run in another thread."""

    @wraps(steps)
    def wrapped(*args: Arguments.args, **options: Arguments.kwargs) -> Iterator[Item]:
        iterator = steps(*args, **options)
        while True:
            with _step, mx.stream(_stream(mx.default_device().type)):  # `shared_stream`, without its 2 us a token
                note_thread()
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    return wrapped


@contextmanager
def shared_stream() -> Iterator[None]:
    """Run MLX on the stream that belongs to no thread, alone."""
    with _step, mx.stream(_stream(mx.default_device().type)):
        note_thread()
        yield


@cache
def _stream(device: mx.DeviceType) -> mx.Stream:
    return mx.new_thread_unsafe_stream(device)


def note_thread() -> None:
    """Make the process wait at its end until the current thread, which uses MLX, has ended."""
    thread = threading.current_thread()
    if thread is threading.main_thread() or thread in _visitors:
        return
    for old in list(_visitors):  # a copy: the threads of several engines come here at once
        if not _runs(old.native_id):
            _visitors.discard(old)
    _visitors.add(thread)


@atexit.register
def _wait_for_ends() -> None:
    """Wait until the threads that Python has joined have ended for the system too.

    Until then they free the memory of their MLX traces. If the process ends before that, MLX aborts it (exit code 134).
    """
    deadline = time.monotonic() + LAST_WAIT
    for thread in list(_visitors):
        while not thread.is_alive() and _runs(thread.native_id) and time.monotonic() < deadline:
            time.sleep(0.002)


def _runs(native_id: int | None) -> bool:
    return os.path.exists(f"/proc/self/task/{native_id}")
