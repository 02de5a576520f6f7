"""`mlx-qwen3 serve`"""

import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from .. import interrupt
from ..errors import Qwen3Warning, UsageError
from ..table import EMPHASIS, Line, escape
from .options import CHAT_TEMPLATE, DTYPE, MEMORY, with_options
from .source import default_source
from .terminal import say

NEEDED = ("starlette", "uvicorn", "msgspec", "llguidance")
LOGS = {"mlx_qwen3.server": logging.INFO, "uvicorn.error": logging.WARNING}
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


@click.command("serve", short_help="Answer requests in OpenAI's API.")
@click.argument("source", required=False, metavar="[SOURCE]")
@click.option(
    "--models", metavar="NAME=SOURCE,...", help="Several models; each is loaded at its first request, as many as fit."
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME=FOLDER|HUBID[=SCALE]",
    help="Serve SOURCE with this adapter of PEFT or mlx-lm too, as the model NAME. May be repeated.",
)
@click.option(
    "--idle",
    metavar="TIME",
    help="Unload a model that nobody used for so long. Default: 15m with --models, else never.",
)
@DTYPE
@click.option("--host", default="127.0.0.1", metavar="ADDRESS", show_default=True, help="Where to listen.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, metavar="N", show_default=True, help="0 takes a free one."
)
@click.option(
    "--api-key",
    envvar="MLX_QWEN3_API_KEY",
    metavar="KEY",
    help="Refuse requests without it. Better: the variable MLX_QWEN3_API_KEY, which other users cannot see.",
)
@click.option("--insecure", is_flag=True, help="Allow another --host than this machine without an API key.")
@click.option(
    "--cors", multiple=True, metavar="ORIGIN", help="Let web pages of this origin in; * for all. May be repeated."
)
@click.option(
    "--rows", type=click.IntRange(1), default=8, metavar="N", show_default=True, help="Replies that run together."
)
@click.option(
    "--queue",
    type=click.IntRange(0),
    default=64,
    metavar="N",
    show_default=True,
    help="Replies that may wait; then 429.",
)
@click.option("--timeout", default="10m", show_default=True, metavar="TIME", help="For a whole reply.")
@click.option("--drain", default="30s", show_default=True, metavar="TIME", help="For replies under way at the end.")
@click.option("--max-body", default="16MB", show_default=True, metavar="SIZE", help="Of a request.")
@with_options(*MEMORY, CHAT_TEMPLATE)
@click.option("--log-prompts", is_flag=True, help="Write prompts into the log, which else holds no text of requests.")
def command(
    source: str | None,
    models: str | None,
    adapters: tuple[str, ...],
    idle: str | None,
    host: str,
    rows: int,
    timeout: str,
    drain: str,
    max_body: str,
    memory: str | None,
    cache_dir: str | None,
    kv_bits: int | None,
    **settings: Any,
) -> int:
    """Answer requests in OpenAI's API. SOURCE is by default Qwen/Qwen3-0.6B if it is downloaded, else demo.

    TIME is a number of seconds, or such as 90s, 15m, 2h. SIGTERM lets replies under way end first.
    """
    if lacking := [name for name in NEEDED if find_spec(name) is None]:
        raise UsageError(f"serve needs {', '.join(lacking)}; install them with: pip install 'mlx-qwen3[server]'")
    from ..files.sizes import parse_size
    from ..server.run import serve
    from ..server.settings import Settings

    chosen = Settings(
        host=host,
        rows=rows,
        timeout=_seconds(timeout, "--timeout"),
        drain=_seconds(drain, "--drain"),
        max_body=parse_size(max_body, "--max-body"),
        engine={"max_rows": rows, "cache_dir": cache_dir, "kv_bits": kv_bits},
        **{**settings, "cors": tuple(settings["cors"])},
    )
    if models is not None and source is not None:
        raise UsageError("SOURCE and --models exclude each other; put the SOURCE into --models")
    if models is not None:
        sources = _named(models.split(","), "--models", "NAME=SOURCE, with commas between several")
    else:
        source = default_source() if source is None else source
        sources = {_name(source): source}
    if adapters and models is not None:
        raise UsageError("--adapter belongs to one SOURCE; leave --models out")
    rest = _seconds(idle, "--idle") if idle is not None else None if models is None else 900.0
    # A request that gives no max_tokens may have what fits: that is how it is, not a warning for each.
    warnings.filterwarnings("ignore", "max_tokens is .*: more would not fit", Qwen3Warning)
    named = _named(adapters, "--adapter", "NAME=FOLDER")
    with _log_on_stderr(), interrupt.answered(_interrupt):  # once it listens, the server has its own answer
        ended = serve(sources, chosen, memory=memory, idle=rest, preload=models is None, adapters=named, say=_ready)
    return interrupt.INTERRUPTED if ended == 2 else 0


def _interrupt() -> None:
    """Ctrl-C while models are loaded."""
    raise KeyboardInterrupt


def _ready(address: str) -> None:
    say(Line(f"listening on {address}", EMPHASIS), "  chat  open it in a browser", f"  API   {address}/v1")


def _name(source: str) -> str:
    """What a SOURCE is called among the models: a folder by its last part, others as they are."""
    return Path(source).resolve().name if Path(source).is_dir() else source


def _named(parts: Iterable[str], option: str, expected: str) -> dict[str, str]:
    """What options name, by name. Raises UsageError for another form."""
    found: dict[str, str] = {}
    for part in parts:
        name, equals, source = part.strip().partition("=")
        if not (name and equals and source):
            raise UsageError(f"{option} has {part[:60]!r}; expected {expected}")
        if name in found:
            raise UsageError(f"{option} gives {name[:60]!r} twice; drop one of them")
        found[name] = source
    return found


def _seconds(text: str, option: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match or float(match[1]) <= 0:
        raise UsageError(f"{option} is {text[:60]!r}; expected a time such as 90s, 15m or 2h")
    return float(match[1]) * UNITS[match[2]]


class _Lines(logging.Formatter):
    """The time and the message; control characters of whatever is in it are shown and not obeyed."""

    def format(self, record: logging.LogRecord) -> str:
        return escape(super().format(record))


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    loggers = {logging.getLogger(name): level for name, level in LOGS.items()}
    for logger, level in loggers.items():
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
