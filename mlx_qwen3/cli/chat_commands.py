"""The commands inside a chat: /help, /undo, /save and the others."""

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..files.reading import short
from ..table import Line, Table
from .terminal import all_statistics, say

if TYPE_CHECKING:
    from .chat import Chat


class Quit(Exception):
    """The user ends the chat."""


def obey(chat: "Chat", line: str) -> None:
    """Run a line that begins with a slash. Raises UsageError for an unknown command, Quit for /quit."""
    name, _, argument = line[1:].strip().partition(" ")
    if name in SETTINGS:
        _set(chat, name, argument.strip())
    elif name in OTHERS:
        OTHERS[name][0](chat, argument.strip())
    else:
        close = get_close_matches(name, COMMANDS, 1)
        meant = f", did you mean /{close[0]}?" if close else ";"
        raise UsageError(f"there is no /{short(name)}{meant} /help lists the commands; begin a message with a space")


def _set(chat: "Chat", name: str, argument: str) -> None:
    """Change a setting, or show it."""
    setting = SETTINGS[name]
    session = chat.session
    if argument:
        session.change(setting, None if argument == "default" else _number(name, argument))
    own = session.settings.sampling.get(setting, getattr(session.settings, setting, None))
    say(f"{name}: {'default' if own is None else own}")


def _number(name: str, text: str) -> int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise UsageError(f"/{name} is {short(text)!r}; expected a number, or default")


def _help(chat: "Chat", _: str) -> None:
    rows = [(f"/{name} {hint}".strip(), text) for name, (_, hint, text) in OTHERS.items()]
    rows += [(f"/{name} X", "Show or set it; default resets it.") for name in SETTINGS]
    say(Table("", ("command", "what it does"), rows, "ll"))


def _system(chat: "Chat", text: str) -> None:
    if text:
        chat.session.change("system", None if text == "none" else text)
    system = chat.session.settings.system
    say("there is no system message" if system is None else f"system: {system}")


def _think(chat: "Chat", thinking: bool) -> None:
    chat.session.change("thinking", thinking)
    say(f"thinking is {'on' if thinking else 'off'}")


def _thinking(chat: "Chat", _: str) -> None:
    """Show or hide the thinking from the next reply on. If it was hidden, show that of the last reply now."""
    chat.shows_thinking = not chat.shows_thinking
    if chat.shows_thinking and chat.last and chat.last.thinking:
        say(chat.last.thinking)
    say(f"thinking is {'shown' if chat.shows_thinking else 'hidden'}")


def _save(chat: "Chat", name: str) -> None:
    path = _path(name, "save")
    chat.session.save(path, chat.source)
    say(f"{_turns(chat)} saved to {path}")


def _load(chat: "Chat", name: str) -> None:
    path = _path(name, "load")
    chat.session.load(path)
    chat.last = None
    say(f"{_turns(chat)} loaded from {path}")


def _path(name: str, command: str) -> Path:
    if not name:
        raise UsageError(f"/{command} needs a file; write /{command} FILE")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # a home that is unknown
        raise UsageError(f"{short(name)}: {error}") from None


def _undo(chat: "Chat", _: str) -> None:
    text = chat.session.undo()
    if text is None:
        raise UsageError("there is no turn to undo")
    say(f"dropped the turn that began with {short(text)!r}; left: {_turns(chat)}")


def _retry(chat: "Chat", _: str) -> None:
    before, used = list(chat.session.messages), chat.session.used
    text = chat.session.undo()
    if text is None:
        raise UsageError("there is no turn to ask again")
    try:
        chat.turn(text)
    finally:
        if chat.session.turns < sum(message["role"] == "user" for message in before):  # there is no new reply instead
            chat.session.messages, chat.session.used = before, used


def _new(chat: "Chat", _: str) -> None:
    chat.session.clear()
    chat.last = None
    say("a new conversation; the settings stay")


def _stats(chat: "Chat", _: str) -> None:
    session = chat.session
    say(f"{_turns(chat)}, {session.used:,} of {session.context:,} tokens ({session.used / session.context:.0%})")
    if chat.last:
        say(Line(f"last reply: {all_statistics(chat.last)}"))


def _turns(chat: "Chat") -> str:
    turns = chat.session.turns
    return "1 turn" if turns == 1 else f"{turns} turns"


def _quit(chat: "Chat", _: str) -> None:
    raise Quit


# Name -> the setting of Session.change
SETTINGS = {
    "temp": "temperature",
    "top-k": "top_k",
    "top-p": "top_p",
    "min-p": "min_p",
    "repetition-penalty": "repetition_penalty",
    "presence-penalty": "presence_penalty",
    "frequency-penalty": "frequency_penalty",
    "seed": "seed",
    "max-tokens": "max_tokens",
    "think-budget": "thinking_budget",
}
SETTING_NAMES = {setting: f"/{name}" for name, setting in SETTINGS.items()}  # for messages
# Name -> function, argument, help text
OTHERS: dict[str, tuple[Callable[["Chat", str], Any], str, str]] = {
    "help": (_help, "", "List the commands."),
    "system": (_system, "TEXT", "Show or set the system message; none removes it."),
    "think": (lambda chat, _: _think(chat, True), "", "Let the model think."),
    "no-think": (lambda chat, _: _think(chat, False), "", "Let the model answer at once."),
    "thinking": (_thinking, "", "Show or hide the thinking; shows that of the last reply."),
    "undo": (_undo, "", "Drop the last turn."),
    "retry": (_retry, "", "Ask for the last reply again."),
    "new": (_new, "", "Drop all turns."),
    "save": (_save, "FILE", "Write the conversation and its settings to a JSON file."),
    "load": (_load, "FILE", "Continue a saved conversation."),
    "stats": (_stats, "", "Show how full the context is, and the last reply's speed."),
    "quit": (_quit, "", "End the chat."),
}
COMMANDS = (*OTHERS, *SETTINGS)
