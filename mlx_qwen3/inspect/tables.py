"""A report as tables of text, which the terminal and the HTML page show."""

from collections.abc import Iterator, Sequence

from ..compare.cache_cost import CacheCost
from ..compare.comparison import Difference
from ..compare.flow import FLOW, NUMBERS
from ..table import Table, in_one_notation
from .adapters import adapter_table
from .numbers import Key
from .report import Report, describe, place
from .router_tables import other_choices, router_tables
from .rules import ABNORMAL, NORMAL, UNUSUAL, Verdict
from .statistics import Statistics
from .tensors import TensorRow, collapsed

COLUMNS = ("mean", "std", "rms", "min", "max", "NaN", "Inf")
NUMERIC = "r" * len(COLUMNS)  # the alignment of these columns
DROP = ("NaN", "Inf", "rms", "mean", "std")  # of them, on a narrow terminal; the verdict says if one is not finite
# What the table of layers shows: (heading, step, statistic)
OVERVIEW = (
    ("residual rms", "output", "rms"),
    ("q std", "q_norm", "std"),
    ("k std", "k_norm", "std"),
    ("v std", "v_heads", "std"),
    ("score std", "scores", "std"),
    ("|score| max", "scores", "abs_max"),
    ("entropy", "entropy", "mean"),
    ("on 1st token", "first_token", "mean"),
    ("|act| max", "activation", "abs_max"),
)
IN_EXPERTS = {"activation": "expert_activation"}  # the step in place of one, in a layer with experts
# The steps of a comparison without --full; in a model with experts also those of COMPARED_SPARSE
COMPARED = (
    "qkv q_norm k_norm q_rope k_rope scores softmax attention o_proj residual gate_up activation down output"
).split()
COMPARED_SPARSE = ("router_logits", "chosen_experts", "expert_down")


def tables(report: Report, full: bool = False) -> Iterator[Table]:
    """All tables of the report; `full`: every tensor by itself, and the numbers of every layer."""
    layers = range(report.config.num_hidden_layers)
    shown: Sequence[int] = layers if full else [report.options.layer]
    yield overview(report)
    for layer in shown:
        yield numbers(report, layer)
    yield after_layers(report)
    if report.options.heads:
        for layer in shown:
            yield heads(report, layer)
    yield from router_tables(report, full)
    if report.adapters:
        yield adapter_table(report.adapters)
    if report.cache_cost:
        yield quantized_cache(report.cache_cost)
    if report.comparison:
        yield comparison(report, full)
    yield flow(report)
    yield weights(report, full)


def weights(report: Report, full: bool) -> Table:
    shown = list(report.rows) if full else collapsed(report.rows)
    moments = _moments([row.statistics for row in shown])
    rows = [
        [row.name, str(list(row.shape)), row.dtype, f"{row.parameters:,}", *own, _share(row)]
        for row, own in zip(shown, moments, strict=True)
    ]
    parameters, size = sum(row.parameters for row in report.rows), sum(row.bytes for row in report.rows)
    notes = [f"total: {len(report.rows)} tensors, {parameters:,} parameters, {size / 1e9:.3f} GB"]
    notes += [f"unusual: {row.name}: {reason}" for row in report.rows for reason in row.warnings]
    notes += [f"fault: {row.name} has {row.statistics.nan} NaN, {row.statistics.inf} infinite" for row in _sick(report)]
    marked = frozenset(index for index, row in enumerate(shown) if row.sick)
    unusual = frozenset(index for index, row in enumerate(shown) if row.warnings)
    columns = ("tensor", "shape", "dtype", "parameters", *COLUMNS, "zeros")
    drop = ("zeros", "NaN", "Inf", "rms", "dtype", "parameters", "mean")
    return Table("Weights, as stored", columns, rows, "lllr" + NUMERIC + "r", marked, notes, drop, unusual)


