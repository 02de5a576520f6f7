"""The measurement: start every contestant, compare what they say, time them in turns, round by round."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from ..compare.bounds import WORST_RANK
from ..files.checkpoint import Checkpoint
from ..files.config import Qwen3Config
from ..files.hub import resolve
from ..progress import Progress, Stage, silent
from . import batches, estimate, machine, outputs, sizes, whole
from .baseline import check_plan, check_settings, sizes_of
from .options import Contestant, Options, contestants, tokens_made
from .process import Worker
from .prompts import prompt, settle
from .report import Report, Row, Run
from .rounds import Clock, Tell, round_name, untold

DRAWS = 20  # their median is one repeat of the sampling time
STARTS = 2  # of each contestant, if the number of repeats is not given


def bench(
    options: Options,
    progress: Progress = silent,
    ready: Callable[[Report], None] = lambda report: None,
    baseline: dict[str, Any] | None = None,
    keep: Callable[[Report], None] = lambda report: None,
    tell: Tell = untold,
) -> Report:
    """Measure. `ready` gets the report before anything is timed; it holds settings, machine and limits by then.

    `keep` gets the report after each complete round, and `tell` what is to be said about the time.

    Raises UsageError for what cannot be measured, or compared with a `baseline` of `read_baseline`, and BenchError if a
    contestant fails.
    """
    folder = resolve(options.source)
    checkpoint = Checkpoint(folder)
    config = checkpoint.config
    entries = contestants(options, checkpoint)
    if baseline:
        options = sizes_of(baseline, options)
        check_plan(options, config, [entry.name for entry in entries], baseline)
    clock = Clock(tell)
    nbytes = sum(file.size for file in checkpoint.files)
    clock.expect(estimate.of_replies(options, entries, config, nbytes))
    with ExitStack() as stack:
        workers, rows = _start(entries, folder, options.repeat or STARTS, stack, progress)
        options = _fit(options, entries, workers, config, clock, tell)
        report = Report(options, config, machine.describe(), workers[0].ask("limits"), rows, options.repeat)
        if baseline:
            check_settings(report, baseline)
        ready(report)
        session = Session(report, entries, workers, progress)
        session.compare()
        runners = [(row, entry) for row, entry in zip(rows, entries, strict=True) if whole.can_run(entry, folder)]
        for number in clock.rounds(report, lambda: keep(report), sum(_one_start(row) for row, _ in runners)):
            session.round(number)
    _time_processes(report, runners, folder, progress)
    report.complete = True
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
            notes = [f"{entry.name}: {note}" for note in loaded.pop("notes", ())]
            if last:
                startup, load = (list(values) for values in zip(*times[index], strict=True))
                greeting = worker.greeting
                rows.append(Row(entry.name, **greeting, **loaded, startup_s=startup, load_s=load, notes=notes))
                workers.append(worker)
            progress(stage, 1)
    return workers, rows


def _fit(
    options: Options, entries: list[Contestant], workers: list[Worker], config: Qwen3Config, clock: Clock, tell: Tell
) -> Options:
    if not options.fit:
        return options
    chosen = sizes.fitting(options, entries, workers, config, clock.left())
    if chosen != options:
        lengths = " and ".join(map(str, chosen.prompt_tokens))
        tell(
            f"prompts of {lengths} tokens and replies of {chosen.generate}: more would take long here; "
            "--prompt-tokens and --generate set it"
        )
    return chosen


def _one_start(row: Row) -> float:
    return median(row.startup_s) + median(row.load_s)


class Session:
    """The contestants, started, and what they are asked in turns."""

    def __init__(self, report: Report, entries: list[Contestant], workers: list[Worker], progress: Progress):
        self._report, self._workers, self._progress = report, workers, progress
        self._options, self._pairs = report.options, list(zip(report.rows, workers, strict=True))
        self._able = batches.able(report, entries, workers)
        self._prompts = [prompt(report.config, length) for length in report.options.prompt_tokens]
        # how many tokens each makes after each prompt
        self._counts = {
            len(ids): [tokens_made(entry.kind, len(ids), self._options.generate) for entry in entries]
            for ids in self._prompts
        }

    def compare(self) -> None:
        """The first reply of each is compared, and warms it up."""
        done = self._counter("comparing outputs", 0)
        for ids in self._prompts:
            ours: list[int] = []
            for (row, worker), count in zip(self._pairs, self._counts[len(ids)], strict=True):
                if count:
                    tokens = worker.ask("generate", ids=ids, count=count)["tokens"]
                    if ours:
                        dtypes = {self._report.ours.dtype, row.dtype}
                        row.outputs.append(outputs.compare(self._workers[0], worker, ids, ours, tokens, dtypes))
                    ours = ours or tokens
                _note(row, len(ids), count, self._options.generate)
                done()
        for number in self._options.rows:
            batches.compare(self._report, self._able, number, done)

    def round(self, number: int) -> None:
        """Everything once, in turns."""
        done = self._counter(round_name(number, self._report.repeat), len(self._pairs))
        for ids in self._prompts:
            for (row, worker), count in zip(self._pairs, self._counts[len(ids)], strict=True):
                if count and row.agrees(len(ids)):
                    settle()
                    row.runs.append(_run(len(ids), worker.ask("generate", ids=ids, count=count)))
                done()
        for rows in self._options.rows:
            batches.measure(self._report, self._able, rows, done)
        for row, worker in self._pairs:
            _time_sampling(row, worker)
            done()

    def _counter(self, name: str, more: int) -> Callable[[], None]:
        """To call after each reply of all prompts and numbers of rows, and after each of `more` measurements."""
        total = len(self._prompts) * len(self._pairs) + len(self._options.rows) * len(self._able) + more
        stage = Stage(name, total, "measurements")
        return lambda: self._progress(stage, 1)


def _run(length: int, answer: dict[str, Any]) -> Run:
    return Run(prompt_tokens=length, **{name: value for name, value in answer.items() if name != "tokens"})


def _note(row: Row, length: int, count: int, wanted: int) -> None:
    if count < wanted:
        made = f"makes only {count} of {wanted} tokens" if count else "is left out"
        row.notes.append(f"{row.name} has no cache, every token is a pass over all before it: it {made} at {length}")


def _time_sampling(row: Row, worker: Worker) -> None:
    answer = worker.ask("sampling", draws=DRAWS)
    rank = answer["worst_rank"]
    if rank is not None and rank < WORST_RANK.limit:
        row.sampling_s.append(median(answer["seconds"]))
    elif rank is not None:
        row.notes.append(f"{row.name} drew the token of rank {rank} at top-k 20: no sampling time is shown")


def _time_processes(report: Report, runners: list[tuple[Row, Contestant]], folder: Path, progress: Progress) -> None:
    stage = Stage("whole processes", report.rounds * len(runners), "processes")
    counts: dict[str, int] = {}
    for _ in range(report.rounds):
        for row, entry in runners:
            seconds, counts[row.name] = whole.run(entry, folder)
            row.process_s.append(seconds)
            progress(stage, 1)
    if len(set(counts.values())) > 1:  # an end token came, and not for all at the same place
        for row, _ in runners:
            row.process_s.clear()
            row.notes.append(f"{row.name}: its process made {counts[row.name]} tokens, unlike others: no time is shown")
