"""A server on a loopback port, in this process, and a plain client for it."""

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mlx_qwen3.server.models import Pool
from mlx_qwen3.server.run import listen, make_server
from mlx_qwen3.server.settings import Settings


class Served:
    """`pool` and `app` are the server's own, to look into; `url` is its address."""

    def __init__(self, server: Any, pool: Pool, port: int):
        self.server, self.pool, self.port = server, pool, port
        self.url = f"http://127.0.0.1:{port}"
        self.key: str | None = None

    @property
    def loaded(self) -> Any:
        return self.pool.loaded[0]

    @property
    def busy(self) -> bool:
        load = self.loaded.engine.load
        return bool(load.running or load.waiting)

    def open(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if body is None or isinstance(body, bytes | str) else json.dumps(body)
        connection.request(method, path, data, headers or {})
        response = connection.getresponse()
        response.connection = connection  # or it is collected, and with it the socket
        return response

    def ask(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> tuple[int, Any]:
        """(status, the JSON of the answer, or its text)"""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        response = self.open(method or ("GET" if body is None else "POST"), path, body, names)
        try:
            text = response.read().decode()
        finally:
            response.connection.close()
        kind = response.headers.get("content-type", "")
        return response.status, json.loads(text) if kind == "application/json" else text

    def chat(self, text: str = "hello", **more: Any) -> Any:
        status, answer = self.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **more})
        assert status == 200, answer
        return answer

    def refusal(self, path: str, body: Any) -> dict[str, Any]:
        """The error of a request that is refused with 400."""
        status, answer = self.ask(path, body)
        assert status == 400, answer
        assert set(answer) == {"error"}
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        return answer["error"]

    def events(self, path: str, body: Any) -> list[Any]:
        """The JSON of each event of a stream; the last one must be [DONE]."""
        response = self.open("POST", path, {"stream": True, **body})
        assert response.status == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in response.read().decode().split("\n\n") if line]
        response.connection.close()
        assert events.pop() == "[DONE]"
        return [json.loads(event) for event in events if not event.startswith(":")]


@contextmanager
def serving(sources: dict[str, str] | None = None, **options: Any) -> Iterator[Served]:
    """`options` are those of Settings; `memory`, `idle`, `adapters` and `preload` those of `serve`."""
    pool_options = {name: options.pop(name) for name in ("memory", "idle", "adapters") if name in options}
    preload = options.pop("preload", True)
    settings = Settings(**{"port": 0, "rows": 4, "dtype": "fp32", **options})
    engine = {"max_rows": settings.rows, **settings.engine}
    pool = Pool(sources or {"demo": "demo"}, dtype=settings.dtype, options=engine, **pool_options)
    listening = listen(settings)
    ready = threading.Event()
    server = make_server(settings, pool, ready.set)

    async def run() -> None:
        if preload:
            async with pool.use(None):
                pass
        await server.serve(sockets=[listening])

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield Served(server, pool, listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)  # the server's threads need the interpreter
