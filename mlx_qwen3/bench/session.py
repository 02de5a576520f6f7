"""The measurement: start every contestant, compare what they say, time them in turns."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from ..compare.bounds import WORST_RANK
from ..files.checkpoint import Checkpoint
from ..files.hub import resolve
from ..progress import Progress, Stage, silent
from . import batches, machine, outputs, whole
from .baseline import check_plan, check_settings
from .options import Contestant, Options, contestants, tokens_made
from .process import Worker
from .prompts import prompt, settle
from .report import Report, Row, Run

DRAWS = 20  # their median is one repeat of the sampling time


def bench(
    options: Options,
    progress: Progress = silent,
    ready: Callable[[Report], None] = lambda report: None,
    baseline: dict[str, Any] | None = None,
) -> Report:
    """Measure. `ready` gets the report before anything is timed; it holds settings, machine and limits by then.

    Raises UsageError for what cannot be measured, or compared with a `baseline` of `read_baseline`, and BenchError if
    a contestant fails.
    """
    folder = resolve(options.source)
    checkpoint = Checkpoint(folder)
    config = checkpoint.config
    entries = contestants(options, checkpoint)
    if baseline:
        check_plan(options, config, [entry.name for entry in entries], baseline)
    with ExitStack() as stack:
        workers, rows = _start(entries, folder, options.repeat, stack, progress)
        report = Report(options, config, machine.describe(), workers[0].ask("limits"), rows)
        if baseline:
            check_settings(report, baseline)
        ready(report)
        for length in options.prompt_tokens:
            _measure(report, entries, workers, prompt(config, length), progress)
        if options.rows:
            batches.note_the_unable(report, entries)
        for number in options.rows:
            batches.measure(report, entries, workers, number, progress)
        _time_sampling(report, workers, progress)
    _time_processes(report, entries, folder, progress)
    return report


def _start(
    entries: list[Contestant], folder: Path, repeat: int, stack: ExitStack, progress: Progress
) -> tuple[list[Worker], list[Row]]:
    """Start and load every contestant `repeat` times, in turns; the last process of each stays."""
    times: list[list[tuple[float, float]]] = [[] for _ in entries]
    stage = Stage("starting and loading", repeat * len(entries), "processes")
    workers, rows = [], []
    for turn in range(repeat):
        last = turn == repeat - 1
        for index, entry in enumerate(entries):
            with ExitStack() as until_loaded:
                worker = (stack if last else until_loaded).enter_context(Worker(entry))
                given = {"weights": entry.weights, "adapters": entry.adapters}
                more = {name: value for name, value in given.items() if value}
                loaded = worker.ask("load", folder=str(folder.absolute()), dtype=entry.dtype_name, **more)
            times[index].append((worker.startup_s, loaded.pop("seconds")))
            if last:
                startup, load = (list(values) for values in zip(*times[index], strict=True))
                greeting = worker.greeting
                rows.append(Row(entry.name, **greeting, **loaded, startup_s=startup, load_s=load))
                workers.append(worker)
            progress(stage, 1)
    return workers, rows


def _measure(
    report: Report, entries: list[Contestant], workers: list[Worker], ids: list[int], progress: Progress
) -> None:
    """One prompt. The first reply of each is compared, and warms it up; then come the timed ones, A B A B."""
    options = report.options
    stage = Stage(f"{len(ids)} prompt tokens", (options.repeat + 1) * len(entries), "replies")
    counts = [tokens_made(entry.kind, len(ids), options.generate) for entry in entries]
    ours: list[int] = []
    for row, worker, count in zip(report.rows, workers, counts, strict=True):
        if count:
            tokens = worker.ask("generate", ids=ids, count=count)["tokens"]
            if ours:
                dtypes = {report.ours.dtype, row.dtype}
                row.outputs.append(outputs.compare(workers[0], worker, ids, ours, tokens, dtypes))
            ours = ours or tokens
        _note(row, len(ids), count, options.generate)
        progress(stage, 1)
    for _ in range(options.repeat):
        for row, worker, count in zip(report.rows, workers, counts, strict=True):
            if count and row.agrees(len(ids)):
                settle()
                row.runs.append(_run(len(ids), worker.ask("generate", ids=ids, count=count)))
            progress(stage, 1)


def _run(length: int, answer: dict[str, Any]) -> Run:
    return Run(prompt_tokens=length, **{name: value for name, value in answer.items() if name != "tokens"})


def _note(row: Row, length: int, count: int, wanted: int) -> None:
    if count < wanted:
        made = f"makes only {count} of {wanted} tokens" if count else "is left out"
        row.notes.append(f"{row.name} has no cache, every token is a pass over all before it: it {made} at {length}")


def _time_sampling(report: Report, workers: list[Worker], progress: Progress) -> None:
    stage = Stage("sampling", report.options.repeat * len(workers), "measurements")
    for _ in range(report.options.repeat):
        for row, worker in zip(report.rows, workers, strict=True):
            answer = worker.ask("sampling", draws=DRAWS)
            rank = answer["worst_rank"]
            if rank is not None and rank < WORST_RANK.limit:
                row.sampling_s.append(median(answer["seconds"]))
            elif rank is not None:
                row.notes.append(f"{row.name} drew the token of rank {rank} at top-k 20: no sampling time is shown")
            progress(stage, 1)


def _time_processes(report: Report, entries: list[Contestant], folder: Path, progress: Progress) -> None:
    runners = [(row, entry) for row, entry in zip(report.rows, entries, strict=True) if whole.can_run(entry, folder)]
    stage = Stage("whole processes", report.options.repeat * len(runners), "processes")
    counts: dict[str, int] = {}
    for _ in range(report.options.repeat):
        for row, entry in runners:
            seconds, counts[row.name] = whole.run(entry, folder)
            row.process_s.append(seconds)
            progress(stage, 1)
    if len(set(counts.values())) > 1:  # an end token came, and not for all at the same place
        for row, _ in runners:
            row.process_s.clear()
            row.notes.append(f"{row.name}: its process made {counts[row.name]} tokens, unlike others: no time is shown")
