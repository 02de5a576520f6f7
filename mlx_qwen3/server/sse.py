"""Server-sent events, to a client that may leave, or stop reading, at any time."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from .answers import Body

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": still working\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # no proxy is to gather what it passes on


def event(body: Body) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


async def left(receive: Receive) -> None:
    """Wait until the client has left. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends what a generator gives, until it ends or the client leaves; then closes the generator and `stack`.

    A client that takes no data for `stall` seconds is taken for one that has left.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], stack: AsyncExitStack, stall: float):
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._events, self._stack, self._stall = events, stack, stall
        self._since: float | None = None  # when the message was handed over that the client has not taken yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.create_task(self._write(send))
        leaving = asyncio.create_task(left(receive))
        try:
            if not await self._over(writing, leaving):
                scope.get("abort", lambda: None)()  # a mere close would wait until the client has taken everything
            elif writing.done():
                writing.result()
        finally:
            for task in (writing, leaving):
                task.cancel()
            await asyncio.gather(writing, leaving, return_exceptions=True)
            await self._events.aclose()
            await self._stack.aclose()  # a generator that was never begun runs no clean-up of its own

    async def _over(self, *tasks: asyncio.Task[None]) -> bool:
        """Wait until one of the tasks is done. False if the client takes no data."""
        # One look now and then: a timer for each message would take a fifth of the event loop's time.
        rest = self._stall
        while rest > 0:
            done, _ = await asyncio.wait(tasks, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return True
            rest = self._stall - (time.monotonic() - self._since if self._since is not None else 0)
        return False

    async def _write(self, send: Send) -> None:
        await self._send(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for data in self._events:
            await self._send(send, {"type": "http.response.body", "body": data, "more_body": True})
        await self._send(send, {"type": "http.response.body", "body": b""})

    async def _send(self, send: Send, message: Message) -> None:
        self._since = time.monotonic()
        await send(message)
        self._since = None
