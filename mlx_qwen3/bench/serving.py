"""The measurement of servers: start them, ask them the same, time them in turns."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .. import blas
from ..errors import BenchError, UsageError
from ..files.checkpoint import Checkpoint
from ..files.config import Qwen3Config
from ..files.hub import resolve
from ..progress import Progress, Stage, silent
from ..text.tokenizer import Tokenizer
from . import estimate, machine, prompts, servers
from .clients import Answer, NoText, ask, crowd, disturbed
from .mixes import ARRIVAL, MIXES, NEVER, Mix, body, clients, filler, longest_prompt, question, words_only
from .options import OURS, Contestant, Options, contestants, parse_names, parse_numbers
from .rounds import Clock, Tell, untold
from .servers import Server
from .serving_report import Arrival, Load, Report, Row, Serving

WARM_UP = 8  # tokens of the first reply of each server
RUNNING = 600  # tokens that the running reply may have at most; it is left when the other has its first
SETTLED = 8  # tokens that it has before the other prompt is sent


def parse_serving(against: str | None, number: str | None, **choices: Any) -> Serving:
    """Settings from a command line's words. Raises UsageError."""
    names = ("mlx-lm",) if against is None else parse_names(against)
    options = Options(against=names, prompt_tokens=(ARRIVAL,), reference=False, **choices)
    return Serving(options) if number is None else Serving(options, parse_numbers("--clients", number, "1,8"))


def bench_serving(
    serving: Serving,
    progress: Progress = silent,
    keep: Callable[[Report], None] = lambda report: None,
    tell: Tell = untold,
) -> Report:
    """Measure. `keep` gets the report after each complete round, and `tell` what is to be said about the time.

    Raises UsageError for what cannot be measured, and BenchError if a server fails.
    """
    clock = Clock(tell)
    folder = resolve(serving.options.source)
    checkpoint = Checkpoint(folder)
    tokenizer = Tokenizer(folder)
    _check_source(serving, checkpoint.config, tokenizer)
    entries = contestants(serving.options, checkpoint)
    servers.check(entries)
    rows = [Row(entry.name, entry.dtype_name or "its default", _blas(entry)) for entry in entries]
    report = Report(serving, checkpoint.config, machine.describe(), rows, serving.options.repeat)
    nbytes = sum(file.size for file in checkpoint.files)
    clock.expect(estimate.of_servers(serving, len(entries), checkpoint.config, nbytes))
    with ExitStack() as stack:
        running = _start(entries, folder, max(serving.clients), stack, progress)
        measurement = Measurement(report, running, tokenizer, progress)
        measurement.warm_up()
        for number in clock.rounds(report, lambda: keep(report)):
            measurement.round(number)
    report.complete = True
    return report


def _blas(entry: Contestant) -> str:
    return (blas.in_use if servers.base(entry) == OURS else entry.blas) or "of MLX"


def _check_source(serving: Serving, config: Qwen3Config, tokenizer: Tokenizer) -> None:
    if not tokenizer.has_chat_template:
        raise UsageError(f"{serving.options.source} has no chat template, which --serve needs; give a chat model")
    needed = longest_prompt() + max(RUNNING, 3 * serving.options.generate)
    if needed > config.context_length:
        raise UsageError(
            f"--serve needs a context of {needed} tokens, and {serving.options.source} has {config.context_length}; "
            "give another model, or a smaller --generate"
        )


def _start(
    entries: Sequence[Contestant], folder: Path, rows: int, stack: ExitStack, progress: Progress
) -> list[Server]:
    stage = Stage("starting", len(entries), "servers")
    started = []
    for entry in entries:
        started.append(stack.enter_context(Server(entry, folder, rows)))
        progress(stage, 1)
    return started


class Measurement:
    def __init__(self, report: Report, running: list[Server], tokenizer: Tokenizer, progress: Progress):
        self._report, self._progress = report, progress
        self._options, self._clients = report.serving.options, report.serving.clients
        self._pairs = list(zip(report.rows, running, strict=True))
        self._tokenizer = tokenizer
        self._bias: dict[int, float] = {}  # of every request
        self._count = lambda text: len(tokenizer.encode(text))

    def warm_up(self) -> None:
        """The first runs of every number of rows are not counted."""
        self._report.words_only = not all(self._shows_text(server) for _, server in self._pairs)
        self._bias = words_only(self._tokenizer) if self._report.words_only else {}
        for number in self._clients:
            self._turn(f"warm-up {number}", MIXES[0], number, WARM_UP, counted=False)

    def round(self, repeat: int) -> None:
        """Everything once, in turns."""
        for mix in MIXES:
            for number in self._clients:
                self._turn(f"{mix.name} {repeat} {number}", mix, number, self._options.generate)
        self._arrivals(f"arrival {repeat}")

    def _shows_text(self, server: Server) -> bool:
        """Whether at least every second token of a reply shows text. Random weights may repeat one that shows none."""
        asked = body([{"role": "user", "content": question(random.Random(server.name))}], WARM_UP)
        try:
            with _named(server):
                answer = ask(server.port, asked)
        except NoText:
            return False
        return 2 * len(answer.pieces) >= answer.tokens

    def _turn(self, name: str, mix: Mix, number: int, longest: int, counted: bool = True) -> None:
        stage = Stage(f"{mix.name}, {number} clients", len(self._pairs), "runs")
        for row, server in self._pairs:
            prompts.settle()
            with _named(server):
                answers = crowd(server.port, clients(mix, name, number, self._count), longest, self._bias)
            if counted:
                row.loads.append(_load(mix.name, number, [answer for client in answers for answer in client]))
            self._progress(stage, 1)

    def _arrivals(self, name: str) -> None:
        stage = Stage(f"a prompt of {ARRIVAL} tokens", len(self._pairs), "runs")
        long = [{"role": "user", "content": filler(name, ARRIVAL, self._count)}]
        short = [{"role": "user", "content": question(random.Random(name))}]
        bias = {**self._bias, **dict.fromkeys(self._tokenizer.stop_ids, NEVER)}
        for row, server in self._pairs:
            prompts.settle()
            with _named(server):
                gaps, answer = disturbed(server.port, body(short, RUNNING, bias), body(long, WARM_UP, bias), SETTLED)
            row.arrivals.append(Arrival(gaps, answer.first_s, answer.prompt_tokens))
            self._progress(stage, 1)


def _load(mix: str, number: int, answers: list[Answer]) -> Load:
    return Load(
        mix,
        number,
        seconds=max(answer.ended for answer in answers) - min(answer.sent for answer in answers),
        tokens=sum(answer.tokens for answer in answers),
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        cached_tokens=sum(answer.cached_tokens for answer in answers),
        first_s=[answer.first_s for answer in answers],
        texts=[f"{answer.thought}\n{answer.content}" for answer in answers],
        retries=sum(answer.retries for answer in answers),
    )


@contextmanager
def _named(server: Server) -> Iterator[None]:
    """Errors of the clients name the server, and quote its last words."""
    try:
        yield
    except BenchError as error:
        raise type(error)(f"{server.name}: {error}; the server's last words: {server.last_words()}") from None
