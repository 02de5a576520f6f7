"""What people see of a conversion: five lines, or with all tensors and checksums."""

import re
import shlex
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

from ..compare.divergence import BUILT_IN, Divergence
from ..files.dtypes import NAMES
from ..table import EMPHASIS, GOOD, WARNING, Line, Part, Table, in_one_notation, spans
from .certificate import Certificate
from .plan import Plan
from .shards import TensorRecord
from .transform import OutputTensor

Member = TypeVar("Member")
BESIDE = (".scales", ".biases")  # of a packed weight, made with it
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a layer or an expert in the name of a tensor


def certified(made: Certificate) -> list[Part]:
    """What was made, where, how large, how far from the source, and what to run next."""
    next_command = f"mlx-qwen3 generate --model {shlex.quote(made.out)} --prompt 'What is 17 + 25?'"
    return [
        _made(made.quantize, made.layout, made.dtype, len(made.tensors)),
        f"in      {made.out}",
        *(f"merged  {adapter.asked}, {adapter.kind}" for adapter in made.adapters),
        _size(made.source_bytes, made.bytes, made.bits_per_weight),
        difference(made.divergence),
        f"next    {next_command}",
    ]


def planned(plan: Plan) -> list[Part]:
    """The same of a plan, which has made nothing yet."""
    tensors = sum(len(shard.tensors) for shard in plan.shards)
    return [
        _made(plan.options.quantize, plan.options.layout, plan.dtype, tensors),
        _size(plan.source_bytes, plan.bytes, plan.bits_per_weight),
        f"files   {len(plan.shards)}",
        *(f"merged  {adapter}" for adapter in plan.options.adapters),
        Line("nothing was written", WARNING),
    ]


def _made(quantize: str | None, layout: str, dtype: str, tensors: int) -> Line:
    packed = "" if quantize in (None, "none") else f"{quantize}, "
    return Line(f"made    {packed}{dtype}, layout {layout}, {tensors} tensors", EMPHASIS)


def _size(before: int, after: int, bits: float) -> Line:
    unit, name = (1e9, "GB") if max(before, after) >= 1e9 else (1e6, "MB")
    return Line(f"size    {after / unit:.2f} {name}, was {before / unit:.2f} {name}; {bits:.3f} bits per weight")


def difference(divergence: Divergence | None) -> Line:
    """How far the result is from its source, by what can be judged: the next token that it would choose."""
    if divergence is None:
        return Line("differs not measured", WARNING)
    tokens = sum(len(ids) for ids in divergence.sequences)
    if divergence.logits_max == 0:
        return Line(f"differs nowhere: the logits of {tokens} tokens are equal", GOOD)
    other = f"in {1 - divergence.top1_agreement:.1%} of {tokens} next tokens"
    return Line(f"differs {other}; KL divergence {divergence.kl_mean:.3g} nats on average")


def certified_in_full(made: Certificate) -> list[Part]:
    """Every tensor with its error, the checksums, every figure of the divergence; then the five lines."""
    whole = [record for record in made.tensors if not record.name.endswith(BESIDE)]
    groups = _groups((_key(record), record) for record in whole)
    largest, relative = (
        in_one_notation([max((getattr(r.error, name) for r in g if r.error), default=None) for g in groups])
        for name in ("max", "relative")
    )
    rows = [
        (_name([r.name for r in group]), str(len(group)), str(list(group[0].shape)), group[0].dtype, _how(group[0]), *e)
        for group, *e in zip(groups, largest, relative, map(_worst, groups), strict=True)
    ]
    columns = ("tensor", "n", "shape", "dtype", "made", "max error", "relative", "worst row")
    drop = ("n", "dtype", "max error", "worst row")
    parts: list[Part] = [Table("Tensors", columns, rows, "lrlll..l", drop=drop), "", groups_table(made), ""]
    parts += [f"left out: {name} ({why})" for name, why in made.dropped.items()]
    for title, files in (("source", made.source_files), ("result", made.files)):
        checksums = [(name, f"{file.bytes:,}", file.sha256) for name, file in files.items()]
        parts += [Table(f"Files of the {title}", ("file", "bytes", "sha256"), checksums, "lrl", drop=("bytes",)), ""]
    parts += [divergence_table(made.divergence), ""] if made.divergence else []
    return [*parts, *certified(made)]


