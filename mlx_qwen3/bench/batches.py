"""Many requests at once: tokens per second of all rows of a batch."""

from collections.abc import Callable
from dataclasses import replace

from . import outputs
from .options import Contestant
from .process import Worker
from .prompts import prompt, settle
from .report import BatchRun, Outputs, Report, Row

Tokens = list[list[int]]  # of each row
Done = Callable[[], None]  # called after each run


def compare(report: Report, able: list[tuple[Row, Worker]], number: int, done: Done) -> None:
    """The first replies of each are compared, for one number of rows. This also warms them up."""
    prompts = _prompts(report, number)
    ours: Tokens = []
    for row, worker in able:
        tokens: Tokens = worker.ask("batch", prompts=prompts, count=report.options.generate)["tokens"]
        if ours:
            row.outputs.append(_worst(able[0][1], worker, prompts, ours, tokens, {report.ours.dtype, row.dtype}))
        ours = ours or tokens
        done()


def measure(report: Report, able: list[tuple[Row, Worker]], number: int, done: Done) -> None:
    """One timed run of each, for one number of rows."""
    prompts = _prompts(report, number)
    for row, worker in able:
        if row.agrees(len(prompts[0]), number):
            settle()
            answer = worker.ask("batch", prompts=prompts, count=report.options.generate)
            row.batches.append(BatchRun(number, answer["tps"]))
        done()


def able(report: Report, entries: list[Contestant], workers: list[Worker]) -> list[tuple[Row, Worker]]:
    """Those that can run many requests at once. The others get a note, if it is asked for."""
    found = []
    for entry, row, worker in zip(entries, report.rows, workers, strict=True):
        if entry.kind.batches:
            found.append((row, worker))
        elif report.options.rows:
            row.notes.append(f"{row.name} has no batch that requests join and leave: it is left out of --rows")
    return found


def _prompts(report: Report, number: int) -> Tokens:
    return [prompt(report.config, min(report.options.prompt_tokens), row) for row in range(number)]


def _worst(
    ours: Worker, theirs: Worker, prompts: Tokens, our_tokens: Tokens, their_tokens: Tokens, dtypes: set[str]
) -> Outputs:
    """The comparison of the row that differs most. Where tokens differ, ours are judged by their logits too."""
    found = []
    for ids, a, b in zip(prompts, our_tokens, their_tokens, strict=True):
        judged = outputs.compare(ours, theirs, ids, a, b, dtypes)
        if judged.agree and judged.parting:
            judged = replace(judged, agree=outputs.compare(theirs, ours, ids, b, a, dtypes).agree)
        found.append(replace(judged, rows=len(prompts)))
    return max(found, key=lambda one: (not one.agree, one.parting is not None, one.relative))
