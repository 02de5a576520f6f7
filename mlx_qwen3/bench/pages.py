"""What `bench` prints: the same page as tables for a terminal and as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..table import EMPHASIS, WARNING, Line, Part, Table


@dataclass(frozen=True)
class Page:
    """A title, sentences about what ran, tables, and lists by title. `warning`: what the reader must know first.

    With the command and what ran, the page can be pasted into an issue as it is.
    """

    title: str
    heading: Sequence[str]
    tables: Sequence[Table]
    lists: Mapping[str, Sequence[str]]
    warning: str = ""
    command: str = ""  # that made it

    def markdown(self) -> str:
        """The title has level 2, everything else level 3."""
        command = self.command and f"```\n{self.command}\n```"
        blocks = [f"## {self.title}", self.warning and f"**{self.warning}**", command, *self.heading]
        blocks += [table.markdown() for table in self.tables]
        for title, lines in self.lists.items():
            blocks += [f"### {title}", "\n".join(f"- {line}" for line in lines)] if lines else []
        return "\n\n".join(block for block in blocks if block)

    def shown(self) -> list[Part]:
        warning = [Line(self.warning, WARNING)] if self.warning else []
        command = [Line(f"$ {self.command}")] if self.command else []
        parts: list[Part] = [Line(self.title, EMPHASIS), *warning, *command, *map(Line, self.heading)]
        for table in self.tables:
            parts += ["", table]
        for title, lines in self.lists.items():
            parts += ["", Line(title, EMPHASIS), *(Line(f"  {line}") for line in lines)] if lines else []
        return parts


def stopped(complete: bool, rounds: int, repeat: int | None) -> str:
    """The warning of a page of a run that did not come to its end."""
    return "" if complete else f"stopped: {rounds} of {repeat} rounds are complete"


def repeats(count: int) -> str:
    return "1 repeat" if count == 1 else f"{count} repeats"
