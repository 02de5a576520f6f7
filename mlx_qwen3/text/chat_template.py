"""Chat templates: they turn a conversation into prompt text."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any

from ..errors import PromptError, UsageError
from ..files.reading import short
from .literal import render_literal
from .messages import (
    REASONING_FIELDS,
    Message,
    completed,
    describe,
    has_parts,
    join_parts,
    part_text,
    plain,
    read_messages,
    shown,
)

RESERVED = ("messages", "tools", "documents", "add_generation_prompt")  # variables that are options of their own
FUNCTIONS = ("raise_exception", "strftime_now", "namespace", "range", "dict", "cycler", "joiner")
TAG = "CONTINUE_FINAL_MESSAGE_TAG "  # marks the end of a message that is to be continued; the space shows trimming
PROBE = "text of a part"
THINK, END_THINK = "<think>", "</think>"

Tool = Mapping[str, Any] | Callable[..., Any]


@dataclass(frozen=True)
class RenderedPrompt:
    """A conversation as text.

    opens_thinking: the reply begins inside a think block that the template opened. Tags in messages do not count.
    begun: the reply continues a text of its thinking or its answer, which the last message began.
    """

    text: str
    opens_thinking: bool
    begun: bool


class ChatTemplate:
    """One template: its source text, and the prompts that it renders."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]):
        self.source = source
        self._special_tokens = special_tokens
        self._mark: Callable[[Any], Any] = lambda value: value

    @property
    def can_switch_thinking(self) -> bool:
        return "enable_thinking" in _sandbox().variables(self.source)

    def render(
        self,
        messages: Iterable[Any],
        tools: Sequence[Tool] | None = None,
        *,
        add_generation_prompt: bool | None = None,
        enable_thinking: bool | None = None,
        continue_final_message: bool | str = False,
        template_args: Mapping[str, Any] | None = None,
        control_tokens: Collection[str] | None = None,
    ) -> RenderedPrompt:
        """The conversation as prompt text, byte for byte what transformers renders.

        It differs in two cases. A template that cannot read a list of text parts gets their joined text. A template
        that fails on a message without content gets an empty content, and one that fails on tool arguments that are
        JSON text gets an object.
        add_generation_prompt: begin the reply; by default, unless the last message is continued.
        enable_thinking: None leaves the switch to the template; a template without it is not told.
        continue_final_message: leave the last message open: its `content` if True, else the field of that name.
        control_tokens: tokens that no text in a message, tool or variable may become; the result is a LiteralText.
        Raises PromptError that names the message, UsageError for options that contradict each other, and
        CheckpointError if the template is not Jinja.
        """
        if continue_final_message and add_generation_prompt:
            raise UsageError("continue_final_message and add_generation_prompt contradict each other; drop one of them")
        arguments = dict(template_args or {})
        if not isinstance(arguments.get("enable_thinking"), bool | None):  # templates ask whether it `is false`
            what = short(repr(arguments["enable_thinking"]))
            raise UsageError(f"template_args has enable_thinking {what}; expected true or false")
        if enable_thinking is not None and arguments.get("enable_thinking", enable_thinking) is not enable_thinking:
            raise UsageError("template_args and the option set enable_thinking to different values; drop one of them")
        if enable_thinking is not None and self.can_switch_thinking:
            arguments["enable_thinking"] = enable_thinking
        values = self._values(tools, not continue_final_message and add_generation_prompt is not False, arguments)
        conversation = self._readable(read_messages(messages), values)
        typed = {"tools", *arguments}

        def render(mark: Callable[[Any], Any]) -> str:
            marked = {name: mark(value) if name in typed else value for name, value in values.items()}
            return self._marked(mark)._prompt(conversation, marked, continue_final_message)

        if control_tokens is None:
            text = self._prompt(conversation, values, continue_final_message)
        else:
            text = render_literal(render, control_tokens, self.source)
        opens = self._opens_thinking(text, conversation, values, continue_final_message)
        return RenderedPrompt(text, opens, self._begins(conversation, continue_final_message))

    def _begins(self, messages: list[Message], continued: bool | str) -> bool:
        """Whether the reply continues a text: whether the continued message has text after its last tag."""
        if not continued:
            return False
        text, _ = self._tagged(messages, continued)
        return re.split(f"{THINK}|{END_THINK}", text)[-1].strip() != ""

    def _prompt(self, messages: list[Message], values: Mapping[str, Any], continued: bool | str) -> str:
        if not continued:
            return self._rendered(messages, values)
        text, tagged = self._tagged(messages, continued)
        return _cut(self._rendered(tagged, values), self._mark(text + TAG).removesuffix(TAG), messages)

    def _marked(self, mark: Callable[[Any], Any]) -> "ChatTemplate":
        """The same template, which sees the messages after `mark` has changed them."""
        template = ChatTemplate(self.source, self._special_tokens)
        template._mark = mark
        return template

    def _opens_thinking(
        self, text: str, messages: list[Message], values: Mapping[str, Any], continued: bool | str
    ) -> bool:
        """Whether `<think>` is the last tag of a prompt. Only the template's tags and the continued message's count."""
        plain_messages, plain_values = without_tags(messages), without_tags(values)
        if continued:
            plain_messages[-1] = messages[-1]
        if (plain_messages, plain_values) != (messages, values):
            with suppress(PromptError):  # some templates fail without the tags; then the tags of all messages count
                text = self._prompt(plain_messages, plain_values, continued)
        if text.rfind(THINK) > text.rfind(END_THINK) and values["add_generation_prompt"]:
            with suppress(PromptError):  # if the template begins the reply itself, only the text that begins it counts
                before = self._prompt(plain_messages, {**plain_values, "add_generation_prompt": False}, continued)
                text = text.removeprefix(before) or text
        return text.rfind(THINK) > text.rfind(END_THINK)

    def _values(
        self, tools: Sequence[Tool] | None, add_generation_prompt: bool, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The variables of the template, apart from the messages."""
        for name in arguments:
            if name in RESERVED:
                raise UsageError(f"template_args may not set {name}; it is an option of its own")
        known = _sandbox().variables(self.source) if arguments else frozenset()
        if unknown := [name for name in arguments if name not in known]:
            own = [name for name in sorted(known.difference(RESERVED, FUNCTIONS)) if not name.endswith("_token")]
            listed = ", ".join(map(shown, own)) or "none"
            raise UsageError(f"the chat template has no variable {shown(unknown[0])!r}; it reads {listed}")
        return {
            **self._special_tokens,
            **{name: plain(value, f"template_args[{name!r}]") for name, value in arguments.items()},
            "tools": None if tools is None else [_tool(index, tool) for index, tool in enumerate(tools)],
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }

    def _rendered(self, messages: list[Message], values: Mapping[str, Any]) -> str:
        """The rendered conversation; if the template fails on it, the rendering of the completed messages."""
        complete = [completed(message) for message in messages]
        try:
            text = self._run(messages, values)
        except PromptError:
            if complete == messages:
                raise
            return self._run(complete, values)
        if "None" in text and any("content" not in message for message in messages):
            other = self._run(complete, values)  # a template may have written a missing content as "None"
            return other if other.count("None") < text.count("None") else text
        return text

    def _readable(self, messages: list[Message], values: Mapping[str, Any]) -> list[Message]:
        """The conversation with lists of text parts joined, for each role of which the template cannot read lists.

        To find out, the template renders a part with a known text. One that reads lists writes this text alone. Others
        fail, leave it out, or write the list itself as Python or JSON.
        """
        roles = {message["role"] for message in messages if has_parts(message)}
        blind = {role for role in sorted(roles) if not self._reads(role, messages, values)}
        return [join_parts(message) if message["role"] in blind else message for message in messages]

    def _reads(self, role: str, messages: list[Message], values: Mapping[str, Any]) -> bool:
        """Whether the template can read a list of text parts as the content of a role's messages."""

        def probed(content: Any) -> str | None:
            probe = [
                {**m, "content": content} if m["role"] == role and has_parts(m) else join_parts(m) for m in messages
            ]
            try:
                return self._rendered(probe, values)
            except PromptError:
                return None

        found, plain_text = probed([{"type": "text", "text": PROBE}]), probed(PROBE) or ""
        if found is None or PROBE not in found:
            return False
        quoted = [f"{quote}{PROBE}{quote}" for quote in "'\""]
        return all(found.count(text) == plain_text.count(text) for text in quoted)

    def _tagged(self, messages: list[Message], continued: bool | str) -> tuple[str, list[Message]]:
        """The text of the last message that is to be continued, and the conversation with a tag after it."""
        field = continued if isinstance(continued, str) else "content"
        where, last = describe(len(messages) - 1, messages[-1]["role"]), dict(messages[-1])
        content = last.get(field)
        if content is None:
            raise PromptError(f"{where} has no {field!r} that could be continued")
        same = [field]
        if field in REASONING_FIELDS:  # the same thinking under every name, because templates read different names
            same = [name for name in REASONING_FIELDS if last.get(name) == content]
        if not any(name in self.source for name in same):
            raise PromptError(f"{where} cannot be continued in {field!r}, which the chat template does not read")
        if isinstance(content, str):
            last |= dict.fromkeys(same, content + TAG)
            return content, [*messages[:-1], last]
        if not isinstance(content, list | tuple) or not content:
            raise PromptError(f"{where} has a {field!r} without text that could be continued")
        text, end = part_text(content[-1], where), content[-1]
        last[field] = [*content[:-1], {**end, "text": text + TAG} if isinstance(end, dict) else text + TAG]
        return text, [*messages[:-1], last]

    def _run(self, messages: list[Message], values: Mapping[str, Any]) -> str:
        sandbox = _sandbox()
        template = sandbox.compile_template(self.source)
        messages = [self._mark(message) for message in messages]
        try:
            return sandbox.render(template, {**values, "messages": messages})
        except Exception as error:  # a template can raise anything
            reason = " ".join(str(error).split())
            reason = reason if len(reason) <= 300 else f"{reason[:300]}..."
            index = _place(error.__traceback__, messages)
            what = "this conversation" if index is None else describe(index, messages[index]["role"])
            raise PromptError(f"the chat template cannot render {what}: {reason}") from None


def _sandbox() -> ModuleType:
    from . import sandbox  # here, because it imports jinja2, which a raw prompt does not need

    return sandbox


def _tool(index: int, tool: Tool) -> dict[str, Any]:
    from .tool_schema import tool_schema

    where = f"tools[{index}]"
    schema: dict[str, Any] = plain(tool if isinstance(tool, Mapping) else tool_schema(tool, where), where)
    return schema


def _cut(rendered: str, text: str, messages: Sequence[Message]) -> str:
    """The rendered conversation up to the tag. Raises PromptError if the template changed the text before it."""
    mark = TAG.strip()
    if text.strip() not in rendered or mark not in rendered:
        where = describe(len(messages) - 1, messages[-1]["role"])
        raise PromptError(f"{where} cannot be continued, since the chat template does not write its text as it is")
    end = rendered.rindex(mark)
    kept = rendered[end:].startswith(TAG)
    return rendered[:end] if kept else rendered[:end].rstrip()  # a template that trims the tag's space trims the text's


def _place(trace: TracebackType | None, messages: Sequence[Message]) -> int | None:
    """The index of the message at which a template failed, found among the local variables of its compiled code."""
    found = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            held = {id(value) for value in trace.tb_frame.f_locals.values()}
            found = next((index for index, message in enumerate(messages) if id(message) in held), found)
        trace = trace.tb_next
    return found


def without_tags(value: Any) -> Any:
    """A plain value in which no text holds a tag of a think block."""
    if isinstance(value, str):
        return value.replace(THINK, "(think)").replace(END_THINK, "(/think)")
    if isinstance(value, dict):
        return {key: without_tags(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_tags(item) for item in value)
    return value
