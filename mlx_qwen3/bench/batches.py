"""Many requests at once: tokens per second of all rows of a batch."""

from dataclasses import replace

from ..progress import Progress, Stage
from . import outputs
from .options import Contestant
from .process import Worker
from .prompts import prompt, settle
from .report import BatchRun, Outputs, Report, Rows, in_words

Tokens = list[list[int]]  # of each row


def measure(report: Report, entries: list[Contestant], workers: list[Worker], number: int, progress: Progress) -> None:
    """One number of rows. The first replies of each are compared, and warm it up; then come the timed ones."""
    options = report.options
    prompts = [prompt(report.config, min(options.prompt_tokens), row) for row in range(number)]
    able = [
        (row, worker) for entry, row, worker in zip(entries, report.rows, workers, strict=True) if entry.kind.batches
    ]
    stage = Stage(f"{in_words(Rows(number))} at once", (options.repeat + 1) * len(able), "runs")
    ours: Tokens = []
    for row, worker in able:
        tokens: Tokens = worker.ask("batch", prompts=prompts, count=options.generate)["tokens"]
        if ours:
            row.outputs.append(_worst(workers[0], worker, prompts, ours, tokens, {report.ours.dtype, row.dtype}))
        ours = ours or tokens
        progress(stage, 1)
    for _ in range(options.repeat):
        for row, worker in able:
            if row.agrees(len(prompts[0]), number):
                settle()
                answer = worker.ask("batch", prompts=prompts, count=options.generate)
                row.batches.append(BatchRun(number, answer["tps"]))
            progress(stage, 1)


def note_the_unable(report: Report, entries: list[Contestant]) -> None:
    for entry, row in zip(entries, report.rows, strict=True):
        if not entry.kind.batches:
            row.notes.append(f"{row.name} has no batch that requests join and leave: it is left out of --rows")


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
