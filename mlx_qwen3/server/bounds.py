"""What binds the answer of a request: a format, a pattern, a grammar, or calls of its tools."""

from collections.abc import Callable
from functools import partial
from typing import Any

from ..engine.grammar import Grammar, compiled
from ..engine.specs import JsonObject, JsonSchema, Lark, Regex, Spec, ToolChoice
from ..errors import UsageError
from ..text.tokenizer import Tokenizer
from ..text.tool_calls import Style, style_of
from .errors import ApiError, refused
from .requests import ChatRequest, Generation, NamedTool
from .service import Service

Answer = JsonObject | JsonSchema  # what response_format asks for


def has_tools(asked: Generation) -> bool:
    """Whether the reply may call tools."""
    return isinstance(asked, ChatRequest) and bool(asked.tools) and asked.tool_choice != "none"


def style(tokenizer: Tokenizer, tools: list[dict[str, Any]], chat_template: str | None = None) -> Style:
    """How the chat template, and so the model, writes calls."""
    return style_of(tokenizer.chat_template(chat_template, tools).source)


async def bind(service: Service, asked: Generation, raw: dict[str, Any], tokenizer: Tokenizer) -> Grammar | None:
    """The grammar that a request asks for; None if it asks for none. Compiling has a thread of its own.

    Raises ApiError that names the parameter, and what of it cannot be enforced.
    """
    bound: Grammar | None = None
    for param, spec in wanted(asked, raw, tokenizer, service.settings.chat_template):
        try:
            bound = await service.in_thread(partial(compiled, tokenizer, spec), service.grammars)
        except UsageError as error:
            named = "tool_choice" if str(error).startswith("tool_choice") else param
            raise ApiError(400, f"{named}: {error}", named, "unsupported_parameter") from None
    return bound


def wanted(
    asked: Generation, raw: dict[str, Any], tokenizer: Tokenizer, chat_template: str | None
) -> list[tuple[str, Spec]]:
    """The parameters and what they ask for; the last one holds it all. Raises ApiError for two that do not go together.

    `response_format` binds an answer of its own, and the answer beside tools: then the reply is one or calls the other.
    """
    found: list[tuple[str, Spec]] = []
    if asked.regex is not None:
        found.append(("regex", Regex(asked.regex)))
    if asked.grammar is not None:
        found.append(("grammar", Lark(asked.grammar)))
    if isinstance(asked, ChatRequest) and (spec := _format(asked)):
        found.append(("response_format", spec))
    if len(found) > 1:
        raise refused(found[1][0], f"binds the answer, and {found[0][0]} does so already; leave one of them out")
    if isinstance(asked, ChatRequest) and has_tools(asked):
        answer = found[0][1] if found else None
        if not (answer is None or isinstance(answer, JsonObject | JsonSchema)):
            raise refused(found[0][0], "binds the answer, which could then call no tool; set tool_choice to none")
        found += _calls(asked, raw["tools"], partial(style, tokenizer, raw["tools"], chat_template), answer)
    return found


def _format(asked: ChatRequest) -> Answer | None:
    wanted = asked.response_format
    if wanted is None:
        return None
    if wanted.json_schema is not None and wanted.type != "json_schema":
        raise refused("response_format.json_schema", f"needs the type json_schema, and the type is {wanted.type}")
    if wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return JsonObject()
    if wanted.json_schema is None:
        raise ApiError(400, "response_format has no json_schema", "response_format.json_schema", "invalid_value")
    return JsonSchema(wanted.json_schema.schema, bool(wanted.json_schema.strict))


def _calls(
    asked: ChatRequest, tools: list[dict[str, Any]], style: Callable[[], Style], answer: Answer | None
) -> list[tuple[str, Spec]]:
    """Decoding is bound if a call is required, at most one is allowed, a tool is strict, or the answer has a format.

    Else the model is free.
    """
    choice = asked.tool_choice or "auto"
    strict = any(tool.function.strict for tool in asked.tools or ())
    parallel = asked.parallel_tool_calls is not False
    if choice == "auto" and parallel and not (strict or answer):
        return []
    name = choice.function.name if isinstance(choice, NamedTool) else choice
    if isinstance(choice, NamedTool) and name in ("auto", "required"):
        raise refused("tool_choice", f"names a tool that is called {name!r}, which means something else; rename it")
    return [("tools", ToolChoice(tools, name, parallel, style(), answer))]
