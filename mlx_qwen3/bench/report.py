"""What was measured, raw, and the figures that follow from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from ..files.config import Qwen3Config
from .options import Options


@dataclass(frozen=True)
class Parting:
    """The first greedy token that differs: ours and theirs.

    `gap`: how far the logit of their token lies below our largest one. `largest` and `relative`: the largest element
    of the difference of the two models' logits at this position, and its relative norm.
    """

    position: int
    ours: int
    theirs: int
    gap: float
    largest: float
    relative: float


@dataclass(frozen=True)
class Outputs:
    """A contestant compared with this package, over the first `compared` greedy tokens.

    `rows`: how many requests ran at once, 0 for a reply alone; of several, this is the one that compares worst.
    `relative` is the norm of the difference of the logits over the norm of ours, the largest over these tokens.
    """

    prompt_tokens: int
    compared: int
    agree: bool
    relative: float
    allowed: float
    parting: Parting | None = None
    rows: int = 0


@dataclass(frozen=True)
class Run:
    """One timed reply: seconds from the call to each token; the other fields are those of workers/serve.py."""

    prompt_tokens: int
    seconds: list[float]
    host_s: float | None
    peak_bytes: int
    framework_peak_bytes: int | None

    @property
    def ttft_s(self) -> float:
        return self.seconds[0]

    @property
    def prefill_tps(self) -> float:
        return self.prompt_tokens / self.seconds[0]

    @property
    def decode_tps(self) -> float | None:
        if len(self.seconds) < 2:
            return None
        return (len(self.seconds) - 1) / (self.seconds[-1] - self.seconds[0])


@dataclass(frozen=True)
class BatchRun:
    """One timed run of many requests at once: tokens per second of all of them, as long as all run."""

    rows: int
    tps: float | None  # None if there were too few tokens


class Rows(int):
    """A number of requests at once, where other figures have the length of a prompt."""


Place = int | Rows | None  # what a figure was measured at; None if it is the same for every prompt


@dataclass
class Row:
    """A contestant. Lists hold one number for each repeat."""

    name: str
    dtype: str
    device: str
    blas: str
    versions: dict[str, str]
    weight_bytes: int  # of the weights that a decode step reads
    cache_bytes: int  # that each token of context adds to them
    startup_s: list[float] = field(default_factory=list)
    load_s: list[float] = field(default_factory=list)
    process_s: list[float] = field(default_factory=list)
    sampling_s: list[float] = field(default_factory=list)
    outputs: list[Outputs] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    batches: list[BatchRun] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def at(self, length: int) -> list[Run]:
        return [run for run in self.runs if run.prompt_tokens == length]

    def agrees(self, length: int, rows: int = 0) -> bool:
        return all(found.agree for found in self.outputs if (found.prompt_tokens, found.rows) == (length, rows))

    def bytes_per_token(self, context: float) -> float:
        return self.weight_bytes + self.cache_bytes * context


@dataclass
class Report:
    options: Options
    config: Qwen3Config
    machine: dict[str, str]
    limits: dict[str, float]
    rows: list[Row]
    repeat: int | None = None  # rounds; None until it is known
    rounds: int = 0  # that are complete
    complete: bool = False

    @property
    def ours(self) -> Row:
        return self.rows[0]

    def context(self, length: int) -> float:
        """Tokens in the cache, on average over the decode."""
        return length + self.options.generate / 2


@dataclass(frozen=True)
class Spread:
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        return cls(median(values), min(values), max(values)) if values else None


@dataclass(frozen=True)
class Metric:
    """A measured number. `of` takes it from a run; if it has no prompt length, `of` takes its list from a row.

    Multiplied by `scale` it has the unit that the title ends with.
    """

    name: str
    title: str
    scale: float
    higher_is_better: bool
    of: Callable[[Any], Any]

    def show(self, value: float) -> str:
        return significant(value * self.scale)


def significant(value: float) -> str:
    """Three significant digits, or all digits before the point; never a power of ten."""
    return f"{value:,.{next((digits for digits, least in enumerate((100, 10, 1)) if value >= least), 3)}f}"


PER_LENGTH = (
    Metric("ttft_s", "first token, ms", 1e3, False, lambda run: run.ttft_s),
    Metric("prefill_tps", "prefill, tok/s", 1, True, lambda run: run.prefill_tps),
    Metric("decode_tps", "decode, tok/s", 1, True, lambda run: run.decode_tps),
    Metric("host_s", "host, ms/token", 1e3, False, lambda run: run.host_s),
    Metric("peak_bytes", "peak, MB", 1e-6, False, lambda run: run.peak_bytes),
)
PER_PROCESS = (
    Metric("startup_s", "start-up, s", 1, False, lambda row: row.startup_s),
    Metric("load_s", "load, s", 1, False, lambda row: row.load_s),
    Metric("process_s", "whole process, s", 1, False, lambda row: row.process_s),
    Metric("sampling_s", "sampling, ms", 1e3, False, lambda row: row.sampling_s),
)


PER_ROWS = (Metric("rows_tps", "many rows, tok/s", 1, True, lambda run: run.tps),)


def in_words(place: Place) -> str:
    if isinstance(place, Rows):
        return "1 row" if place == 1 else f"{place:d} rows"
    return f"{place} tokens" if place else ""


def samples(row: Row, metric: Metric, place: Place) -> list[float]:
    """One number for each repeat; an empty list if it was not measured."""
    if place is None:
        return list(metric.of(row))
    runs = [run for run in row.batches if run.rows == place] if isinstance(place, Rows) else row.at(place)
    return [value for run in runs if (value := metric.of(run)) is not None]


def ratio(report: Report, row: Row, metric: Metric, place: Place) -> Spread | None:
    """Ours divided by theirs, repeat by repeat, because the two numbers of a repeat were measured side by side."""
    pairs = zip(samples(report.ours, metric, place), samples(row, metric, place), strict=False)
    return Spread.of([ours / theirs for ours, theirs in pairs if theirs])
