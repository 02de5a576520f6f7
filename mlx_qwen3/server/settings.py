"""The settings of a server, checked."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import UsageError

PAGE = Path(__file__).parent / "page"


@dataclass(frozen=True)
class Settings:
    """Times are in seconds, sizes in bytes.

    queue: replies that may wait for a row; one more gets 429.
    timeout: for a whole reply, waiting included. stall: for a client that takes no data, or sends none.
    keep_alive: between comments that keep a stream open while nothing is said.
    drain: for replies under way when the server is told to stop.
    insecure: allow another host than this machine without an API key.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    insecure: bool = False
    cors: tuple[str, ...] = ()
    rows: int = 8
    queue: int = 64
    max_body: int = 16 << 20
    timeout: float = 600.0
    stall: float = 60.0
    keep_alive: float = 10.0
    drain: float = 30.0
    log_prompts: bool = False
    engine: dict[str, Any] = field(default_factory=dict)  # options of the Engine
    dtype: str | None = None
    weights: str | None = None  # packed or unpacked in memory; by default what serves
    chat_template: str | None = None  # the name of one of the checkpoint's, or a file; by default as it chooses
    page: Path = PAGE

    def __post_init__(self) -> None:
        """Raises UsageError for a host that others can reach without a key, and for an origin that no page has."""
        if self.api_key is not None and not self.api_key.strip():
            raise UsageError("the API key is empty; give a secret, or none")
        for origin in self.cors:
            if not is_origin(origin):
                raise UsageError(
                    f"--cors is {origin[:200]!r}; expected an origin as browsers send it, such as "
                    "https://app.example or http://localhost:3000, without a path, or * for all"
                )
        if not (is_local(self.host) or self.api_key or self.insecure):
            raise UsageError(
                f"--host {self.host} lets other machines in and there is no API key; give --api-key, or --insecure to "
                "let everyone in who reaches this port"
            )


def is_origin(text: str) -> bool:
    """Whether it is an origin, or `*`. Pages from files and sandboxes have the origin `null`."""
    if text in ("*", "null"):
        return True
    try:
        parts = urlsplit(text)
        return text == f"{parts.scheme}://{parts.netloc}" == text.lower() and bool(parts.scheme and parts.hostname)
    except ValueError:
        return False


def is_local(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
