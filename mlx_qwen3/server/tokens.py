"""POST /tokenize and /detokenize: token ids without a reply."""

from functools import partial
from typing import Any

from msgspec import UNSET
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ..errors import PromptError
from .answers import Body, Text, Tokens, json_response
from .errors import ApiError, from_exception, refused
from .guard import parse
from .models import Loaded
from .options import messages_of
from .requests import DetokenizeRequest, TokenizeRequest
from .service import Service, service_of

OF_MESSAGES = ("tools", "chat_template_kwargs", "enable_thinking", "add_generation_prompt")


async def tokenize(http: HttpRequest) -> Response:
    service = service_of(http, "tokenize")
    asked, raw = await parse(http, service.settings, TokenizeRequest)
    if (asked.prompt is None) is (asked.messages is None):
        raise ApiError(400, "give either prompt or messages", "prompt", "invalid_value")
    if asked.prompt is not None:
        for name in OF_MESSAGES:
            if getattr(asked, name) is not None:
                raise refused(name, "belongs to the chat template, which a prompt does not pass")
    work = partial(_tokens, asked=asked, raw=raw, service=service)
    return await _answer(http, service, asked.model, work, "messages" if asked.prompt is None else "prompt")


async def detokenize(http: HttpRequest) -> Response:
    service = service_of(http, "detokenize")
    asked, _ = await parse(http, service.settings, DetokenizeRequest)
    return await _answer(http, service, asked.model, partial(_text, tokens=asked.tokens), "tokens")


async def _answer(http: HttpRequest, service: Service, model: str | None, work: Any, prompt: str) -> Response:
    try:
        async with service.pool.use(model) as loaded:
            http.scope["note"].facts["model"] = loaded.name
            body = await service.in_thread(partial(work, loaded))
    except Exception as error:
        raise from_exception(error, prompt) from error
    return json_response(body)


def _tokens(loaded: Loaded, *, asked: TokenizeRequest, raw: dict[str, Any], service: Service) -> Body:
    tokenizer = loaded.tokenizer
    text = asked.prompt
    if text is None:
        text = tokenizer.apply_chat_template(
            messages_of(raw["messages"]),
            raw.get("tools"),
            asked.add_generation_prompt,
            asked.enable_thinking,
            chat_template=service.settings.chat_template,
            template_args=asked.chat_template_kwargs,
            literal_content=True,
        )
    ids = tokenizer.encode(text)
    names = [tokenizer.token_bytes(index).decode("utf-8", "replace") for index in ids]
    return Tokens(ids, len(ids), service.pool.context(loaded.name), names if asked.return_token_strs else UNSET)


def _text(loaded: Loaded, *, tokens: list[int]) -> Body:
    for index in tokens:
        if not 0 <= index < loaded.tokenizer.size:
            raise PromptError(f"token id {index} is not one of the tokenizer's {loaded.tokenizer.size}")
    return Text(loaded.tokenizer.decode(tokens))
