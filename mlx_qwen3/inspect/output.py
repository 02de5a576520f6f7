"""A report as text for the terminal and as JSON for programs."""

from dataclasses import asdict
from typing import Any

from ..compare.experts import CHOSEN
from ..report import finite
from ..table import EMPHASIS, Line, Table
from .report import Report, place
from .router import NONE, Router
from .statistics import Statistics
from .summary import forecast, verdict_lines
from .tables import tables
from .tensors import TensorRow, collapsed


def shown(report: Report, full: bool = False) -> list[str | Line | Table]:
    """The report for a terminal: what ran, the verdict and its reasons, the tables."""
    name, *more = headline(report).splitlines()
    parts: list[str | Line | Table] = [Line(name, EMPHASIS), *map(Line, more), ""]
    parts += [Line("Verdict", EMPHASIS), *(Line(f"  {line.text}", line.style) for line in verdict_lines(report))]
    for table in tables(report, full):
        parts += ["", table]
    return parts


def render(report: Report, full: bool = False) -> str:
    """The same as plain text of any width."""
    parts = shown(report, full)
    return "\n".join(p.text() if isinstance(p, Table) else p.text if isinstance(p, Line) else p for p in parts)


def headline(report: Report) -> str:
    c, adapters = report.config, list(dict.fromkeys(row.adapter for row in report.adapters))
    more = f" with {' and '.join(adapters)}" if adapters else ""
    return (
        f"{report.source}{more}: {c.num_hidden_layers} layers, hidden {c.hidden_size}, {c.num_attention_heads} query "
        f"heads on {c.num_key_value_heads} key/value heads of {c.head_dim}, {c.mlp_in_words}, "
        f"vocabulary {c.vocab_size}\nran {report.tokens}, in {report.dtype} on the {report.device}"
    )


def as_json(report: Report) -> dict[str, Any]:
    """The whole report in types of strict JSON. NaN and infinity become null; the fields nan and inf count them."""
    return finite(
        {
            "source": report.source,
            "dtype": report.dtype,
            "device": report.device,
            "tokens": report.tokens,
            "batch": report.numbers.batch,
            "length": report.numbers.length,
            "decode": _decode(report),
            "weights": _weights(report),
            "flow": _flow(report),
            "numbers": _numbers(report),
            "heads": _heads(report),
            "routers": _routers(report),
            "faults": [asdict(fault) for fault in report.faults],
            "first_fault": asdict(report.first_fault) if report.first_fault else None,
            "fp16": {"forecast": forecast(report), "peaks": [asdict(peak) for peak in report.peaks[:20]]},
            "comparison": _comparison(report),
            "kv_cache": asdict(report.cache_cost) if report.cache_cost else None,
            "adapters": [asdict(row) for row in report.adapters],
            "notes": list(report.rules.notes),
        }
    )


def _decode(report: Report) -> dict[str, Any] | None:
    """Per row: the reply's tokens before the step that is shown (the last is its input), and the token after it."""
    return None if report.reply is None else {"tokens": report.reply.tokens, "next": report.reply.following}


def _weights(report: Report) -> dict[str, Any]:
    return {
        "tensors": [_row(row) for row in report.rows],
        "collapsed": [_row(row) for row in collapsed(report.rows)],
        "parameters": sum(row.parameters for row in report.rows),
        "bytes": sum(row.bytes for row in report.rows),
    }


def _row(row: TensorRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "shape": list(row.shape),
        "dtype": row.dtype,
        "parameters": row.parameters,
        "bytes": row.bytes,
        "layers": list(row.layers),
        **_statistics(row.statistics),
        "warnings": list(row.warnings),
    }


def _flow(report: Report) -> list[dict[str, Any]]:
    numbers = report.numbers
    return [
        {"layer": key[0], "step": key[1], "shape": list(shape), "dtype": numbers.dtypes[key]}
        for key, shape in numbers.shapes.items()
        if key[0] in (report.options.layer, None)
    ]


def _numbers(report: Report) -> list[dict[str, Any]]:
    entries = []
    for key, statistics in report.numbers.overall.items():
        verdict = report.verdicts[key]
        reasons = list(verdict.reasons)
        entry = {"layer": key[0], "step": key[1], **_statistics(statistics)}
        entries.append({**entry, "verdict": verdict.level, "reasons": reasons})
    return entries


def _heads(report: Report) -> list[dict[str, Any]]:
    return [
        {"layer": layer, "step": step, "head": head, **_statistics(statistics), "verdict": verdict.level}
        for (layer, step), verdicts in report.head_verdicts.items()
        for head, (statistics, verdict) in enumerate(
            zip(report.numbers.heads[(layer, step)], verdicts, strict=True),
        )
    ]


def _routers(report: Report) -> list[dict[str, Any]]:
    """One entry for each layer with experts."""
    nearness = report.rules.settings["router"]["near_tie"]
    entries = []
    for layer, router in report.numbers.routers.items():
        verdict, closest = report.verdicts[layer, CHOSEN], router.closest
        margin = None if closest is None else float(router.margins[closest])
        entries.append(
            {
                "layer": layer,
                "tokens": router.tokens,
                "experts_per_token": router.for_each,
                "load": router.load.tolist(),
                "mean_weights": router.mean_weights.tolist(),
                "busiest": {"expert": router.busiest, "share": router.busiest_share},
                "unused": router.unused,
                "unused_share": len(router.unused) / router.experts,
                "histogram": dict(zip(("unused", "below", "around", "above"), router.histogram, strict=True)),
                "entropy": router.entropy,
                "evenness": router.evenness,
                "near_ties": router.near_ties(nearness),
                "closest": closest and {"row": closest[0], "token": closest[1], "margin": margin},
                "choices": _choices(router) if report.reply else None,
                "verdict": verdict.level,
                "reasons": list(verdict.reasons),
            }
        )
    return entries


def _choices(router: Router) -> list[dict[str, Any]]:
    """Per row: the experts of the decode step, their weights, and the best expert that was not chosen."""
    following = [None if expert == NONE else int(expert) for expert in router.following[:, 0]]
    steps = zip(router.chosen[:, 0].tolist(), router.weights[:, 0].tolist(), following, strict=True)
    return [{"experts": chosen, "weights": weights, "next": next_} for chosen, weights, next_ in steps]


def _comparison(report: Report) -> dict[str, Any] | None:
    if report.comparison is None:
        return None
    first = report.comparison.first_outside
    return {
        "against": report.comparison.against,
        "steps": [asdict(difference) | {"outside": difference.outside} for difference in report.comparison.differences],
        "first_outside": None if first is None else {**asdict(first), "where": place(first.layer)},
    }


def _statistics(statistics: Statistics) -> dict[str, Any]:
    return asdict(statistics) | {"abs_max": statistics.abs_max}
