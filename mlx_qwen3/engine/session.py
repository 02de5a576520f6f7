"""A conversation of several turns: its messages, its settings, the limit of the context, and saving it to a file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import OutputError, PromptError, UsageError, found_in
from ..files.config import Qwen3Config
from ..files.reading import short
from ..report import write_file
from ..text.messages import read_messages
from ..text.tokenizer import Tokenizer
from .reply import Result
from .request import ReplyOptions, Request, default_sampling, prepare
from .sampling import SETTINGS, SamplingParams

FORMAT = "mlx-qwen3 chat 1"
NEARLY_FULL = 0.8  # share of the context from which on a warning precedes each turn
UNCHANGED = ("stop", "chat_template", "template_args", "literal_content")  # settings that /commands do not change
OPTIONS = ("max_tokens", "thinking", "thinking_budget", *UNCHANGED)  # settings that are options of a reply
PROBE = [{"role": "user", "content": "hello"}]


@dataclass(frozen=True)
class Settings:
    """The settings of every reply. `sampling` has those of SamplingParams that differ from the checkpoint's."""

    system: str | None = None
    thinking: bool | None = None
    thinking_budget: int | None = None
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    chat_template: str | None = None
    template_args: Mapping[str, Any] | None = None
    literal_content: bool = False
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, options: ReplyOptions, system: str | None, sampling: Mapping[str, Any]) -> "Settings":
        """The settings that are part of the options of a reply, and these."""
        return cls(system=system, sampling=sampling, **{name: getattr(options, name) for name in OPTIONS})

    def __post_init__(self) -> None:
        """Raises UsageError that names the setting."""
        if self.system is not None and not isinstance(self.system, str):
            raise UsageError(f"system is {short(repr(self.system))}; expected a text")
        if self.thinking is not None and not isinstance(self.thinking, bool):
            raise UsageError(f"thinking is {short(repr(self.thinking))}; expected true, false or null")
        if not isinstance(self.sampling, Mapping) or (unknown := set(self.sampling) - set(SETTINGS)):
            named = short(sorted(unknown)[0]) if isinstance(self.sampling, Mapping) else "not an object"
            raise UsageError(f"sampling has {named!r}; known are {', '.join(SETTINGS)}")
        if self.chat_template is not None and not isinstance(self.chat_template, str):
            raise UsageError(f"chat_template is {short(repr(self.chat_template))}; expected a name, a file or null")
        if not isinstance(self.literal_content, bool):
            raise UsageError(f"literal_content is {short(repr(self.literal_content))}; expected true or false")
        if isinstance(self.stop, list):  # of a file
            object.__setattr__(self, "stop", tuple(self.stop))
        SamplingParams(**self.sampling)
        # A budget is allowed while thinking is off: it takes effect when thinking is switched on.
        ReplyOptions(**{name: getattr(self, name) for name in OPTIONS if name != "thinking"})

    def options(self, tokenizer: Tokenizer) -> ReplyOptions:
        """The options of the next reply. While thinking is off, its budget is left out."""
        options = ReplyOptions(**{name: getattr(self, name) for name in ("thinking", *UNCHANGED)})
        return replace(
            options,
            sampling=default_sampling(tokenizer, options.thinks, **self.sampling),
            thinking_budget=None if options.thinks is False else self.thinking_budget,
        )


