"""A stream to a client: events, one that leaves, one that stops reading."""

import asyncio
from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest

from mlx_qwen3.server import sse
from mlx_qwen3.server.answers import Text
from mlx_qwen3.server.sse import EventStream, event


class Loop(asyncio.SelectorEventLoop):
    """Its clock stands still while something runs, and jumps over waits: no test hangs on a speed."""

    def __init__(self):
        super().__init__()
        self._now, select = 0.0, self._selector.select

        def jump(timeout):
            assert timeout is not None, "nobody would ever go on"
            self._now += timeout
            return select(0)

        self._selector.select = jump

    def time(self):
        return self._now


def run(events, receive, send, stall=5.0, scope=None):
    """Returns whether the clean-up ran."""
    closed = []

    async def go():
        stack = AsyncExitStack()
        stack.callback(closed.append, True)
        await EventStream(events, stack, stall)(scope or {"type": "http"}, receive, send)

    with asyncio.Runner(loop_factory=Loop) as runner, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "time", SimpleNamespace(monotonic=runner.get_loop().time))
        runner.run(go())
    return closed


async def never():
    await asyncio.Event().wait()


async def three():
    for letter in (b"a", b"b", b"c"):
        yield letter


def test_an_event_is_one_line_of_json():
    assert event(Text("a\nb")) == b'data: {"prompt":"a\\nb"}\n\n'


def test_everything_is_sent_and_then_the_clean_up_runs():
    sent = []

    async def send(message):
        sent.append(message)

    assert run(three(), never, send) == [True]
    assert sent[0]["status"] == 200
    assert dict(sent[0]["headers"])[b"content-type"].startswith(b"text/event-stream")
    assert b"content-length" not in dict(sent[0]["headers"])
    assert b"".join(message.get("body", b"") for message in sent[1:]) == b"abc"
    assert not sent[-1].get("more_body")


def test_a_client_that_leaves_ends_the_generator():
    ended = []

    async def endless():
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0)
        finally:
            ended.append(True)

    async def leave():
        for _ in range(9):
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(message):
        pass

    assert run(endless(), leave, send) == [True]
    assert ended == [True]


def test_a_client_that_left_before_the_first_event_leaves_nothing_behind():
    async def leave():
        return {"type": "http.disconnect"}

    async def send(message):
        await never()

    assert run(three(), leave, send) == [True]


def test_a_client_that_does_not_read_is_dropped():
    aborted = []

    async def send(message):
        if message["type"] == "http.response.body":
            await never()

    scope = {"type": "http", "abort": lambda: aborted.append(True)}
    assert run(three(), never, send, 0.01, scope) == [True]
    assert aborted == [True]


def test_a_client_that_reads_slowly_is_not_dropped():
    """Each message is taken late, but before the limit. All together take longer than the limit."""
    sent = []

    async def slow():
        for _ in range(6):
            yield b"x"

    async def send(message):
        await asyncio.sleep(0.9)
        sent.append(message.get("body", b""))

    scope = {"type": "http", "abort": lambda: sent.append(b"aborted")}
    assert run(slow(), never, send, 1.0, scope) == [True]
    assert b"".join(sent) == b"x" * 6
