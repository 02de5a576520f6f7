"""From the engine's thread to the event loop: the chunks of several replies, without a thread that waits for them."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from ..engine.engine import Engine, Event, Reply
from ..engine.reply import Chunk
from ..engine.request import Request

Heard = tuple[int, Event, float]  # which reply, what it said, and when, by time.perf_counter


class Mailbox:
    """Wakes up those who wait for replies in one event loop: once for all that is said before the loop runs again."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready: deque[asyncio.Event] = deque()
        self._called = False

    def put(self, ready: asyncio.Event) -> None:
        """Set an event soon, from any thread."""
        self._ready.append(ready)
        if not self._called:
            self._called = True
            with suppress(RuntimeError):  # the loop is closed, and nobody listens any more
                self._loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        self._called = False  # before the queue is read, so that what comes during it calls again
        while self._ready:
            self._ready.popleft().set()


class Bell:
    """An event that others set, and a clock sets if nobody does.

    The clock is only moved on when it has struck: `asyncio.timeout` for each token would take as long as its text.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._until = 0.0  # by the clock of the loop
        self._clock: asyncio.TimerHandle | None = None
        self.event = asyncio.Event()

    async def wait(self, timeout: float) -> None:
        """Wait until the event is set, at most `timeout` seconds."""
        self._until = self._loop.time() + timeout
        if self._clock is None or self._clock.when() > self._until:
            self.stop()
            self._clock = self._loop.call_at(self._until, self._strike)
        await self.event.wait()

    def stop(self) -> None:
        """Stop the clock."""
        if self._clock:
            self._clock.cancel()
        self._clock = None

    def _strike(self) -> None:
        self._clock = None
        if self._loop.time() < self._until:
            self._clock = self._loop.call_at(self._until, self._strike)
        else:
            self.event.set()


class Replies:
    """Replies to requests of one client. Close it when the client has all it wants: their rows are then free."""

    def __init__(self, mailbox: Mailbox, engine: Engine, requests: Sequence[Request]):
        """Raises what `Engine.submit` raises."""
        self._mailbox = mailbox
        self._events: deque[Heard] = deque()
        self._bell = Bell()
        self._replies: list[Reply] = []
        self.open = len(requests)
        try:
            for index, request in enumerate(requests):
                self._replies.append(engine.submit(request, partial(self._hear, index)))
        except Exception:
            self.close()
            raise

    async def next(self, timeout: float) -> list[Heard]:
        """What has been said since the last call; it waits for something, at most `timeout` seconds."""
        if not self._events:
            await self._bell.wait(timeout)
        self._bell.event.clear()
        heard = [self._events.popleft() for _ in range(len(self._events))]
        self.open -= sum(not isinstance(event, Chunk) or event.finish_reason is not None for _, event, _ in heard)
        return heard

    def close(self) -> None:
        """End the replies that have not ended."""
        self._bell.stop()
        for reply in self._replies:
            reply.cancel()

    def _hear(self, index: int, event: Event) -> None:
        """In the engine's thread."""
        self._events.append((index, event, time.perf_counter()))
        self._mailbox.put(self._bell.event)
