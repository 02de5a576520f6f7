"""`inspect` from SOURCE to report: weights, one watched forward pass, verdicts, and a comparison if it is asked for."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlx.core as mx

from ..compare.bounds import step_bound
from ..compare.cache_cost import CacheCost, cache_cost
from ..compare.comparison import Comparison, Difference, check_same_shape, differences
from ..compare.experts import CHOSEN, Choice
from ..compare.flow import NUMBERS
from ..compare.layer_steps import LayerSteps
from ..compare.steps import (
    REFERENCE,
    TRANSFORMERS,
    check_installed,
    decode_steps,
    last_token,
    model_steps,
    reference_steps,
    transformers_steps,
)
from ..errors import HealthError
from ..files.adapted import AdaptedCheckpoint
from ..files.adapters import open_adapter
from ..files.checkpoint import Checkpoint
from ..files.config import Qwen3Config
from ..files.dtypes import dtype_name
from ..files.hub import resolve
from ..model.load import load_model
from ..model.qwen3 import Qwen3
from .adapters import AdapterRow, adapter_rows
from .numbers import Key, Numbers, measure, measure_step
from .options import Options, check_options
from .router import judge_router
from .rules import ABNORMAL, Rules, Verdict, judge, load_rules, typical, units
from .tensors import TensorRow, read_rows
from .tokens import Prompts, Reply, prompts_for, reply_to, token_texts

# What `--against` can compare with besides another SOURCE; both use the weights of the same folder.
PEERS: dict[str, Callable[[Checkpoint, mx.array], Iterator[LayerSteps]]] = {
    REFERENCE: reference_steps,
    TRANSFORMERS: transformers_steps,
}


@dataclass(frozen=True)
class Fault:
    """A number past its limit, or a weight that is not finite; `layer` is None outside the layers."""

    layer: int | None
    step: str
    reasons: tuple[str, ...]
    head: int | None = None

    def __str__(self) -> str:
        head = "" if self.head is None else f", head {self.head}"
        return f"{place(self.layer)}, {self.step}{head}: {'; '.join(self.reasons)}"


@dataclass(frozen=True)
class Peak:
    """The largest magnitude of a step, for float16."""

    layer: int | None
    step: str
    value: float


@dataclass(frozen=True)
class Report:
    source: str
    config: Qwen3Config
    options: Options
    rules: Rules
    dtype: str
    device: str
    tokens: str  # what went through the model, in words
    texts: tuple[str, ...]  # of the S tokens of the first row; empty without a tokenizer
    reply: Reply | None  # before and after the decode step that is shown
    rows: tuple[TensorRow, ...]
    adapters: tuple[AdapterRow, ...]
    numbers: Numbers
    verdicts: Mapping[Key, Verdict]
    head_verdicts: Mapping[Key, Sequence[Verdict]]
    units: Sequence[Mapping[str, float]]  # per layer: the size that QK-norm gives to q, k and scores
    peaks: tuple[Peak, ...]  # the largest first
    comparison: Comparison | None
    cache_cost: CacheCost | None
    scale: float  # of q.k in the chosen layer

    @property
    def faults(self) -> list[Fault]:
        """First those of the stored tensors, then those of the forward pass, in its order."""
        found = [
            Fault(row.layers[0] if row.layers else None, row.name, _not_finite(row)) for row in self.rows if row.sick
        ]
        for layer in (*range(self.config.num_hidden_layers), None):
            for step in NUMBERS:
                key = (layer, step.name)
                if key in self.verdicts and self.verdicts[key].level == ABNORMAL:
                    found.append(Fault(layer, step.name, self.verdicts[key].reasons))
                for head, verdict in enumerate(self.head_verdicts.get(key, ())):
                    if verdict.level == ABNORMAL:
                        found.append(Fault(layer, step.name, verdict.reasons, head))
        return found

    @property
    def first_fault(self) -> Fault | None:
        """The first fault of the forward pass; if that has none, the first of the stored tensors."""
        faults = self.faults
        steps = {step.name for step in NUMBERS}
        return next((fault for fault in faults if fault.step in steps), faults[0] if faults else None)

    @property
    def complaint(self) -> str | None:
        """One line that says what is wrong; None if nothing is."""
        if fault := self.first_fault:
            return f"first fault in {fault}"
        if self.comparison and (outside := self.comparison.first_outside):
            return describe(outside, self.comparison.against)
        return None

    def raise_for_fault(self) -> None:
        """Raises HealthError if a number is past its limit, or a step past the bound of the comparison."""
        if self.complaint:
            raise HealthError(self.complaint)


def inspect(source: str | Path, options: Options) -> Report:
    """Measure the checkpoint `source` (any SOURCE): its tensors, and one forward pass of its model.

    The pass is that of the prompt, or with `options.decode` a decode step.

    Raises a Qwen3Error for options that do not fit, and for a source that cannot be loaded.
    """
    rules = load_rules(options.rules)
    checkpoint = Checkpoint(resolve(source))
    config = checkpoint.config
    check_options(options, config)
    adapters = [open_adapter(adapter, config) for adapter in options.adapters]
    other = _other(options.against, config, str(source))
    prompts = prompts_for(checkpoint, options)
    rows = read_rows(checkpoint, rules)
    model = load_model(checkpoint, options.dtype, adapters)
    reply = reply_to(model, prompts, options) if options.decode else None
    numbers = _measure(model, prompts, reply, options)
    sizes = [units(model, layer, rules) for layer in range(config.num_hidden_layers)]
    known = {key: _sizes(numbers, sizes, rules, key) for key in numbers.overall}
    verdicts = {key: judge(key[1], s, rules, known[key]) for key, s in numbers.overall.items()}
    verdicts |= {(layer, CHOSEN): judge_router(router, rules) for layer, router in numbers.routers.items()}
    head_verdicts = {
        key: [judge(key[1], s, rules, known[key]) for s in heads]
        for key, heads in (numbers.heads if options.heads else {}).items()
    }
    merged = AdaptedCheckpoint(checkpoint, adapters) if adapters else checkpoint
    comparison = _compare(model, merged, other, prompts, reply, rules, options) if options.against else None
    return Report(
        source=str(source),
        config=config,
        options=options,
        rules=rules,
        dtype=dtype_name(model.norm.weight.dtype),
        device=str(mx.default_device().type).removeprefix("DeviceType."),
        tokens=_words(prompts, reply),
        texts=token_texts(prompts, reply),
        reply=reply,
        rows=tuple(rows),
        adapters=tuple(adapter_rows(checkpoint, adapters)),
        numbers=numbers,
        verdicts=verdicts,
        head_verdicts=head_verdicts,
        units=sizes,
        peaks=tuple(_peaks(rows, numbers)),
        comparison=comparison,
        cache_cost=_cache_cost(model, prompts, reply, options) if options.kv_bits is not None else None,
        scale=model.layers[options.layer].self_attn.scale,
    )


def _measure(model: Qwen3, prompts: Prompts, reply: Reply | None, options: Options) -> Numbers:
    shown = {"layer": options.layer, "head": options.head}
    if reply is None:
        return measure(model, prompts.ids, **shown)
    return measure_step(model, prompts.ids, mx.array(reply.tokens), **shown)


def _cache_cost(model: Qwen3, prompts: Prompts, reply: Reply | None, options: Options) -> CacheCost:
    assert options.kv_bits is not None
    ids = prompts.ids if reply is None else mx.concatenate([prompts.ids, mx.array(reply.tokens)], axis=1)
    return cache_cost(model, [ids], options.kv_bits)


def _words(prompts: Prompts, reply: Reply | None) -> str:
    """What went through the model, in words."""
    if reply is None:
        return prompts.words
    count = len(reply.tokens[0])
    return f"the decode step after {count} token{'s' * (count > 1)} of the reply to {prompts.words}"


def describe(difference: Difference, against: str) -> str:
    """A difference outside its bound, in words."""
    where = f"{place(difference.layer)}, {difference.step}"
    if difference.expert is not None:
        where += f" of expert {difference.expert}"
    if difference.choice is not None:
        return f"first difference from {against} in {where}: {choice_in_words(difference.choice, against)}"
    if difference.relative is None:
        return f"first difference from {against} in {where}: NaN or infinite on one side"
    return f"first difference from {against} in {where}: {difference.relative:.2g}, bound {difference.bound:.2g}"


def choice_in_words(choice: Choice, against: str) -> str:
    where = f"token {choice.token} of row {choice.row}"
    return f"{where} goes to expert {choice.expert}, in {against} to expert {choice.other}"


def place(layer: int | None) -> str:
    return "after the layers" if layer is None else f"layer {layer}"


def _other(against: str | None, config: Qwen3Config, source: str) -> Checkpoint | None:
    if against is None:
        return None
    if against in PEERS:
        check_installed(against, f"--against {against}")
        return None
    other = Checkpoint(resolve(against))
    check_same_shape(config, other.config, source, against)
    return other


def _compare(
    model: Qwen3,
    checkpoint: Checkpoint,
    other: Checkpoint | None,
    prompts: Prompts,
    reply: Reply | None,
    rules: Rules,
    options: Options,
) -> Comparison:
    """Both sides get the same tokens. The other side has no decode step: the last token of a full pass is used."""
    bounds, against, ids = rules.settings["compare"], str(options.against), prompts.ids
    steps, fed = partial(model_steps, ids=ids), ids
    if reply:
        tokens = mx.array(reply.tokens)
        steps, fed = partial(decode_steps, ids=ids, tokens=tokens), mx.concatenate([ids, tokens], axis=1)
    if other is None:
        theirs = PEERS[against](checkpoint, fed)
        theirs = last_token(theirs) if reply else theirs
        bound = step_bound(bounds, model, same_weights=True)
    else:
        second = load_model(other, options.dtype)
        theirs = steps(second)
        bound = step_bound(bounds, model, second)
    return Comparison(against, tuple(differences(steps(model), theirs, bound, bounds["growth"])))


def _sizes(numbers: Numbers, units: Sequence[Mapping[str, float]], rules: Rules, key: Key) -> Mapping[str, float]:
    """The sizes in which one quantity of one layer is judged."""
    layer, step = key
    if layer is None:
        return {}
    layers = [numbers.overall[(i, step)] for i in range(len(units)) if (i, step) in numbers.overall]
    return {**units[layer], "layers": typical(layers, rules)}


def _peaks(rows: Sequence[TensorRow], numbers: Numbers) -> Iterator[Peak]:
    seen = [(row.layers[0] if row.layers else None, row.name, row.statistics) for row in rows]
    seen += [(*key, statistics) for key, statistics in numbers.overall.items()]
    peaks = [
        Peak(layer, step, math.inf if statistics.inf else statistics.abs_max or 0.0) for layer, step, statistics in seen
    ]
    yield from sorted(peaks, key=lambda peak: -peak.value)


def _not_finite(row: TensorRow) -> tuple[str, ...]:
    counts = ((row.statistics.nan, "NaN"), (row.statistics.inf, "infinite"))
    return tuple(f"{count} {word}" for count, word in counts if count)
