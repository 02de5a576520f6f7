"""POST /v1/completions: prompts without a chat template. A reply's text is whole, its thinking included."""

from dataclasses import replace
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ..engine.grammar import Grammar
from ..engine.reply import Chunk
from ..engine.request import Request
from ..errors import PromptError
from .answers import Alternative, Body, Completion, TextChoice, TextLogprobs, TokenLogprob, Usage
from .bounds import bind
from .choices import entry, visible
from .generation import Head, Job, serve
from .models import Loaded
from .options import text_options
from .requests import CompletionRequest
from .service import Service


class TextWriter:
    def __init__(self, loaded: Loaded, echoes: list[str], logprobs: bool, include_usage: bool):
        """`echoes` are what the texts of the choices begin with."""
        self._head = Head(loaded.name, "cmpl")
        self._tokenizer = loaded.tokenizer
        self._choices = [TextChoice(index, text) for index, text in enumerate(echoes)]
        self._extra: dict[str, Any] = {"usage": None} if include_usage else {}
        if logprobs:
            for choice in self._choices:
                choice.logprobs = TextLogprobs()

    def begin(self) -> list[Body]:
        return [self._body([choice]) for choice in self._choices if choice.text]

    def feed(self, index: int, chunk: Chunk) -> list[Body]:
        choice, chunk = self._choices[index], visible(chunk)
        logprobs = None
        if choice.logprobs is not None and chunk.logprobs is not None:
            logprobs = self._scores(chunk, len(choice.text))
            for name in TextLogprobs.__struct_fields__:
                getattr(choice.logprobs, name).extend(getattr(logprobs, name))
        choice.text += chunk.text
        choice.finish_reason = chunk.finish_reason  # type: ignore[assignment]
        if not (chunk.text or chunk.finish_reason or logprobs):
            return []
        return [self._body([TextChoice(index, chunk.text, choice.finish_reason, logprobs)])]

    def usage(self, usage: Usage) -> Body:
        return self._body([], usage=usage)

    def whole(self, usage: Usage) -> Body:
        return self._body(self._choices, usage=usage)

    def _scores(self, chunk: Chunk, offset: int) -> TextLogprobs:
        """The token is among its alternatives, as in OpenAI's API, though there is then one more than asked for."""
        assert chunk.logprobs is not None
        found = entry(self._tokenizer, chunk.token, chunk.logprobs.logprob, chunk.logprobs.top)
        others = {spelled(other): other.logprob for other in found.top_logprobs}
        return TextLogprobs([spelled(found)], [found.logprob], [{spelled(found): found.logprob, **others}], [offset])

    def _body(self, choices: list[TextChoice], **more: Any) -> Completion:
        head = self._head
        return Completion(head.id, head.created, head.model, choices, **{**self._extra, **more})


def spelled(token: Alternative | TokenLogprob) -> str:
    """The text of a token, or `bytes:` and its bytes if it holds a part of a character: such tokens are told apart."""
    try:
        return bytes(token.bytes).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)


async def completions(http: HttpRequest) -> Response:
    return await serve(http, "completions", CompletionRequest, "prompt", "prompt_text", _job)


async def _job(service: Service, loaded: Loaded, asked: CompletionRequest, raw: dict[str, Any]) -> Job:
    bound = await bind(service, asked, raw, loaded.tokenizer)
    prepared = await service.in_thread(partial(_prepare, loaded, asked, raw["prompt"], bound))
    count = asked.n or 1
    requests = [replace(request, number=number) for request in prepared for number in range(count)]
    echoes = [loaded.tokenizer.decode(request.ids) if asked.echo else "" for request in requests]
    usage = bool(asked.stream_options and asked.stream_options.include_usage)
    writer = TextWriter(loaded, echoes, asked.logprobs is not None, usage)
    lengths = [len(request.ids) for request in prepared]
    return Job(service, loaded, requests, lengths, writer, bool(asked.stream), usage, "prompt")


def _prepare(loaded: Loaded, asked: CompletionRequest, prompt: Any, bound: Grammar | None) -> list[Request]:
    """A request for each prompt. The text goes on as it is, so it is not searched for tags."""
    options = text_options(asked, loaded.tokenizer, bound)
    encode = loaded.tokenizer.encode
    prompts = [encode(text) if isinstance(text, str) else text for text in _prompts(prompt)]
    prepared = [loaded.prepare(ids, options) for ids in prompts]
    return [replace(request, opens_thinking=False, begun=True, may_think=False) for request in prepared]


def _prompts(prompt: Any) -> list[Any]:
    """The prompts of a text, a list of texts, a list of ids or a list of lists of ids."""
    if isinstance(prompt, str) or (prompt and all(type(item) is int for item in prompt)):
        return [prompt]
    kinds = {type(item) for item in prompt}
    if kinds not in ({str}, {list}):
        raise PromptError("the prompt is empty or mixed; expected a text, token ids, or a list of either")
    return list(prompt)
