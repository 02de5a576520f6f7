"""Errors as OpenAI's API has them: a status, and a body that names the parameter at fault."""

import logging
import re
from collections.abc import Iterable, Iterator

import msgspec
from msgspec import inspect
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..errors import EngineError, MemoryBudgetError, PromptError, Qwen3Error, UsageError
from .answers import Error, ErrorDetail

LOG = logging.getLogger("mlx_qwen3.server")
KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
# How messages of the package begin that are about a parameter, and do not begin with its name
NAMES = {
    "template_args": "chat_template_kwargs",
    "the chat template has no variable": "chat_template_kwargs",
    "this checkpoint's chat template cannot switch": "enable_thinking",
    "a stop string": "stop",
    "a grammar binds": "continue_final_message",
}
UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`(?: - at `\$\.?(.*)`)?$", re.DOTALL)
PLACE = re.compile(r" - at `\$\.?(.*?)(?:\[\.\.\.\])?`$", re.DOTALL)  # the key of a mapping is [...]


class ApiError(Exception):
    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def body(self) -> bytes:
        kind = KINDS.get(self.status, "server_error")
        return msgspec.json.encode(Error(ErrorDetail(self.message, kind, self.param, self.code)))

    def response(self) -> Response:
        return Response(self.body(), self.status, self.headers, "application/json")


def refused(param: str, reason: str) -> ApiError:
    """400 for a parameter that cannot be honoured."""
    return ApiError(400, f"{param} {reason}", param, "unsupported_parameter")


def from_validation(error: msgspec.ValidationError, kind: type) -> ApiError:
    """400 for a body that is not of a `kind`."""
    text = str(error)
    if match := UNKNOWN.match(text):
        name = f"{match[2]}.{match[1]}" if match[2] else match[1]
        return ApiError(400, f"{name} is not a parameter of this endpoint", name, "unknown_parameter")
    if place := PLACE.search(text):
        what = text[: place.start()]
        if what.startswith("Expected `null`"):
            return refused(place[1], "is not supported; leave it out")
        if what.startswith("Invalid enum value"):
            what += f"; expected {' or '.join(map(repr, _values(kind, place[1])))}"
        return ApiError(400, f"{place[1]}: {what}", place[1], "invalid_value")
    missing = re.match(r"Object missing required field `(\w+)`", text)
    return ApiError(400, text, missing[1] if missing else None, "invalid_value")


def _values(kind: type, place: str) -> list[object]:
    """The values that a field may have, such as `tools[0].type`, by the type of the request."""
    found: list[inspect.Type] = [inspect.type_info(kind)]
    for name in re.sub(r"\[\d+\]", "", place).split("."):
        structs = [one for one in _alternatives(found) if isinstance(one, inspect.StructType)]
        found = [field.type for one in structs for field in one.fields if field.name == name]
    return [value for one in _alternatives(found) if isinstance(one, inspect.LiteralType) for value in one.values]


def _alternatives(kinds: Iterable[inspect.Type]) -> Iterator[inspect.Type]:
    """What a value of these types, or an element of it, may be."""
    for kind in kinds:
        if isinstance(kind, inspect.UnionType):
            yield from _alternatives(kind.types)
        elif isinstance(kind, inspect.ListType):
            yield from _alternatives([kind.item_type])
        else:
            yield kind


def from_exception(error: Exception, prompt: str = "messages", names: tuple[str, ...] = ()) -> ApiError:
    """The error of the API for one of the package. `prompt` is the field of the prompt, `names` those of all fields.

    A bug becomes a 500, and its traceback goes to the log.
    """
    text = str(error)
    if isinstance(error, ApiError):
        return error
    if isinstance(error, MemoryBudgetError):
        return ApiError(400, text, prompt, "memory_budget_exceeded")
    if isinstance(error, PromptError):
        if "context of" in text:
            limit = re.search(r"max_(completion_)?tokens", text)
            param = limit[0] if limit else prompt
            return ApiError(400, text, param, "context_length_exceeded")
        return ApiError(400, text, prompt)
    if isinstance(error, UsageError):
        word = re.match(r"\w*", text)
        known = word[0] if word and word[0] in names else None
        named = known or next((name for start, name in NAMES.items() if text.startswith(start)), None)
        text = re.sub(r"^template_args\b", "chat_template_kwargs", text)  # what the API calls it
        return ApiError(400, text, named, "invalid_value")
    if isinstance(error, EngineError):
        return ApiError(503, text, code="engine_unavailable", headers={"Retry-After": "5"})
    if isinstance(error, Qwen3Error):
        return ApiError(500, text)
    LOG.error("unexpected %s", type(error).__name__, exc_info=error)
    return ApiError(500, f"unexpected {type(error).__name__}; the log of the server has the details")


async def answer_api_error(_request: Request, error: Exception) -> Response:
    return from_exception(error).response()


async def answer_http_error(request: Request, error: Exception) -> Response:
    """404 and 405 of the router."""
    assert isinstance(error, HTTPException)
    what = {404: "there is no endpoint {0}", 405: "{0} does not take {1}"}.get(error.status_code, error.detail)
    message = what.format(request.url.path[:200], request.method)
    return ApiError(error.status_code, message, headers=dict(error.headers or {})).response()