class Session:
    """A conversation. It changes only by complete turns: a request that is refused leaves it as it was."""

    def __init__(self, config: Qwen3Config, tokenizer: Tokenizer, settings: Settings | None = None):
        """Raises UsageError for settings that this checkpoint cannot honour."""
        self._config, self._tokenizer = config, tokenizer
        self.settings = Settings()
        self.messages: list[dict[str, Any]] = []
        self.used = 0  # tokens of the context after the last reply
        self._use(settings or Settings())

    @property
    def context(self) -> int:
        return self._config.context_length

    @property
    def turns(self) -> int:
        return sum(message["role"] == "user" for message in self.messages)

    def request(self, text: str) -> Request:
        """The request of the next turn. Raises PromptError if it does not fit the context."""
        messages = [*self._beginning(self.settings), *self.messages, {"role": "user", "content": text}]
        request = prepare(self._config, self._tokenizer, messages, self.settings.options(self._tokenizer))
        limit = self.settings.max_tokens  # not an option of the request: near the end of the context it is cut
        return request if limit is None else replace(request, max_tokens=min(limit, request.max_tokens))

    def warning(self, request: Request) -> str | None:
        """What to say before a turn near the end of the context."""
        tokens = len(request.ids)
        if tokens < NEARLY_FULL * self.context:
            return None
        return (
            f"the conversation takes {tokens:,} of {self.context:,} tokens ({tokens / self.context:.0%}), and this "
            f"reply is cut after {request.max_tokens:,}; a turn that does not fit is refused, /undo and /new make room"
        )

    def keep(self, text: str, result: Result) -> None:
        """Add a turn: what the user said, and the reply."""
        reply = {"role": "assistant", "content": result.text}
        if result.thinking:
            reply["reasoning_content"] = result.thinking
        self.messages += [{"role": "user", "content": text}, reply]
        self.used = result.prompt_tokens + result.generation_tokens

    def undo(self) -> str | None:
        """Drop the last turn. Returns what the user said in it; None if there is no turn."""
        last = next((at for at in reversed(range(len(self.messages))) if self.messages[at]["role"] == "user"), None)
        if last is None:
            return None
        text: str = self.messages[last]["content"]
        del self.messages[last:]
        self.used = self._count()
        return text

    def clear(self) -> None:
        """Drop all turns; the settings stay."""
        self.messages, self.used = [], 0

    def change(self, name: str, value: Any) -> None:
        """Change one setting by its name, also one of sampling; None is the default.

        Raises UsageError for a value that is wrong or that this checkpoint cannot honour, and then changes nothing.
        """
        if name not in SETTINGS:
            self._use(replace(self.settings, **{name: value}))
            return
        sampling = {key: item for key, item in self.settings.sampling.items() if key != name}
        self._use(replace(self.settings, sampling=sampling if value is None else {**sampling, name: value}))

    def save(self, path: Path, source: str) -> None:
        """Write the conversation to a JSON file, whole or not at all. Raises OutputError.

        A file that is not a saved conversation is not replaced.
        """
        if path.is_file() and path.stat().st_size:
            try:
                _read(path)
            except PromptError:
                raise OutputError(f"{path} exists and is not a saved conversation; give another name") from None
        content = {"format": FORMAT, "model": source, "settings": asdict(self.settings), "messages": self.messages}
        write_file(path, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "surrogatepass"))

    def load(self, path: Path) -> None:
        """Continue a saved conversation with its settings. If it raises PromptError or UsageError, nothing changes."""
        values = _read(path)
        messages = [dict(message) for message in values["messages"]]
        with found_in(short(path)):
            settings = _settings(values["settings"])
            if messages:
                self._render(settings, messages)
            self._use(settings)
        self.messages = messages
        self.used = self._count()

    def _beginning(self, settings: Settings) -> list[dict[str, Any]]:
        return [] if settings.system is None else [{"role": "system", "content": settings.system}]

    def _use(self, settings: Settings) -> None:
        prepare(self._config, self._tokenizer, [*self._beginning(settings), *PROBE], settings.options(self._tokenizer))
        self.settings = settings

    def _render(self, settings: Settings, messages: list[dict[str, Any]]) -> int:
        """The number of tokens of these messages after the system message, rendered by the template."""
        text = self._tokenizer.apply_chat_template(
            [*self._beginning(settings), *messages],
            add_generation_prompt=False,
            chat_template=settings.chat_template,
            template_args=settings.template_args,
            literal_content=settings.literal_content,
        )
        return len(self._tokenizer.encode(text))

    def _count(self) -> int:
        """Tokens of the conversation."""
        return self._render(self.settings, self.messages) if self.messages else 0


def _settings(values: Mapping[str, Any]) -> Settings:
    """The settings of a saved conversation. Raises PromptError, or UsageError for one that is wrong."""
    try:
        return Settings(**values)
    except TypeError as error:
        raise PromptError(f"the settings have another form ({error})") from None


def _read(path: Path) -> dict[str, Any]:
    """The content of a saved conversation. Raises PromptError."""
    try:
        if not path.is_file():
            raise PromptError(f"{short(path)} is not a file; give one that /save has written")
        values = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise PromptError(f"{short(path)} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise PromptError(f"{short(path)} is not JSON; give a file that /save has written") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT or not isinstance(values.get("settings"), dict):
        raise PromptError(f"{short(path)} is not a conversation of this version; give a file that /save has written")
    messages = values.get("messages")
    if not isinstance(messages, list):
        raise PromptError(f"{short(path)} has no list of messages; give a file that /save has written")
    if messages:
        with found_in(short(path)):
            read_messages(messages)
    for at, message in enumerate(messages):
        if message["role"] not in ("user", "assistant", "tool") or not isinstance(message.get("content"), str):
            raise PromptError(f"{short(path)}: message {at + 1} is not a text of the user, the assistant or a tool")
    return values
