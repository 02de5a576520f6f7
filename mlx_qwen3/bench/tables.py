"""A report as tables for a terminal, and as Markdown."""

from collections.abc import Sequence

from ..table import Table
from .outputs import sentence
from .pages import Page, repeats, stopped
from .report import (
    PER_LENGTH,
    PER_PROCESS,
    PER_ROWS,
    Metric,
    Place,
    Report,
    Row,
    Rows,
    Spread,
    in_words,
    ratio,
    samples,
    significant,
)
from .roofline import decode_limit, prefill_limit

NONE = "-"
BRIEF = "Medians of the repeats. x: ours divided by this row's. --markdown also gives the spread."
# Columns that a narrow terminal does without
DROP = ("peak by MLX or CUDA, MB", "host, ms/token", "of copy", "GB/s", "dtype")
LEGEND = (
    "Medians; in brackets the lowest and the highest of the repeats. x: ours divided by this row's, the median of the "
    "repeats, because each repeat was measured side by side."
)


def page(report: Report, brief: bool) -> Page:
    """What ran; a table for each prompt length; one for what has none; and how the outputs compare.

    brief: medians and ratios, without the spread of the repeats.
    """
    return Page(
        report.options.source,
        [*_heading(report), BRIEF if brief else LEGEND],
        _tables(report, brief),
        _lists(report),
        stopped(report.complete, report.rounds, report.repeat),
    )


def _tables(report: Report, brief: bool) -> list[Table]:
    tables = [_length_table(report, length, brief) for length in report.options.prompt_tokens]
    tables += [_rows_table(report, brief)] if report.options.rows else []
    return [*tables, _process_table(report, brief)]


def _lists(report: Report) -> dict[str, list[str]]:
    return {
        "Outputs, compared with ours": [sentence(row.name, output) for row in report.rows for output in row.outputs],
        "Notes": [note for row in report.rows for note in row.notes],
    }


def limits_table(report: Report) -> Table:
    """The roofline: what no program can pass on this machine."""
    limits, lengths = report.limits, report.options.prompt_tokens
    rows = []
    for row in report.rows:
        bounds = [_decode_bound(report, row, length) for length in lengths]
        rows.append([row.name, row.dtype, f"{row.weight_bytes / 1e6:,.1f}", *map(significant, bounds)])
    prefill = [significant(prefill_limit(limits["product_flops"], report.config, length)) for length in lengths]
    columns = ["", "dtype", "MB of weights per token", *(f"decode at {length}, tok/s" for length in lengths)]
    product = f"{limits['product_rows']:.0f}^3 {report.ours.dtype} products"
    note = (
        f"Measured here: copies at {limits['copy_bytes_per_s'] / 1e9:.1f} GB/s, {product} at "
        f"{limits['product_flops'] / 1e9:,.0f} GFLOP/s. Decode reads all weights and the cache for each token. "
        "Prefill is bound by the products: "
        + ", ".join(f"{bound} tok/s at {length}" for bound, length in zip(prefill, lengths, strict=True))
        + "."
    )
    return _table("Limits", columns, rows, note)


def _heading(report: Report) -> list[str]:
    m, o, c = report.machine, report.options, report.config
    libraries = ", ".join(f"{name} {m[name]}" for name in ("mlx", "mlx-lm", "torch", "transformers", "python"))
    contestants = "; ".join(f"{row.name} {row.dtype} on {row.device}, BLAS {row.blas}" for row in report.rows)
    return [
        f"{c.num_hidden_layers} layers, hidden {c.hidden_size}, {c.num_attention_heads} query heads on "
        f"{c.num_key_value_heads} of {c.head_dim}, {c.mlp_in_words}, vocabulary {c.vocab_size}. "
        f"{o.generate} tokens generated, {repeats(report.rounds)}.",
        f"{m['chip']}; {m['backend']}; {m['os']}; {libraries}. Copies at "
        f"{report.limits['copy_bytes_per_s'] / 1e9:.1f} GB/s.",
        f"{contestants}.",
    ]


