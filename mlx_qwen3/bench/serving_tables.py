"""What the measurement of servers found, as tables and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..report import write_file
from ..table import Table
from .files import document, encoded
from .mixes import ARRIVAL, MIXES, Mix
from .pages import Page, repeats, stopped
from .report import significant
from .serving_report import Report, Row, arrival_figures, compare, figures

FORMAT = 1
NONE = "-"
LOADS = {"tps": "tok/s", "first_p50_ms": "first token, ms", "first_p95_ms": "95th percentile, ms"}
ARRIVALS = {
    "longest_ms": "longest gap, ms",
    "gap_p95_ms": "gaps, 95th percentile, ms",
    "first_ms": "first token, ms",
}
LEGEND = (
    "tok/s: tokens of all replies, the median of the repeats. First token: from the request to the first text, the "
    "median and the 95th percentile over the requests of all repeats. x: ours divided by this row's."
)


WORDS_ONLY = "This model's own replies show no text, so `logit_bias` bound all replies to some words."


def serving_page(report: Report) -> Page:
    """What ran; a table for each mix; one for the prompt that arrives; how the replies compare."""
    return Page(
        f"Servers: {report.serving.options.source}",
        _heading(report),
        [*(_mix_table(report, mix) for mix in MIXES), _arrival_table(report)],
        {
            "Replies, compared with ours": _comparisons(report),
            "Connections that a server reset, after which the client tried again": _resets(report),
        },
        stopped(report.complete, report.rounds, report.repeat),
    )


def write_serving(report: Report, file: Path) -> None:
    """Write everything as JSON, with every repeat. Raises OutputError."""
    write_file(file, encoded(serving_json(report)))


def serving_json(report: Report) -> dict[str, Any]:
    servers = [{**asdict(row), "summary": _summary(report, row)} for row in report.rows]
    serving = replace(report.serving, options=replace(report.serving.options, repeat=report.repeat))
    measured = {"rounds": report.rounds, "complete": report.complete, "words_only": report.words_only}
    return document(FORMAT, serving, report.config, report.machine, **measured, servers=servers)


def _summary(report: Report, row: Row) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for mix in MIXES:
        for number in report.serving.clients:
            compared = compare(report.ours, row, mix.name, number)
            agreement = {**asdict(compared), "agree": compared.agree}
            place = {"mix": mix.name, "clients": number, "replies": agreement}
            found.append(
                {**place, **_with_ratios(figures(report.ours.at(mix.name, number)), figures(row.at(mix.name, number)))}
            )
    return [
        *found,
        {"mix": "arrival", **_with_ratios(arrival_figures(report.ours.arrivals), arrival_figures(row.arrivals))},
    ]


def _with_ratios(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, Any]:
    return {name: {"value": value, "ratio": _ratio(ours[name], value)} for name, value in theirs.items()}


def _ratio(ours: float, theirs: float) -> float:
    return ours / theirs if theirs else float("nan")


def _heading(report: Report) -> list[str]:
    m, o, c = report.machine, report.serving.options, report.config
    libraries = ", ".join(f"{name} {m[name]}" for name in ("mlx", "mlx-lm", "python"))
    servers = "; ".join(f"{row.name} in {row.dtype}, BLAS {row.blas}" for row in report.rows)
    return [
        f"{c.num_hidden_layers} layers, hidden {c.hidden_size}, vocabulary {c.vocab_size}. Replies of up to "
        f"{o.generate} tokens, greedy, streamed; {repeats(report.rounds)}.",
        f"{m['chip']}; {m['backend']}; {m['os']}; {libraries}.",
        f"{servers}.",
        *([WORDS_ONLY] if report.words_only else []),
        LEGEND,
    ]


def _mix_table(report: Report, mix: Mix) -> Table:
    shared = f", {mix.prefix:,} tokens of prefix in common" if mix.prefix else ""
    columns = ["", "clients", *LOADS.values(), "prompt tokens", "of them cached"]
    rows = []
    for number in report.serving.clients:
        ours = figures(report.ours.at(mix.name, number))
        for row in report.rows:
            loads = row.at(mix.name, number)
            counts = [sum(load.prompt_tokens for load in loads), sum(load.cached_tokens for load in loads)]
            shown = [f"{count / len(loads):,.0f}" for count in counts]
            if compare(report.ours, row, mix.name, number).agree:
                cells = _cells(report, row, ours, figures(loads))
            else:
                cells = ["replies differ", *[NONE] * (len(LOADS) - 1)]
            rows.append([row.name, str(number), *cells, *shown])
    title = f"{mix.name.capitalize()}: {mix.turns} requests of each client{shared}"
    return Table(title, columns, rows, "lr" + "." * (len(columns) - 2), drop=("of them cached", "prompt tokens"))


def _arrival_table(report: Report) -> Table:
    ours = arrival_figures(report.ours.arrivals)
    rows = [[row.name, *_cells(report, row, ours, arrival_figures(row.arrivals))] for row in report.rows]
    title = f"A running reply while a prompt of {ARRIVAL:,} tokens arrives"
    return Table(title, ["", *ARRIVALS.values()], rows, "l" + "." * len(ARRIVALS))


def _cells(report: Report, row: Row, ours: Mapping[str, float], theirs: Mapping[str, float]) -> Sequence[str]:
    if row is report.ours:
        return [significant(value) for value in theirs.values()]
    return [f"{significant(value)} x{_ratio(ours[name], value):.2f}" for name, value in theirs.items()]


def _comparisons(report: Report) -> list[str]:
    lines = []
    for row in report.rows[1:]:
        for mix in MIXES:
            for number in report.serving.clients:
                found = compare(report.ours, row, mix.name, number)
                lines.append(
                    f"{row.name}, {mix.name}, {number} clients: {found.equal} of {found.replies} replies equal, "
                    f"{found.tokens:,} tokens, {found.ours:,} here"
                )
    return lines


def _resets(report: Report) -> list[str]:
    places = [(row, mix.name, number) for row in report.rows for mix in MIXES for number in report.serving.clients]
    counts = [(row, mix, number, sum(load.retries for load in row.at(mix, number))) for row, mix, number in places]
    return [f"{row.name}, {mix}, {number} clients: {count}" for row, mix, number, count in counts if count]
