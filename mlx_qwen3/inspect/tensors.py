"""The weights table: every stored tensor, statistics of its values, and which layers differ from the rest."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..files.checkpoint import Checkpoint
from ..files.config import Qwen3Config
from ..files.headers import StoredTensor
from ..files.layout import Part
from ..files.names import LEAVES, bare
from ..files.packed import why_left_out
from ..files.quantization import Quantization
from ..files.values import unpacked
from ..table import spans
from .rules import Rules
from .statistics import Statistics, pooled, summarize

LAYER = re.compile(r"\blayers\.(\d+)\.")
EXPERT = re.compile(r"\bexperts\.(\d+)\.")
BLOCK = (
    "input_layernorm qkv_proj q_proj k_proj v_proj q_norm k_norm o_proj "
    "post_attention_layernorm gate gate_up_proj gate_proj up_proj down_proj"
).split()
Z_OF_MAD = 0.6745  # median absolute deviation of a normal distribution, in standard deviations


@dataclass(frozen=True)
class TensorRow:
    """One stored tensor, or the same tensor of several layers. `warnings`: how it differs from the other layers.

    A packed weight has the statistics, and the number of parameters, of its unpacked values. Scales, biases and a
    repeated lm_head count as 0 parameters.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    bytes: int
    statistics: Statistics
    layers: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def sick(self) -> bool:
        return self.statistics.nan + self.statistics.inf > 0


def read_rows(checkpoint: Checkpoint, rules: Rules) -> list[TensorRow]:
    """A row for every tensor in the files, in the order of the forward pass.

    Raises CheckpointError or ConfigError if the checkpoint is not complete.
    """
    tensors = _known(checkpoint)
    packings = _packings(checkpoint.parts.values())
    rows = [_row(tensor, tensors, packings, checkpoint.config) for tensor in sorted(tensors.values(), key=_order)]
    return with_warnings(rows, rules.settings["outliers"])


def collapsed(rows: Sequence[TensorRow]) -> list[TensorRow]:
    """One row for the same tensor of several experts and layers, if shape and dtype agree.

    Outliers and sick ones have own rows.
    """
    return _collapsed("layers", LAYER, _collapsed("experts", EXPERT, rows))


def _collapsed(word: str, pattern: re.Pattern[str], rows: Sequence[TensorRow]) -> list[TensorRow]:
    groups: dict[tuple[object, ...], list[TensorRow]] = defaultdict(list)
    for row in rows:
        alone = row.name if row.warnings or row.sick else ""
        groups[(_without_number(word, pattern, row.name), row.shape, row.dtype, alone)].append(row)
    return [_together(word, pattern, members) for members in groups.values()]


def with_warnings(rows: Sequence[TensorRow], rule: Mapping[str, float]) -> list[TensorRow]:
    """The rows with their warnings. A tensor gets one if its rms, largest value or mean is `z` robust standard
    deviations and the factor `ratio` away from the median of the layers; or if the share `zeros` of its values is 0
    and the median layer has nearly none.
    """
    kinds: dict[str, list[TensorRow]] = defaultdict(list)
    for row in rows:
        if row.layers and row.statistics.rms is not None:
            kinds[_kind(row.name)].append(row)
    warnings: dict[str, tuple[str, ...]] = {}
    for members in kinds.values():
        if len(members) >= rule["layers"]:
            others = "experts" if EXPERT.search(members[0].name) else "layers"
            found = _outliers([row.statistics for row in members], others, rule)
            warnings |= {members[index].name: tuple(reasons) for index, reasons in found.items()}
    return [replace(row, warnings=warnings.get(row.name, ())) for row in rows]