def flow(report: Report) -> Table:
    layer, shapes = report.options.layer, report.numbers.shapes
    rows = []
    for step in FLOW:
        key: Key = (layer, step.name) if (layer, step.name) in shapes else (None, step.name)
        if key not in shapes:  # a model that was changed may lack a step
            continue
        meaning = step.meaning.format(
            scale=f"{report.scale:.4g}",
            sharing=sharing(report.config.num_attention_heads, report.config.num_key_value_heads),
        )
        rows.append([step.name, str(list(shapes[key])), step.axes, report.numbers.dtypes[key], meaning])
    title = f"Shape flow of layer {layer}, and after the last layer"
    legend = "B batch, L new tokens, S cached + new, H query heads, K key/value heads, D head_dim, V vocabulary"
    if report.config.moe:
        legend += ", E experts, k of them for each token"
    columns = ("step", "shape", "axes", "dtype", "what happens")
    return Table(title, columns, rows, "lllll", notes=(legend,), drop=("dtype", "axes"))


def numbers(report: Report, layer: int) -> Table:
    keys = [key for step in NUMBERS if (key := (layer, step.name)) in report.verdicts]
    return _statistics_table(report, f"Numbers of layer {layer}", keys, _size_notes(report, layer))


def after_layers(report: Report) -> Table:
    keys = [key for step in NUMBERS if (key := (None, step.name)) in report.verdicts]
    return _statistics_table(report, "Numbers after the last layer", keys, ())


def heads(report: Report, layer: int) -> Table:
    found = [
        (step.name, head, verdict, report.numbers.heads[(layer, step.name)][head])
        for step in NUMBERS
        for head, verdict in enumerate(report.head_verdicts.get((layer, step.name), ()))
    ]
    moments = _moments([statistics for *_, statistics in found])
    rows = [
        [step, str(head), *own, _verdict(verdict)] for (step, head, verdict, _), own in zip(found, moments, strict=True)
    ]
    return Table(
        f"Numbers of layer {layer} per head",
        ("step", "head", *COLUMNS, "verdict"),
        rows,
        "lr" + NUMERIC + "l",
        _at([verdict for _, _, verdict, _ in found], ABNORMAL),
        drop=DROP,
        unusual=_at([verdict for _, _, verdict, _ in found], UNUSUAL),
    )


def overview(report: Report) -> Table:
    rows, marked, odd = [], set(), set()
    layers = range(report.config.num_hidden_layers)
    columns = [
        in_one_notation([_statistic(report, layer, step, name) for layer in layers]) for _, step, name in OVERVIEW
    ]
    for layer in layers:
        own = [(key, verdict) for key, verdict in report.verdicts.items() if key[0] == layer]
        faults = [f"{key[1]} {verdict.level}" for key, verdict in own if verdict.level == ABNORMAL]
        unusual = [key[1] for key, verdict in own if verdict.level not in (NORMAL, ABNORMAL)]
        if faults:
            marked.add(layer)
        elif unusual:
            odd.add(layer)
        words = faults or ([f"unusual: {', '.join(unusual)}"] if unusual else [NORMAL])
        rows.append([str(layer), *(column[layer] for column in columns), "; ".join(words)])
    return Table(
        "All layers",
        ("layer", *(heading for heading, _, _ in OVERVIEW), "verdict"),
        rows,
        "r" * (len(OVERVIEW) + 1) + "l",
        frozenset(marked),
        report.rules.notes,
        ("q std", "k std", "score std", "on 1st token", "v std", "entropy", "|act| max", "|score| max"),
        frozenset(odd),
    )


def _statistic(report: Report, layer: int, step: str, statistic: str) -> float | None:
    """None if the layer does not have the step."""
    name = IN_EXPERTS.get(step, step) if layer in report.numbers.routers else step
    statistics = report.numbers.overall.get((layer, name))
    return None if statistics is None else getattr(statistics, statistic)


def quantized_cache(cost: CacheCost) -> Table:
    """Relative differences, with a row for each layer, and the difference of the logits."""
    rows = [
        [str(layer), *map(_scientific, (own.keys, own.values, own.residual))] for layer, own in enumerate(cost.layers)
    ]
    notes = (
        f"logits: KL {cost.kl_mean:.2g} nats in the mean, {cost.kl_max:.2g} at most; the best token is the same at "
        f"{cost.top1_agreement:.1%} of {cost.tokens} positions",
        f"a token takes {cost.token_bytes:,} bytes, unquantized {cost.unquantized_bytes:,}",
    )
    title = f"Cache at {cost.kv_bits} bits: relative difference from the unquantized one, ||a - b|| / ||b||"
    return Table(title, ("layer", "keys", "values", "residual"), rows, "rrrr", notes=notes)


