"""What chat and completions have in common: replies are begun, told as they come or as a whole, and counted."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ..engine.reply import Chunk
from ..engine.request import Request
from .answers import Body, CompletionDetails, PromptDetails, Usage, json_response
from .errors import ApiError, from_exception
from .guard import Note, parse
from .models import Loaded
from .replies import Heard, Replies
from .requests import Generation
from .service import Service, service_of
from .sse import DONE, KEEP_ALIVE, EventStream, event, left

LOG = logging.getLogger("mlx_qwen3.server")
Result = TypeVar("Result")
Asked = TypeVar("Asked", bound=Generation)


class Writer(Protocol):
    """Makes the bodies of one endpoint from chunks. `feed` is given every chunk, of a stream or not."""

    def begin(self) -> list[Body]:
        """What a stream begins with."""

    def feed(self, index: int, chunk: Chunk) -> list[Body]:
        """What a chunk adds to a stream."""

    def usage(self, usage: Usage) -> Body:
        """The last chunk of a stream that is to have one."""

    def whole(self, usage: Usage) -> Body:
        """The answer that is not streamed."""


@dataclass(frozen=True)
class Head:
    """What all bodies of one answer share."""

    model: str
    prefix: str
    id: str = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", f"{self.prefix}-{secrets.token_hex(12)}")


class Tally:
    """Counts the tokens of the replies of one request, and their times."""

    def __init__(self, service: Service, note: Note, prompts: Sequence[int], replies: int):
        """`prompts` are the lengths of the prompts; each has as many of the `replies`."""
        self._metrics, self._note = service.metrics, note
        self._last: dict[int, float] = {}
        self._each = replies // len(prompts)
        self._prompt = sum(prompts)
        self._cached: dict[int, int] = {}
        self._generated = self._reasoning = 0
        self._finish: list[str] = []
        self._metrics.counts["prompt_tokens_total"] += self._prompt

    def add(self, index: int, chunk: Chunk, moment: float) -> None:
        metrics = self._metrics
        if index in self._last:
            metrics.between.add(moment - self._last[index])
        else:
            first = moment - self._note.start  # the wait for a model counts too
            metrics.first.add(first)
            self._note.facts.setdefault("first", f"{first:.3f}")
            self._cached[index] = chunk.cached
            metrics.counts["prefix_queries_total"] += 1
            metrics.counts["prefix_hits_total"] += chunk.cached > 0
            metrics.counts["cached_tokens_total"] += chunk.cached if index % self._each == 0 else 0
        self._last[index] = moment
        self._generated += 1
        self._reasoning += chunk.part == "thinking"
        metrics.counts["generated_tokens_total"] += 1
        if chunk.finish_reason:
            metrics.whole.add(moment - self._note.start)
            self._finish.append(chunk.finish_reason)

    @property
    def usage(self) -> Usage:
        # A prompt with several replies counts once, and so does what was known of it before the first of them.
        cached = sum(count for index, count in self._cached.items() if index % self._each == 0)
        details = PromptDetails(cached), CompletionDetails(self._reasoning)
        return Usage(self._prompt, self._generated, self._prompt + self._generated, *details)

    def tell(self, end: str | None = None) -> None:
        """Put into the log what is known at the end; `end` says why it came early."""
        usage = self.usage
        self._note.facts |= {
            "prompt": usage.prompt_tokens,
            "cached": usage.prompt_tokens_details.cached_tokens,
            "generated": usage.completion_tokens,
            "finish": end or ",".join(self._finish) or "error",
        }


@dataclass
class Job:
    """Replies that are to be begun, for one request of a client."""

    service: Service
    loaded: Loaded
    requests: list[Request]
    prompts: list[int]  # lengths
    writer: Writer
    stream: bool
    include_usage: bool
    prompt_name: str  # the field of the prompt, for errors


async def serve(
    http: HttpRequest,
    endpoint: str,
    kind: type[Asked],
    prompt_name: str,
    logged: str,
    make_job: Callable[[Service, Loaded, Asked, dict[str, Any]], Awaitable[Job]],
) -> Response:
    """Answer a request of `kind`; `prompt_name` is the field of its prompt, and `logged` what the log calls it.

    `make_job` gets the request as it was checked and as it came.
    """
    service = service_of(http, endpoint)
    asked, raw = await parse(http, service.settings, kind)

    async def reply(stack: AsyncExitStack) -> Response:
        loaded = await stack.enter_async_context(service.pool.use(asked.model))
        http.scope["note"].facts["model"] = loaded.name
        if service.settings.log_prompts:
            http.scope["note"].facts[logged] = raw[prompt_name]
        return await _answer(http, await make_job(service, loaded, asked, raw), stack)

    async with AsyncExitStack() as stack:
        try:
            return await _unless_left(http, reply(stack))
        except Exception as error:
            raise from_exception(error, prompt_name, kind.__struct_fields__) from error


async def _answer(http: HttpRequest, job: Job, stack: AsyncExitStack) -> Response:
    """Begin the replies of a job and answer with them; `stack` is closed when the answer is complete.

    Raises ApiError if there is no room for them.
    """
    service, note = job.service, http.scope["note"]
    service.check_room(job.loaded, len(job.requests))
    tally = Tally(service, note, job.prompts, len(job.requests))
    replies = Replies(service.mailbox, job.loaded.engine, job.requests)
    job.loaded.replies += len(job.requests)
    service.metrics.replies[job.loaded.name] += len(job.requests)
    stack.callback(_release, job, replies, tally)
    if job.stream:
        return EventStream(_events(job, replies, tally), stack.pop_all(), service.settings.stall)
    async for heard in _heard(job, replies):
        for index, chunk in _chunks(heard, tally):
            job.writer.feed(index, chunk)
    return json_response(job.writer.whole(tally.usage))


async def _unless_left(http: HttpRequest, work: Awaitable[Result]) -> Result:
    """The result of work that is given up if the client leaves. The body must have been read."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(left(http.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(499, "the client has left")  # nobody reads this
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _events(job: Job, replies: Replies, tally: Tally) -> AsyncGenerator[bytes]:
    yield b"".join(event(body) for body in job.writer.begin())
    try:
        async for heard in _heard(job, replies):
            told = [event(body) for index, chunk in _chunks(heard, tally) for body in job.writer.feed(index, chunk)]
            if told or not heard:
                yield b"".join(told) or KEEP_ALIVE
    except Exception as error:
        yield b"data: " + from_exception(error, job.prompt_name).body() + b"\n\n" + DONE
        return
    if job.include_usage:
        yield event(job.writer.usage(tally.usage))
    yield DONE


async def _heard(job: Job, replies: Replies) -> AsyncGenerator[list[Heard]]:
    """What is said until all replies have ended, an empty list now and then. Raises ApiError after the timeout."""
    settings = job.service.settings
    end = time.perf_counter() + settings.timeout
    while replies.open:
        left_s = end - time.perf_counter()
        if left_s <= 0:
            message = f"the reply was not complete after {settings.timeout:g} seconds (--timeout)"
            raise ApiError(504, message, code="timeout")
        yield await replies.next(min(settings.keep_alive, left_s))


def _chunks(heard: list[Heard], tally: Tally) -> list[tuple[int, Chunk]]:
    """The chunks of what was heard, counted. Raises the error that ended one of the replies."""
    found = []
    for index, said, moment in heard:
        if isinstance(said, Exception):
            raise said
        if said is not None:
            tally.add(index, said, moment)
            found.append((index, said))
    return found


def _release(job: Job, replies: Replies, tally: Tally) -> None:
    early = replies.open > 0
    replies.close()
    job.loaded.replies -= len(job.requests)
    job.service.metrics.counts["replies_cancelled_total"] += replies.open
    tally.tell("cut" if early else None)