def _outliers(statistics: Sequence[Statistics], others: str, rule: Mapping[str, float]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    rms = np.array([s.rms for s in statistics])
    largest = np.array([s.abs_max for s in statistics])
    for name, values in (("rms", rms), ("largest value", largest)):
        for index, z in _far(np.log(np.maximum(values, 1e-30)), math.log(rule["ratio"]), rule["z"]):
            found[index].append(
                f"{name} {values[index]:.3g}, median of the {others} {np.median(values):.3g}, z {z:.0f}"
            )
    means = np.array([s.mean for s in statistics])
    for index, z in _far(means / max(float(np.median(rms)), 1e-30), rule["ratio"] - 1, rule["z"]):
        found[index].append(f"mean {means[index]:.3g}, median of the {others} {np.median(means):.3g}, z {z:.0f}")
    zeros = np.array([s.zeros for s in statistics])
    for index in map(int, np.flatnonzero((zeros >= rule["zeros"]) & (np.median(zeros) < rule["zeros"] / 10))):
        found[index].append(f"{zeros[index]:.0%} zeros, median of the {others} {np.median(zeros):.1%}")
    return found


def _far(values: np.ndarray, distance: float, limit: float) -> Iterator[tuple[int, float]]:
    """(index, robust z-score) of values far from the median: 0.6745 (x - median) / MAD (Iglewicz and Hoaglin)."""
    off = np.abs(values - np.median(values))
    z = Z_OF_MAD * off / max(float(np.median(off)), 0.01)  # differences of up to 1 % between layers do not count
    for index in np.flatnonzero((z > limit) & (off > distance)):
        yield int(index), float(z[index])


def _known(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """The tensors of the files by name; those of an FP8, AWQ or GPTQ release as they are loaded."""
    leaves = [leaf for part in checkpoint.parts.values() for leaf in part.leaves.values() if leaf.made]
    gone = {name for leaf in leaves for name in leaf.sources} | {n for n in checkpoint.tensors if why_left_out(n)}
    others = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in gone}
    return others | {leaf.name: leaf for leaf in leaves}


def _packings(parts: Iterable[Part]) -> dict[str, Quantization]:
    """The packing of every packed tensor, by its name in the files."""
    return {part.leaves["weight"].name: part.quantization for part in parts if part.quantization}


def _row(
    tensor: StoredTensor,
    tensors: Mapping[str, StoredTensor],
    packings: Mapping[str, Quantization],
    config: Qwen3Config,
) -> TensorRow:
    packing = packings.get(tensor.name)
    base = tensor.name.removesuffix(".weight")
    names = LEAVES if packing else ("weight",)
    leaves = {leaf: tensors[f"{base}.{leaf}"] for leaf in names if f"{base}.{leaf}" in tensors}
    values = unpacked(leaves if packing else {"weight": tensor}, packing)
    repeats = config.tie_word_embeddings and "lm_head." in tensor.name
    parameters = 0 if repeats or not bare(tensor.name).endswith(".weight") else math.prod(values.shape)
    layers = tuple(int(index) for index in LAYER.findall(tensor.name)[:1])
    shape, dtype = tensor.shape, tensor.dtype_name
    return TensorRow(tensor.name, shape, dtype, parameters, tensor.kept_bytes, summarize(values), layers)


def _together(word: str, pattern: re.Pattern[str], members: Sequence[TensorRow]) -> TensorRow:
    first = members[0]
    if len(members) == 1:
        return first
    numbers = sorted(int(number) for row in members for number in pattern.findall(row.name))
    return replace(
        first,
        name=pattern.sub(lambda _: f"{word}.{{{spans(numbers)}}}.", first.name, count=1),
        parameters=sum(row.parameters for row in members),
        bytes=sum(row.bytes for row in members),
        statistics=pooled([row.statistics for row in members]),
        layers=tuple(sorted({layer for row in members for layer in row.layers})),
    )


def _kind(name: str) -> str:
    """What the same tensor of all layers and experts has in common."""
    return _without_number("experts", EXPERT, _without_number("layers", LAYER, name))


def _without_number(word: str, pattern: re.Pattern[str], name: str) -> str:
    return pattern.sub(f"{word}.*.", name, count=1)


def _order(tensor: StoredTensor) -> tuple[object, ...]:
    """The embedding first, then layer by layer in the order of the forward pass, then the rest."""
    found, name = LAYER.search(tensor.name), bare(tensor.name)
    if not found:
        return (0 if "embed_tokens" in name else 2), 0, 0, name
    place = next((index for index, part in enumerate(BLOCK) if f".{part}." in name), len(BLOCK))
    expert = EXPERT.search(name)
    return 1, int(found[1]), place, int(expert[1]) if expert else 0, LEAVES.index(name.rpartition(".")[2])
