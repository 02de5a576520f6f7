"""`mlx-qwen3 generate --prompts FILE`: every line of a file is a prompt, and they run together."""

import os
import stat
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Qwen3Error, UsageError
from ..progress import Stage
from .models import Opened
from .options import ModelOptions
from .progress import Bar
from .terminal import read_stdin, say, show_json

if TYPE_CHECKING:
    from ..engine.many import Outcome, PromptLine
    from ..engine.request import ReplyOptions

DEFAULT_ROWS = 8


def check_choice(prompt: str | None, prompts: str | None, rows: int | None, alone: Mapping[str, Any]) -> None:
    """Raises UsageError unless one of --prompt and --prompts is given, with options that fit. `alone`: of --prompt."""
    if prompt is None and prompts is None:
        raise UsageError("there is no prompt; give --prompt TEXT, or --prompts FILE for many")
    if prompts is None:
        if rows is not None:
            raise UsageError("--rows belongs to --prompts; drop it")
        return
    given = ["--prompt"] if prompt is not None else [name for name, value in alone.items() if value is not None]
    if given:
        why = ", which writes JSON anyway" if given[0] == "--json" else ""
        raise UsageError(f"{given[0]} does not go with --prompts{why}; drop one of them")


def run_prompts(
    file: str,
    rows: int | None,
    options: ModelOptions,
    reply: "ReplyOptions",
    sampling: Mapping[str, Any],
    system: str | None,
) -> int:
    """Reply to the prompts of a file, which may say otherwise than `reply`, `sampling` and `system`.

    Returns the exit code: 1 if a prompt failed.
    """
    from ..engine.many import Defaults, prepare_lines, read_lines, run_all

    defaults = Defaults(reply, sampling, system)
    name = "standard input" if file == "-" else file
    lines = read_lines(read_stdin("--prompts FILE") if file == "-" else _read(Path(file)), name, defaults)
    opened = Opened(options, "--model ")
    requests = prepare_lines(lines, name, opened.config, opened.tokenizer)
    engine = opened.engine(requests, max_rows=rows or DEFAULT_ROWS)
    began, tokens, failed = time.monotonic(), 0, 0
    stage = Stage("replies", len(lines), "prompts")
    # A bar on the terminal that the lines go to would stand among them.
    with engine, Bar(False if sys.stdout.isatty() else None) as bar:
        bar(stage, 0)
        for index, outcome in enumerate(run_all(engine, requests)):
            show_json(_as_json(index, lines[index], outcome))
            tokens += outcome.generation_tokens
            failed += outcome.error is not None
            bar(stage, 1)
    seconds = time.monotonic() - began
    failures = f", {failed} failed" if failed else ""
    say(f"{len(lines)} prompts{failures} | {tokens} generated, {tokens / seconds:.1f} tok/s together")
    return 1 if failed else 0


def _as_json(index: int, line: "PromptLine", outcome: "Outcome") -> dict[str, Any]:
    place = {"index": index} | ({} if line.id is None else {"id": line.id})
    if (error := outcome.error) is not None:
        known = isinstance(error, Qwen3Error)
        return {**place, "error": str(error) if known else f"unexpected {type(error).__name__}: {error}"}
    return {
        **place,
        "text": outcome.text,
        "thinking": outcome.thinking,
        "finish_reason": outcome.finish_reason,
        "prompt_tokens": outcome.prompt_tokens,
        "generation_tokens": outcome.generation_tokens,
    }


def _read(path: Path) -> str:
    """A text file, or what a pipe holds. Raises UsageError."""
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            raise UsageError(f"{path} is a folder; give a file with a prompt on each line")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be read ({reason}); give a file with a prompt on each line") from None
