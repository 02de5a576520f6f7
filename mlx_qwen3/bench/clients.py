"""Clients of a server: they read streams, and note when each piece of a reply came."""

import http.client
import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any

from ..errors import BenchError
from .mixes import Client, body

PATIENCE = 600  # seconds that a client waits for the next bytes
CHUNK = 1 << 16  # bytes of one read
ATTEMPTS, PAUSE = 20, 0.02  # a connection that is reset before an answer is tried again, after a pause in seconds
Piece = tuple[float, bytes]  # when it came, and what


class NoText(BenchError):
    """A reply whose tokens show nothing, so that nobody can tell when the first one came."""


@dataclass(frozen=True)
class Answer:
    """One reply. Times are `perf_counter` seconds; `pieces` are those of the chunks that have text."""

    sent: float
    ended: float
    pieces: tuple[float, ...]
    thought: str
    content: str
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    retries: int = 0  # connections that the server reset before it answered

    @property
    def first_s(self) -> float:
        """Seconds from the request to the first text."""
        return self.pieces[0] - self.sent


def ask(
    port: int,
    request: dict[str, Any],
    watch: Callable[[float, bytes], bool] = lambda when, data: True,
    opened: http.client.HTTPConnection | None = None,
) -> Answer:
    """Send one request, on a connection that is `opened` or on a new one, and read its stream.

    `watch` sees all bytes as they come; false ends the reading at once. Raises BenchError if the server refuses the
    request, or if the stream ends early or has no text.
    """
    pieces: list[Piece] = []
    left = False
    sent = time.perf_counter()
    try:
        connection, response, retries = _request(port, json.dumps(request).encode(), opened or _connection(port))
        with closing(connection), closing(response):  # which holds the socket if the server closes it
            if response.status != 200:
                raise BenchError(
                    f"the server answered {response.status}: {response.read(500).decode(errors='replace')}"
                )
            while not left and (part := response.read1(CHUNK)):
                pieces.append((time.perf_counter(), part))
                left = not watch(*pieces[-1])
    except (OSError, http.client.HTTPException) as error:
        raise BenchError(f"the server broke the connection: {error!r}") from None
    return replace(_answer(sent, time.perf_counter(), list(events(pieces)), left), retries=retries)


def _connection(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)


def _request(
    port: int, data: bytes, connection: http.client.HTTPConnection
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse, int]:
    """Send it. A server with a short queue of connections resets some of many that come at once, so it tries again."""
    for attempt in range(ATTEMPTS):
        try:
            connection.request("POST", "/v1/chat/completions", data, {"Content-Type": "application/json"})
            return connection, connection.getresponse(), attempt
        except OSError:
            connection.close()
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(PAUSE)
            connection = _connection(port)
    raise AssertionError("not reached")


def events(pieces: Iterable[Piece]) -> Iterator[tuple[float, str]]:
    """The data of each event of a stream, and when its last byte came. Comments are left out."""
    kept = b""
    for when, data in pieces:
        *whole, kept = (kept + data).split(b"\n\n")
        for event in whole:
            if event.startswith(b"data: "):
                yield when, event.removeprefix(b"data: ").decode()


def _answer(sent: float, ended: float, found: Sequence[tuple[float, str]], left: bool) -> Answer:
    if not left and (not found or found[-1][1] != "[DONE]"):
        raise BenchError(f"a stream ended without [DONE]; its last event: {found[-1][1][:300] if found else 'none'}")
    times: list[float] = []
    thought = content = ""
    usage: dict[str, Any] = {}
    for when, data in found:
        chunk = json.loads(data) if data != "[DONE]" else {}
        if "error" in chunk:
            raise BenchError(f"the server sent an error: {data[:300]}")
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices") or []:
            delta = choice.get("delta") or {}
            thinking, said = delta.get("reasoning") or "", delta.get("content") or ""
            if thinking or said:
                times.append(when)
            thought, content = thought + thinking, content + said
    if not times:
        raise NoText("a reply has no text")
    details = usage.get("prompt_tokens_details") or {}
    counts = [usage.get("completion_tokens", 0), usage.get("prompt_tokens", 0), details.get("cached_tokens") or 0]
    # One server sends the line feeds around the thinking, the other does not.
    thought, content = thought.strip(), content.strip()
    return Answer(sent, ended, tuple(times), thought, content, *counts)


def crowd(
    port: int, clients: Sequence[Client], longest: int, bias: Mapping[int, float] | None = None
) -> list[list[Answer]]:
    """All clients at once, each in a thread; a client asks again when it has its reply. The replies by client.

    Their connections are opened before, one after the other. A server whose queue of connections holds only 5, as that
    of mlx_lm.server, would lose some of many that come at once, and the kernel tries again only after a second.
    """
    together = threading.Barrier(len(clients))
    opened = {client: [_connection(port) for _ in range(client.turns)] for client in clients}

    def run(client: Client) -> list[Answer]:
        answers = []
        together.wait()
        for (messages, tokens), connection in zip(client.requests(longest), opened[client], strict=True):
            answers.append(ask(port, body(messages, tokens, bias), opened=connection))
            client.hear(answers[-1].content)
        return answers

    with ExitStack() as stack:
        for connection in chain(*opened.values()):
            stack.callback(connection.close)
            connection.connect()
        with ThreadPoolExecutor(len(clients)) as pool:
            return list(pool.map(run, clients))


def disturbed(port: int, running: dict[str, Any], arriving: dict[str, Any], after: int) -> tuple[list[float], Answer]:
    """The gaps between tokens of a running reply while another prompt is computed, in seconds; and the other's answer.

    The prompt is sent when the running reply has had `after` reads. The gaps are those that end between then and the
    other's first token, and the one that this token falls into. Raises BenchError if the running reply ends before.
    """
    ready, over = threading.Event(), threading.Event()
    reads = 0

    def watch(when: float, data: bytes) -> bool:
        nonlocal reads
        reads += 1
        if reads == after:
            ready.set()
        return not over.is_set()

    def follow() -> Answer:
        try:
            return ask(port, running, watch)
        finally:
            ready.set()  # or the other would wait for ever for one that failed

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(follow)
        ready.wait()
        other = ask(port, arriving)
        over.set()
        reply = following.result()
    times = reply.pieces
    began, ended = other.sent, other.pieces[0]
    if times[-1] < ended:
        raise BenchError("the running reply ended before the first token of the prompt that arrived")
    pairs = pairwise(times)
    return [late - early for early, late in pairs if late > began and early < ended], other


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least this share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