def _length_table(report: Report, length: int, brief: bool) -> Table:
    columns = ["", "dtype", *(metric.title for metric in PER_LENGTH), "peak by MLX or CUDA, MB", "GB/s", "of copy"]
    rows = []
    for row in report.rows:
        if not row.agrees(length):
            rows.append([row.name, row.dtype, "outputs differ", *[NONE] * (len(columns) - 3)])
        elif row.at(length):
            cells = [_cell(report, row, metric, length, brief) for metric in PER_LENGTH]
            rows.append([row.name, row.dtype, *cells, _framework_peak(row, length), *_bandwidth(report, row, length)])
    return _table(f"Prompt of {length} tokens", columns, rows)


def _rows_table(report: Report, brief: bool) -> Table:
    """Tokens per second of all rows; beside each, how many times one row's, if that was measured."""
    [metric], options = PER_ROWS, report.options
    length, several = min(options.prompt_tokens), [rows for rows in options.rows if rows > 1]
    columns = ["", "dtype", *(f"{in_words(Rows(rows))}, tok/s" for rows in options.rows)]
    columns += [f"{rows} / 1" for rows in several] if 1 in options.rows else []
    rows = []
    for row in report.rows:
        if not row.batches and not any(found.rows for found in row.outputs):  # it cannot batch
            continue
        cells = [
            _cell(report, row, metric, Rows(n), brief) if row.agrees(length, n) else "outputs differ"
            for n in options.rows
        ]
        if one := Spread.of(samples(row, metric, Rows(1))):
            speeds = [Spread.of(samples(row, metric, Rows(n))) for n in several]
            cells += [f"{speed.median / one.median:.2f}" if speed else NONE for speed in speeds]
        rows.append([row.name, row.dtype, *cells, *[NONE] * (len(columns) - 2 - len(cells))])
    return _table(f"Many requests at once, each with a prompt of {length} tokens", columns, rows)


def _process_table(report: Report, brief: bool) -> Table:
    rows = [
        [row.name, row.dtype, *(_cell(report, row, metric, None, brief) for metric in PER_PROCESS)]
        for row in report.rows
    ]
    columns = ["", "dtype", *(metric.title for metric in PER_PROCESS)]
    return _table("The same for every prompt", columns, rows)


def _cell(report: Report, row: Row, metric: Metric, length: Place, brief: bool) -> str:
    spread = Spread.of(samples(row, metric, length))
    if spread is None:
        return NONE
    text = metric.show(spread.median)
    if not brief and (low := metric.show(spread.low)) != (high := metric.show(spread.high)):
        text += f" [{low}, {high}]"
    share = None if row is report.ours else ratio(report, row, metric, length)
    return text if share is None else f"{text} x{share.median:.2f}"


def _framework_peak(row: Row, length: int) -> str:
    found = Spread.of([run.framework_peak_bytes for run in row.at(length) if run.framework_peak_bytes])
    return NONE if found is None else significant(found.median / 1e6)


def _bandwidth(report: Report, row: Row, length: int) -> list[str]:
    speed = Spread.of([run.decode_tps for run in row.at(length) if run.decode_tps])
    if speed is None or not row.cache_bytes:  # without a cache, a decode step also computes the whole prompt
        return [NONE, NONE]
    rate = speed.median * row.bytes_per_token(report.context(length))
    return [significant(rate / 1e9), f"{rate / report.limits['copy_bytes_per_s']:.0%}"]


def _decode_bound(report: Report, row: Row, length: int) -> float:
    return decode_limit(report.limits["copy_bytes_per_s"], row.bytes_per_token(report.context(length)))


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *notes: str) -> Table:
    """A contestant in each row: name and dtype, then numbers."""
    drop = [column for column in DROP if column in columns]
    return Table(title, columns, rows, "ll" + "." * (len(columns) - 2), notes=notes, drop=drop)
