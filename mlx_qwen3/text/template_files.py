"""Where a checkpoint keeps its chat templates, and which of them is used."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, PromptError, UsageError
from ..files.members import TEMPLATES, members
from ..files.reading import exists, open_file, short
from .chat_template import ChatTemplate
from .growth import MAX_SOURCE
from .messages import shown

FILE = "chat_template.jinja"  # the default, as transformers 5 writes it


class ChatTemplates:
    """The templates of a checkpoint by name: its Jinja files, or if it has none, those in tokenizer_config.json."""

    def __init__(self, folder: Path, tokenizer_config: Mapping[str, Any], special_tokens: Mapping[str, str]):
        """`special_tokens` are the tokens that a template may ask for, by name."""
        self._sources = _from_files(folder) or _from_config(tokenizer_config.get("chat_template"))
        self._special_tokens = special_tokens

    @property
    def has_default(self) -> bool:
        """Whether there is a default template."""
        return "default" in self._sources

    def choose(self, wanted: str | Path | None = None, tools: bool = False) -> ChatTemplate:
        """The template that transformers chooses, or the `wanted` one: a name, a file, or the text of a template.

        `tools`: whether tools are given, even an empty list. Raises PromptError if there is none to choose.
        """
        if wanted is not None:
            source = self._sources.get(str(wanted)) or _source(wanted, self._sources)
        elif not self._sources:
            raise PromptError(
                "this checkpoint has no chat template; "
                "give one (--chat-template FILE, in Python chat_template), or a raw prompt (--raw, in Python token ids)"
            )
        elif tools and "tool_use" in self._sources:
            source = self._sources["tool_use"]
        elif "default" in self._sources:
            source = self._sources["default"]
        else:
            raise PromptError(
                "this checkpoint has several chat templates and none is the default; "
                f"choose one (--chat-template NAME, in Python chat_template): {_listed(self._sources)}"
            )
        return ChatTemplate(source, self._special_tokens)


def _from_files(folder: Path) -> dict[str, str]:
    """Template texts by name, from chat_template.jinja and the folder beside it."""
    paths = {"default": folder / FILE} if exists(folder / FILE) else {}
    paths |= {Path(name).stem: folder / name for name in members(folder, [f"{TEMPLATES}/*.jinja"])}
    return {name: _read(path) for name, path in paths.items()}


def _from_config(templates: Any) -> dict[str, str]:
    """Template texts by name, from the setting of tokenizer_config.json: a text, an object, or a list of objects."""
    if templates is None or isinstance(templates, str):
        return {"default": templates} if templates else {}
    entries = templates
    if isinstance(templates, list):
        entries = {}
        for entry in templates:
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                raise CheckpointError(f"chat_template in tokenizer_config.json lists {shown(entry)} without a name")
            entries[entry["name"]] = entry.get("template")
    if not isinstance(entries, dict):
        raise CheckpointError(f"chat_template in tokenizer_config.json is {shown(templates)}; expected text")
    for name, source in entries.items():
        if not isinstance(source, str):
            raise CheckpointError(f"the chat template {shown(name)} is {shown(source)}; expected text")
    return entries


def _source(wanted: str | Path, known: Mapping[str, str]) -> str:
    """The text of a template that the user gave, as a file or as the text itself."""
    if isinstance(wanted, str) and any(mark in wanted for mark in ("{{", "{%", "{#")):
        return wanted
    try:
        # Any kind of file: a user may give a pipe, as the shell's <(...) does.
        with Path(wanted or "/").expanduser().open(encoding="utf-8") as file:
            return file.read(MAX_SOURCE + 1)
    except UnicodeDecodeError as error:
        raise UsageError(f"{short(wanted)} is not UTF-8 text ({error.reason}); give a file of Jinja") from None
    except (OSError, ValueError, RuntimeError):  # ValueError: a null byte; RuntimeError: a home that is not known
        have = f"this checkpoint has {_listed(known)}" if known else "this checkpoint has none"
        raise UsageError(f"there is no chat template {short(wanted)!r}; give a file or a name: {have}") from None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(shown(name) for name in sorted(names))


def _read(path: Path) -> str:
    """The text of a template file of the checkpoint. Raises CheckpointError if it is not a regular file of text."""
    try:
        with open(open_file(path), encoding="utf-8") as file:  # line ends become "\n", as in transformers
            return file.read(MAX_SOURCE + 1)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text ({error.reason}); download it again") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); download it again") from None
