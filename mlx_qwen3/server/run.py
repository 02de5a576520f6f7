"""Runs the application: the socket, signals, and an orderly end."""

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import OutputError
from .app import make_app
from .models import Pool
from .settings import Settings

LOG = logging.getLogger("mlx_qwen3.server")
BACKLOG = 1024
LOOK = 0.1  # seconds between two looks whether replies are to end now
TOLD = 1.0  # seconds that clients have to take the end of their replies after a second Ctrl-C


class Protocol(H11Protocol):
    """HTTP of one connection, which is closed if its request does not come within `stall` seconds."""

    stall = 60.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        app = self.app

        async def abortable(scope: Any, receive: Any, send: Any) -> None:
            scope["abort"] = transport.abort
            await app(scope, receive, send)

        self.app = abortable
        self._timer = self.loop.call_later(self.stall, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():  # the head is not complete
            return
        self._timer.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._timer.cancel()
        if not self.transport.is_closing():
            self._timer = self.loop.call_later(self.stall, self._check)

    def _unsupported_upgrade_warning(self) -> None:
        # None: the answer comes by HTTP/1.1. Java's client offers HTTP/2 with every request.
        pass

    def _check(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.transport.abort()


class Server(uvicorn.Server):
    """Ends when it is told to by SIGTERM or Ctrl-C: takes no more, lets replies end, and cuts those that take too long.

    A second Ctrl-C ends all replies at once.
    """

    def __init__(self, config: uvicorn.Config, pool: Pool, drain: float, ready: Callable[[], None] | None = None):
        super().__init__(config)
        self._pool, self._drain, self._ready = pool, drain, ready
        self.stopped_by: int | None = None
        self.at_once = False

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.stopped_by = self.stopped_by or sig
        # uvicorn's own answer to a second Ctrl-C drops the replies without a word, and its log has their tracebacks.
        self.at_once |= self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # uvicorn's own raises them again at the end, which would end the process before its clean-up.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # A signal that is ignored, as Ctrl-C is after `nohup` or `&`, stays so.
        heard = [sig for sig in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(sig) is not signal.SIG_IGN]
        before = {sig: signal.signal(sig, self.handle_exit) for sig in heard}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._ready:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        LOG.info("stopping: replies under way have %g seconds to end", self._drain)
        cutting = asyncio.create_task(self._cut())
        await super().shutdown(sockets)
        cutting.cancel()
        with suppress(asyncio.CancelledError):
            await cutting

    async def _cut(self) -> None:
        """End the replies that take too long, or all of them if there is no time."""
        end = time.monotonic() + self._drain
        while time.monotonic() < end and not self.at_once:
            await asyncio.sleep(LOOK)
        why = "" if self.at_once else ", and the reply took longer than it waits (--drain)"
        await self._pool.close(f"the server is being stopped{why}")
        while not self.at_once:
            await asyncio.sleep(LOOK)
        await asyncio.sleep(TOLD)
        self.force_exit = True


def listen(settings: Settings) -> socket.socket:
    """A socket that listens. Raises OutputError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind((settings.host.strip("[]"), settings.port))
        server.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        server.close()
        where = f"{settings.host}:{settings.port}"
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{where} cannot be listened on ({reason}); choose another --host or --port") from None
    return server


def make_server(settings: Settings, pool: Pool, ready: Callable[[], None] | None = None) -> Server:
    protocol = type("Protocol", (Protocol,), {"stall": settings.stall})
    config = uvicorn.Config(
        make_app(settings, pool),
        http=protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(settings.stall) or 1,
        timeout_graceful_shutdown=int(settings.drain + 10),
    )
    return Server(config, pool, settings.drain, ready)


def serve(
    sources: Mapping[str, str],
    settings: Settings,
    *,
    memory: int | str | None = None,
    idle: float | None = None,
    preload: bool = True,
    adapters: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> int | None:
    """Serve models until a signal. Returns the signal that ended it.

    `adapters` of the first model, by name, are models too. `preload`: load the first model before the first request.
    `say` is given the address once the server takes requests.
    """
    pool = Pool(
        sources,
        dtype=settings.dtype,
        weights=settings.weights,
        memory=memory,
        idle=idle,
        options=settings.engine,
        adapters=adapters,
    )
    listening = listen(settings)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    server = make_server(settings, pool, lambda: say(f"http://{shown}:{port}"))

    async def run() -> None:
        if preload or settings.chat_template:
            async with pool.use(None) as loaded:
                if settings.chat_template:
                    loaded.tokenizer.chat_template(settings.chat_template)  # one that is not there is an error now
        await server.serve(sockets=[listening])

    with listening:
        asyncio.run(run())
    return server.stopped_by
