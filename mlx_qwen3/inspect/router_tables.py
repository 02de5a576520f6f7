"""The routers of a report as tables: the load of the experts, or the choices of a decode step."""

from collections.abc import Iterator, Mapping

from ..compare.comparison import Comparison
from ..compare.experts import CHOSEN
from ..table import Table, in_one_notation, spans
from .report import Report, choice_in_words, place
from .router import HIGH, LOW, NONE, Router, enough
from .rules import UNUSUAL

FEW = 16  # experts that are shown in detail unless all are asked for
BAR = 24  # characters of the longest bar
NAMED = 60  # characters of the numbers of experts in a note

DROP = ("entropy", f"{LOW:g} to {HIGH:g}", f"above {HIGH:g}", f"below {LOW:g}")


def router_tables(report: Report, full: bool) -> Iterator[Table]:
    """Nothing for a dense model."""
    routers = report.numbers.routers
    if not routers:
        return
    if report.numbers.length == 1:
        yield choices(report)
        return
    yield loads(report)
    for layer in routers if full else [report.options.layer]:
        if layer in routers:
            yield experts(report, layer, full)


def loads(report: Report) -> Table:
    """A row for each layer with experts."""
    routers, nearness = report.numbers.routers, report.rules.settings["router"]["near_tie"]
    entropies = in_one_notation([router.entropy for router in routers.values()])
    evenness = in_one_notation([router.evenness for router in routers.values()])
    rows = [
        [
            *(str(layer), str(router.busiest), f"{router.busiest_share:.1%}", *map(str, router.histogram)),
            *(entropy, even, f"{router.near_ties(nearness) / router.tokens:.1%}"),
        ]
        for (layer, router), entropy, even in zip(routers.items(), entropies, evenness, strict=True)
    ]
    columns = (
        *("layer", "busiest", "its share", "unused", f"below {LOW:g}", f"{LOW:g} to {HIGH:g}", f"above {HIGH:g}"),
        *("entropy", "evenness", "near ties"),
    )
    unusual = frozenset(index for index, layer in enumerate(routers) if report.verdicts[layer, CHOSEN].level == UNUSUAL)
    title = "Router load: tokens for each expert, layer by layer"
    return Table(title, columns, rows, "rrrrrrr..r", notes=tuple(_load_notes(report)), drop=DROP, unusual=unusual)


def _load_notes(report: Report) -> Iterator[str]:
    routers = report.numbers.routers
    router = next(iter(routers.values()))
    yield (
        f"{router.tokens} tokens, {router.for_each} of {router.experts} experts for each: an even share is "
        f"{router.for_each / router.experts:.1%} of the tokens, {router.even:.3g}"
    )
    yield (
        f"unused, below {LOW:g}, {LOW:g} to {HIGH:g}, above {HIGH:g}: how many experts have no token, or so many times "
        "the even share. evenness: 0 if all tokens have the same experts, 1 if all experts have the same load"
    )
    yield (
        "near ties: tokens whose next expert is less probable than the last chosen one by at most "
        f"{report.rules.settings['router']['near_tie']:.1%}; rounding can change their choice"
    )
    if closest := _closest(routers):
        layer, row, token, margin = closest
        yield f"closest choice: layer {layer}, token {token} of row {row}, {margin:.2g} between the two probabilities"
    if not enough(router, report.rules):
        least = report.rules.settings["router"]["tokens"]
        yield f"loads are not judged: an even share is less than {least:g} tokens; give a longer prompt"
        return
    for layer in routers:
        yield from (f"unusual: layer {layer}: {reason}" for reason in report.verdicts[layer, CHOSEN].reasons)
    for layer, router in routers.items():
        if router.unused:
            yield f"layer {layer}: no token for {_named(router.unused)}"


def _named(numbers: list[int]) -> str:
    text = f"expert{'s' * (len(numbers) > 1)} {spans(numbers).replace(',', ', ')}"
    return text if len(text) <= NAMED else text[: text.rindex(",", 0, NAMED)] + f" and more, {len(numbers)} in all"


def _closest(routers: Mapping[int, Router]) -> tuple[int, int, int, float] | None:
    """(layer, row, token, margin) of the smallest margin in all layers."""
    found = [
        (float(router.margins[place]), layer, *place)
        for layer, router in routers.items()
        if (place := router.closest) is not None
    ]
    if not found:
        return None
    margin, layer, row, token = min(found)
    return layer, row, token, margin


def experts(report: Report, layer: int, full: bool) -> Table:
    """A row for each expert of a layer, the busiest first; without `full`, only of some."""
    router = report.numbers.routers[layer]
    order = sorted(range(router.experts), key=lambda expert: -router.load[expert])
    shown = order if full else order[:FEW]
    largest = int(router.load.max())
    rows = [
        [
            *(str(expert), str(router.load[expert]), f"{router.load[expert] / router.tokens:.1%}"),
            *(f"{router.mean_weights[expert]:.3f}", "#" * round(BAR * int(router.load[expert]) / largest)),
        ]
        for expert in shown
    ]
    rest = sum(int(router.load[expert]) for expert in order[len(shown) :])
    notes = ["weight: the mean factor of the expert's output"]
    if len(shown) < len(order):
        notes.append(f"the other {len(order) - len(shown)} experts have {rest} tokens together; --full shows all")
    title = f"Experts of layer {layer}, the busiest first"
    return Table(title, ("expert", "tokens", "share", "weight", "load"), rows, "rrrrl", notes=tuple(notes))


def choices(report: Report) -> Table:
    """A row for each layer and each token of a decode step: its experts and their weights, and the next expert."""
    rows = []
    for layer, router in report.numbers.routers.items():
        for row in range(len(router.chosen)):
            order = (-router.weights[row, 0]).argsort(kind="stable")
            pairs = zip(router.chosen[row, 0][order], router.weights[row, 0][order], strict=True)
            words = ", ".join(f"{expert} ({weight:.3f})" for expert, weight in pairs)
            following = int(router.following[row, 0])
            margin = f"{router.margins[row, 0]:.2g}" if following != NONE else "-"
            rows.append([str(layer), str(row), words, str(following) if following != NONE else "-", margin])
    notes = (
        "weight: the factor of the expert's output. next: the best expert that was not chosen. margin: its probability "
        "is so much smaller than that of the last chosen one",
    )
    title = "Router of this step: the chosen experts and their weights"
    return Table(title, ("layer", "row", "experts", "next", "margin"), rows, "rrlrr", notes=notes, drop=("row",))


def other_choices(comparison: Comparison) -> Iterator[str]:
    """The first token that goes to another expert, also if the sides only decide a near tie differently."""
    found = [difference for difference in comparison.differences if difference.choice]
    if not found or not (choice := found[0].choice):
        return
    near = "" if found[0].outside else "; the difference of router_logits is large enough for that: a near tie"
    yield f"first other choice: {place(found[0].layer)}: {choice_in_words(choice, comparison.against)}{near}"
    most = max(difference.relative or 0 for difference in found)
    yield f"{len(found)} layers choose other experts for some tokens, at most {most:.2%} of the choices of a layer"