def comparison(report: Report, full: bool) -> Table:
    """Relative differences: a row for each layer, or with `full` for each step."""
    assert report.comparison
    differences, against = report.comparison.differences, report.comparison.against
    outside = report.comparison.first_outside
    steps = (*COMPARED, *(COMPARED_SPARSE if report.numbers.routers else ()))
    verdict = describe(outside, against) if outside else f"every step of every layer is within its bound of {against}"
    notes = (*other_choices(report.comparison), verdict)
    title = f"Relative difference from {against}: ||a - b|| / ||b||"
    if full:
        rows = [[place(d.layer), d.step, relative(d), _scientific(d.bound)] for d in differences]
        outsiders = frozenset(index for index, difference in enumerate(differences) if difference.outside)
        return Table(title, ("layer", "step", "difference", "bound"), rows, "llrr", outsiders, notes)
    rows, marked = [], set()
    for layer in range(report.config.num_hidden_layers):
        own = {difference.step: difference for difference in differences if difference.layer == layer}
        if any(difference.outside for difference in own.values()):
            marked.add(layer)
        bound = _scientific(next(iter(own.values())).bound)
        rows.append([str(layer), *(relative(own[step]) if step in own else "-" for step in steps), bound])
    after = [f"{difference.step} {relative(difference)}" for difference in differences if difference.layer is None]
    columns = ("layer", *steps, "bound")
    drop = ("q_rope", "k_rope", "k_norm", "q_norm", "activation", "gate_up", "softmax", "residual")
    return Table(title, columns, rows, "r" * len(columns), frozenset(marked), (", ".join(after), *notes), drop)


def sharing(heads: int, kv_heads: int) -> str:
    """In words: which query heads read which key/value head."""
    group = heads // kv_heads
    if group == 1:
        return "every query head has a key/value head of its own"
    pairs = [f"{i * group}-{(i + 1) * group - 1} read kv head {i}" for i in range(kv_heads)]
    shown = pairs if kv_heads <= 3 else [*pairs[:2], "...", pairs[-1]]
    return f"query heads {', '.join(shown)}"


def relative(difference: Difference) -> str:
    return ("!" if difference.outside else "") + _scientific(difference.relative)


def _scientific(value: float | None) -> str:
    """A relative difference: those of one table may lie between 1e-8 and 1. None is NaN."""
    return "nan" if value is None else f"{value:.1e}" if value else "0"


def _statistics_table(report: Report, title: str, keys: Sequence[Key], notes: tuple[str, ...]) -> Table:
    moments = _moments([report.numbers.overall[key] for key in keys])
    verdicts = [report.verdicts[key] for key in keys]
    rows = [[key[1], *own, _verdict(verdict)] for key, own, verdict in zip(keys, moments, verdicts, strict=True)]
    marked, unusual = _at(verdicts, ABNORMAL), _at(verdicts, UNUSUAL)
    return Table(title, ("step", *COLUMNS, "verdict"), rows, "l" + NUMERIC + "l", marked, notes, DROP, unusual)


def _at(verdicts: Sequence[Verdict], level: str) -> frozenset[int]:
    return frozenset(index for index, verdict in enumerate(verdicts) if verdict.level == level)


def _size_notes(report: Report, layer: int) -> tuple[str, ...]:
    size = report.units[layer]
    return (
        f"judged in the size that QK-norm gives: q {size['q_norm']:.3g}, k {size['k_norm']:.3g}, "
        f"scores {size['qk_norm']:.3g} (RMS of the norm's weight, and their product)",
    )


def _moments(rows: Sequence[Statistics]) -> list[list[str]]:
    """The cells of COLUMNS for each row."""
    columns = [in_one_notation([getattr(row, name) for row in rows]) for name in ("mean", "std", "rms", "min", "max")]
    counts = [[str(row.nan) for row in rows], [str(row.inf) for row in rows]]
    return [list(cells) for cells in zip(*columns, *counts, strict=True)]


def _verdict(verdict: Verdict) -> str:
    return verdict.level if not verdict.reasons else f"{verdict.level}: {'; '.join(verdict.reasons)}"


def _share(row: TensorRow) -> str:
    return f"{row.statistics.zeros:.1%}" if row.statistics.zeros else "0"


def _sick(report: Report) -> list[TensorRow]:
    return [row for row in report.rows if row.sick]
