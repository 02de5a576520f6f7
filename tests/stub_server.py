"""A server without a model: it streams what a test tells it, so that the clients of `bench --serve` can be tested."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

LONG = 600  # tokens
Reply = Callable[[dict[str, Any]], Iterator[str]]  # the request -> the events of the stream


def chunk(content: str | None = None, **more: Any) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": {"content": content, **more}}]})


def usage(tokens: int, prompt: int, cached: int = 0) -> str:
    counts = {"completion_tokens": tokens, "prompt_tokens": prompt, "prompt_tokens_details": {"cached_tokens": cached}}
    return json.dumps({"choices": [], "usage": counts})


def echo(request: dict[str, Any]) -> Iterator[str]:
    """One word for each token asked for; a long reply does not end until the client leaves."""
    yield chunk("", role="assistant")
    for number in range(request["max_tokens"]) if request["max_tokens"] < LONG else count():
        yield chunk(f"{number} ")
    yield usage(request["max_tokens"], len(request["messages"]))
    yield "[DONE]"


class Stub:
    """`port`, and the `requests` it got. It can stand for `servers.Server`."""

    def __init__(self, reply: Reply, status: int = 200, name: str = "stub"):
        self.name, self.requests = name, list[dict[str, Any]]()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: Any) -> None:
                pass

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.requests.append(request)
                self.send_response(status)
                self.end_headers()
                try:
                    for event in reply(request):
                        self.wfile.write(f": comment\n\ndata: {event}\n\n".encode())
                        self.wfile.flush()
                except (BrokenPipeError, ConnectionResetError):  # the client left, as it may
                    pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._http.server_port

    def last_words(self) -> str:
        return "none"

    def __enter__(self) -> "Stub":
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def stub(reply: Reply = echo, status: int = 200) -> Iterator[Stub]:
    with Stub(reply, status) as server:
        yield server
