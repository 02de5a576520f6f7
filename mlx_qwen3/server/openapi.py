"""/openapi.json, made from the types that validate."""

from functools import cache
from typing import Any

import msgspec

from .. import __version__
from . import answers, requests

REF = "#/components/schemas/{name}"
# path, method -> (summary, request, response; None is plain text)
ENDPOINTS: dict[tuple[str, str], tuple[str, Any, Any]] = {
    ("/v1/chat/completions", "post"): (
        "Reply to a conversation. With stream: true, server-sent events of ChatCompletionChunk.",
        requests.ChatRequest,
        answers.ChatCompletion,
    ),
    ("/v1/completions", "post"): (
        "Continue a text. With stream: true, server-sent events of Completion.",
        requests.CompletionRequest,
        answers.Completion,
    ),
    ("/v1/models", "get"): ("The models.", None, answers.ModelList),
    ("/v1/models/{name}", "get"): ("One model.", None, answers.Model),
    ("/tokenize", "post"): ("Token ids of a text or a conversation.", requests.TokenizeRequest, answers.Tokens),
    ("/detokenize", "post"): ("The text of token ids.", requests.DetokenizeRequest, answers.Text),
    ("/health", "get"): ("Whether the engines are alive.", None, answers.Health),
    ("/metrics", "get"): ("Counts and times for Prometheus.", None, None),
    ("/openapi.json", "get"): ("This document.", None, dict[str, Any]),
}
STREAMED = {requests.ChatRequest: answers.ChatCompletionChunk, requests.CompletionRequest: answers.Completion}
FAULTS = {
    "400": "A parameter is wrong, unknown or cannot be honoured; the error names it.",
    "401": "The API key is missing or wrong.",
    "403": "A web page of another origin asks.",
    "404": "There is no such model.",
    "408": "The body did not come in time.",
    "413": "The body is too large.",
    "415": "The body is compressed.",
    "429": "The queue is full; Retry-After says when to try again.",
    "500": "A fault of the server or the model.",
    "503": "The engine is not alive, or the server is being stopped.",
    "504": "The reply took longer than the server allows.",
}


@cache
def document() -> dict[str, Any]:
    kinds = [kind for entry in ENDPOINTS.values() for kind in entry[1:] if kind is not None]
    kinds += [answers.Error, *STREAMED.values()]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=REF)
    known = {id(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    paths: dict[str, Any] = {}
    for (path, method), (summary, asked, answered) in ENDPOINTS.items():
        operation: dict[str, Any] = {
            "summary": summary,
            "operationId": f"{method}{path.translate(str.maketrans('/{}.', '____'))}",
            "responses": {"200": _success(asked, answered, known), **_faults(path, asked, known)},
        }
        if asked is not None:
            operation["requestBody"] = {"required": True, "content": _json(known[id(asked)])}
        if "{name}" in path:
            operation["parameters"] = [
                {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            ]
        paths.setdefault(path, {})[method] = operation
    return {
        "openapi": "3.2.0",
        "info": {"title": "mlx-qwen3", "version": __version__, "description": "Qwen3 on MLX, with OpenAI's API."},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _success(asked: Any, answered: Any, known: dict[int, Any]) -> dict[str, Any]:
    if answered is None:
        return {"description": "The exposition format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    content = _json(known[id(answered)])
    if asked in STREAMED:
        content["text/event-stream"] = {"itemSchema": _event([known[id(STREAMED[asked])], known[id(answers.Error)]])}
    return {"description": "The answer.", "content": content}


def _event(kinds: list[Any]) -> dict[str, Any]:
    """A server-sent event: JSON of one of these kinds, or the end."""
    said = {"contentMediaType": "application/json", "contentSchema": {"anyOf": kinds}}
    data = {"type": "string", "anyOf": [{"const": "[DONE]"}, said]}
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def _faults(path: str, asked: Any, known: dict[int, Any]) -> dict[str, Any]:
    used = ["401", "403"]
    if asked is not None:
        used += ["400", "404", "408", "413", "415", "500", "503"]
    if asked in STREAMED:
        used += ["429", "504"]
    if "{name}" in path:
        used.append("404")
    found = {code: {"description": FAULTS[code], "content": _json(known[id(answers.Error)])} for code in sorted(used)}
    if path == "/health":
        found["503"] = {"description": FAULTS["503"], "content": _json(known[id(answers.Health)])}
    return found


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
