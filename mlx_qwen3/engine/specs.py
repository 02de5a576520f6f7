"""The descriptions of grammars to which a reply can be bound."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..text.tool_calls import Style

# White space between the parts of a JSON value: spaces, or a line break and an indentation, as JSON printers write it.
# If any white space is allowed, some models write line breaks until the reply is cut.
WHITE_SPACE = r"\r?\n[ \t]{0,64}|[ \t]{1,64}"
JSON_OPTIONS = {"whitespace_pattern": WHITE_SPACE}


@dataclass(frozen=True)
class JsonObject:
    """Any JSON object."""


@dataclass(frozen=True)
class JsonSchema:
    """A JSON value that is valid for a schema: an object or a boolean, as `json.loads` gives it.

    A keyword that cannot be enforced is refused, `strict` or not. There is one difference: a `format` that no draft of
    JSON Schema defines, such as "url", is refused if `strict`, and has no effect otherwise, as the drafts say.
    """

    schema: Any
    strict: bool = True


@dataclass(frozen=True)
class Regex:
    """A text that the whole pattern matches, in the syntax of Rust's regex crate, without look-around."""

    pattern: str


@dataclass(frozen=True)
class Lark:
    """A text of a grammar in llguidance's dialect of Lark."""

    grammar: str


@dataclass(frozen=True)
class ToolChoice:
    """Calls of tools, as the chat template of the checkpoint writes them.

    tools: as for the chat template, each with a name and the JSON schema of its parameters.
    choice: "auto" (text, and calls if the model makes some), "required" (calls only), or the name of the tool to call.
    parallel: whether there may be more than one call.
    style: that of the template, see `tool_calls.style_of`.
    answer: what binds the text of "auto"; it is then either a whole answer or calls. None leaves it free.
    """

    tools: Sequence[Mapping[str, Any]]
    choice: str = "auto"
    parallel: bool = True
    style: Style = "json"
    answer: JsonObject | JsonSchema | None = None


Spec = JsonObject | JsonSchema | Regex | Lark | ToolChoice
SPECS = tuple(kind.__name__ for kind in (JsonObject, JsonSchema, Regex, Lark, ToolChoice))
