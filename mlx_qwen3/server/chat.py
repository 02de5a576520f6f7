"""POST /v1/chat/completions"""

from dataclasses import replace
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ..engine.grammar import Grammar
from ..engine.reply import Chunk
from ..engine.request import Request
from ..errors import PromptError, UsageError
from ..text.tool_calls import ToolCallParser
from .answers import Body, ChatCompletion, ChatCompletionChunk, Usage
from .bounds import bind, has_tools, style
from .choices import Choice
from .errors import ApiError
from .generation import Head, Job, serve
from .models import Loaded
from .options import chat_options, check_chat, messages_of
from .requests import ChatRequest
from .service import Service


class ChatWriter:
    def __init__(self, head: Head, choices: list[Choice], logprobs: bool, include_usage: bool):
        self._head, self._choices, self._logprobs = head, choices, logprobs
        self._extra: dict[str, Any] = {"usage": None} if include_usage else {}

    def begin(self) -> list[Body]:
        return [self._chunk([choice.first()]) for choice in self._choices]

    def feed(self, index: int, chunk: Chunk) -> list[Body]:
        return [self._chunk([said]) for said in self._choices[index].feed(chunk)]

    def usage(self, usage: Usage) -> Body:
        return self._chunk([], usage=usage)

    def whole(self, usage: Usage) -> Body:
        choices = [choice.whole(self._logprobs) for choice in self._choices]
        return ChatCompletion(self._head.id, self._head.created, self._head.model, choices, usage)

    def _chunk(self, choices: list[Any], **more: Any) -> ChatCompletionChunk:
        head = self._head
        return ChatCompletionChunk(head.id, head.created, head.model, choices, **{**self._extra, **more})


async def chat_completions(http: HttpRequest) -> Response:
    return await serve(http, "chat", ChatRequest, "messages", "messages", _job)


async def _job(service: Service, loaded: Loaded, asked: ChatRequest, raw: dict[str, Any]) -> Job:
    check_chat(asked)
    bound = await bind(service, asked, raw, loaded.tokenizer)
    template = service.settings.chat_template
    request = await service.in_thread(partial(_prepare, loaded, asked, raw, bound, template))
    count = asked.n or 1
    requests = [replace(request, number=number) for number in range(count)]
    choices = [Choice(index, loaded.tokenizer, _parser(loaded, asked, raw, bound, template)) for index in range(count)]
    usage = bool(asked.stream_options and asked.stream_options.include_usage)
    writer = ChatWriter(Head(loaded.name, "chatcmpl"), choices, bool(asked.logprobs), usage)
    return Job(service, loaded, requests, [len(request.ids)], writer, bool(asked.stream), usage, "messages")


def _prepare(
    loaded: Loaded, asked: ChatRequest, raw: dict[str, Any], bound: Grammar | None, template: str | None
) -> Request:
    try:
        options = chat_options(asked, raw, loaded.tokenizer, bound, template)
        return loaded.prepare(messages_of(raw["messages"]), options)
    except UsageError as error:
        if asked.reasoning_effort is not None and "think" in str(error):
            what = f"reasoning_effort is {asked.reasoning_effort!r}: {error}"
            raise ApiError(400, what, "reasoning_effort", "unsupported_parameter") from None
        raise
    except PromptError as error:
        if asked.max_completion_tokens is None:
            raise
        raise PromptError(str(error).replace("max_tokens", "max_completion_tokens")) from None


def _parser(
    loaded: Loaded, asked: ChatRequest, raw: dict[str, Any], bound: Grammar | None, template: str | None
) -> ToolCallParser | None:
    if not has_tools(asked):
        return None
    tools = raw["tools"]
    return ToolCallParser(tools, style(loaded.tokenizer, tools, template), bound is not None)