def groups_table(made: Certificate) -> Table:
    """How large each kind of part is, and which tensor or expert of it lost most."""
    errors = in_one_notation([group.relative for group in made.groups.values()])
    rows = [
        (
            kind,
            f"{group.bytes:,}",
            f"{group.bytes / made.bytes:.1%}",
            f"{group.bits_per_weight:.3f}",
            error,
            group.worst,
        )
        for (kind, group), error in zip(made.groups.items(), errors, strict=True)
    ]
    columns = ("part", "bytes", "share", "bits per weight", "error", "of")
    return Table(
        "Parts, with the largest relative error of a tensor or an expert", columns, rows, "lrr..l", drop=("share",)
    )


def planned_in_full(plan: Plan) -> list[Part]:
    """Every tensor and file that would be written; then what `planned` gives."""
    rows = []
    for group in _groups((_key(tensor), tensor) for shard in plan.shards for tensor in shard.tensors):
        name, first = _name([tensor.name for tensor in group]), group[0]
        rows.append((name, str(len(group)), str(list(first.shape)), NAMES[first.dtype], _how(first)))
    table = Table("Tensors", ("tensor", "n", "shape", "dtype", "made"), rows, "lrlll", drop=("dtype", "n"))
    files = [(shard.file, f"{shard.nbytes:,}") for shard in plan.shards]
    dropped = [f"left out: {name} ({why})" for name, why in plan.dropped.items()]
    return [table, "", *dropped, Table("Files", ("file", "bytes"), files, "lr"), "", *planned(plan)]


def divergence_table(divergence: Divergence) -> Table:
    """Every figure that can be judged. The perplexity of the built-in text, which is odd on purpose, cannot."""
    tokens = sum(len(ids) for ids in divergence.sequences)
    rows = [
        ("largest difference of a logit", f"{divergence.logits_max:.3g}"),
        ("relative norm of the differences", f"{divergence.logits_relative:.3g}"),
        ("KL divergence in nats, mean", f"{divergence.kl_mean:.3g}"),
        ("KL divergence in nats, 99th percentile", f"{divergence.kl_p99:.3g}"),
        ("same next token", f"{divergence.top1_agreement:.2%}"),
    ]
    ratio = divergence.perplexity_ratio
    if ratio is not None and divergence.text != BUILT_IN:
        rows += [
            ("perplexity of the source", f"{divergence.source_perplexity:.4g}"),
            ("perplexity of the result", f"{divergence.perplexity:.4g}"),
            ("ratio of the perplexities", f"{ratio:.4f}"),
        ]
    text = f"fixed ids and the {divergence.text} text" if divergence.text else "fixed ids; no tokenizer, so no text"
    note = f"computed in float32 on {tokens} tokens: {text}"
    return Table("Difference from the source", ("figure", "value"), rows, "l.", notes=(note,))


def _key(tensor: TensorRecord | OutputTensor) -> Hashable:
    return NUMBER.sub("*", tensor.name), tuple(tensor.shape), tensor.dtype, tensor.made, tensor.note


def _groups(members: Iterable[tuple[Hashable, Member]]) -> list[list[Member]]:
    """Those with the same key together, in the order of the first of each."""
    found: dict[Hashable, list[Member]] = defaultdict(list)
    for key, member in members:
        found[key].append(member)
    return list(found.values())


def _name(names: Sequence[str]) -> str:
    """One name for several that differ in their numbers: layers.{0-27}.mlp.down_proj.weight."""
    numbers = [sorted(set(map(int, column))) for column in zip(*map(NUMBER.findall, names), strict=True)]
    shown = iter(f"{{{spans(column)}}}" if len(column) > 1 else str(column[0]) for column in numbers)
    return NUMBER.sub(lambda _: next(shown), names[0])


def _how(tensor: TensorRecord | OutputTensor) -> str:
    return f"{tensor.made} ({tensor.note})" if tensor.note else tensor.made


def _worst(group: Sequence[TensorRecord]) -> str:
    errors = [(r.error.worst_row_relative, r.name, r.error.worst_row) for r in group if r.error]
    if not errors:
        return "-"
    share, name, row = max(errors)
    numbers = NUMBER.findall(name)
    return f"{'layer ' + numbers[0] + ', ' if len(group) > 1 and numbers else ''}{row}: {share:.3f}"
