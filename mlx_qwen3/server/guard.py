"""What every request passes before its endpoint: the log, the origin of web pages, the API key, the body's limits."""

import asyncio
import hmac
import ipaddress
import json
import logging
import time
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, from_validation
from .metrics import Metrics
from .settings import Settings, is_local

LOG = logging.getLogger("mlx_qwen3.server")
OPEN_PATHS = ("/", "/health")  # and the page's files: they need no key
Asked = TypeVar("Asked")


@dataclass
class Note:
    """What the log says of a request beside its path: filled in by the endpoint."""

    endpoint: str = "other"
    start: float = field(default_factory=time.perf_counter)  # when the request came
    facts: dict[str, object] = field(default_factory=dict)


class Log:
    """One line a request, in which no text of a client can make a second one."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        note = scope["note"] = Note()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._metrics.requests[note.endpoint, status] += 1
            facts = {**note.facts, "seconds": f"{time.perf_counter() - note.start:.3f}"}
            told = " ".join(f"{name}={_quoted(value)}" for name, value in facts.items())
            client = scope["client"][0] if scope.get("client") else "-"
            LOG.info("%s %s %s %s %s", client, scope["method"], _quoted(scope["path"]), status or "-", told)


def _quoted(value: object) -> str:
    text = str(value)
    plain = text.isprintable() and " " not in text and '"' not in text
    return text if plain else json.dumps(text)


class Guard:
    """Refuses web pages of other origins, and who has no key.

    A page in somebody's browser can reach a server on the same machine: by its address, or by a name of its own that it
    lets point there. Browsers send the origin of the page with every POST, so it is compared.
    """

    def __init__(self, app: ASGIApp, settings: Settings):
        self._app, self._settings = app, settings
        self._key = settings.api_key.encode() if settings.api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._fault(scope["path"], Headers(scope=scope))):
            await error.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _fault(self, path: str, headers: Headers) -> ApiError | None:
        origin = headers.get("origin")
        if origin is not None and not self._welcome(origin, headers.get("host", "")):
            return ApiError(403, f"pages of {origin[:200]} may not use this server; --cors allows it", code="origin")
        if self._key is None or path in OPEN_PATHS or path.startswith("/page/"):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), self._key):
            return None
        what = "the API key is wrong" if given else "give the API key as 'Authorization: Bearer KEY'"
        return ApiError(401, what, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _welcome(self, origin: str, host: str) -> bool:
        if "*" in self._settings.cors or origin in self._settings.cors:
            return True
        try:
            parts = urlsplit(origin)
            name = parts.hostname or ""
        except ValueError:
            return False
        if parts.netloc.lower() != host.lower():
            return is_local(name) and is_local(urlsplit(f"//{host}").hostname or "")
        return self._key is not None or is_local(name) or _is_address(name)


def _is_address(name: str) -> bool:
    """Whether it is an IP address, which no name server can let point elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def read_body(request: Request, settings: Settings) -> bytes:
    """The body. Raises ApiError if it is compressed, too large or does not come."""
    if (encoding := request.headers.get("content-encoding", "identity")).lower() != "identity":
        what = f"the body is encoded by {encoding[:60]!r} (Content-Encoding); send it as it is"
        raise ApiError(415, what, code="unsupported_encoding")
    limit = settings.max_body
    large = ApiError(413, f"the body is larger than {limit:,} bytes (--max-body)", code="request_too_large")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise large
    parts, size = [], 0
    try:
        async with asyncio.timeout(settings.stall):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise large
                parts.append(part)
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {settings.stall:g} seconds") from None
    except ClientDisconnect:
        raise ApiError(400, "the client left before the body was complete") from None
    return b"".join(parts)


async def parse(request: Request, settings: Settings, kind: type[Asked]) -> tuple[Asked, dict[str, object]]:
    """The body as a checked request and as it is. Raises ApiError that names what is wrong."""
    body = await read_body(request, settings)
    try:
        raw = msgspec.json.decode(body)
        return msgspec.convert(raw, kind), raw
    except msgspec.ValidationError as error:
        raise from_validation(error, kind) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise ApiError(400, "the JSON of the body is nested too deeply", code="invalid_json") from None
