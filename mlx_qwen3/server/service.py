"""What the endpoints share: the settings, the models, the counts."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from starlette.requests import Request as HttpRequest

from .errors import ApiError
from .metrics import Metrics
from .models import Loaded, Pool
from .replies import Mailbox
from .settings import Settings

Result = TypeVar("Result")
RETRY_AFTER = "1"  # second, after which a client that got 429 may try again


def service_of(http: HttpRequest, endpoint: str) -> "Service":
    """What a request finds shared. Notes for log and counts which endpoint answers it."""
    http.scope["note"].endpoint = endpoint
    service: Service = http.app.state.service
    return service


@dataclass
class Service:
    settings: Settings
    pool: Pool
    metrics: Metrics = field(default_factory=Metrics)
    # Prompts are rendered and encoded here: a long one takes longer than the event loop may stand still.
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "mlx-qwen3 prompts"))
    # A schema may take seconds to compile, for which no prompt is to wait.
    grammars: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "mlx-qwen3 grammars"))

    @cached_property
    def mailbox(self) -> Mailbox:
        """Of the running event loop."""
        return Mailbox()

    async def in_thread(self, call: Callable[[], Result], threads: ThreadPoolExecutor | None = None) -> Result:
        return await asyncio.get_running_loop().run_in_executor(threads or self.threads, call)

    def check_room(self, loaded: Loaded, replies: int) -> None:
        """Raises ApiError if so many more replies would not find a place to run or to wait."""
        settings, most = self.settings, self.settings.rows + self.settings.queue
        if replies > most:
            message = f"n and the prompts ask for {replies} replies; this server takes {most} at a time"
            raise ApiError(400, message, "n", "invalid_value")
        if loaded.replies + replies > most:
            message = f"{loaded.replies} replies run or wait, and {most} is the limit ({settings.rows} rows, --queue "
            message += f"{settings.queue}); try again later"
            raise ApiError(429, message, code="queue_full", headers={"Retry-After": RETRY_AFTER})

    def gauges(self) -> dict[str, int]:
        loads = [loaded.engine.load for loaded in self.pool.loaded]
        return {
            "queue_replies": sum(load.waiting for load in loads),
            "running_replies": sum(load.running for load in loads),
            "prefix_bytes": sum(load.prefix_bytes for load in loads),
            "models_loaded": len(loads),
        }
