"""The parts of a model by kind: how large each kind is in a result, and which of its tensors or experts lost most."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from ..files.config import Qwen3Config
from ..files.names import part_shapes
from .shards import TensorRecord

# kind -> what the name of a part contains; the first that fits
KINDS = {
    "norms": re.compile(r"norm$"),
    "embedding and output": re.compile(r"^(embed_tokens|lm_head)$"),
    "attention": re.compile(r"\.self_attn\."),
    "routers": re.compile(r"\.mlp\.gate$"),
    "experts": re.compile(r"\.mlp\.(experts|switch_mlp)\."),
    "MLP": re.compile(r"\.mlp\."),
}


@dataclass(frozen=True)
class Group:
    """All parts of a kind. `relative` is the largest error of a tensor or of an expert in a stack; `worst` names it."""

    weights: int
    bytes: int  # in the result, with scales and biases
    relative: float | None  # None if no value can have changed
    worst: str

    @property
    def bits_per_weight(self) -> float:
        return self.bytes * 8 / self.weights


def groups(records: Sequence[TensorRecord], config: Qwen3Config) -> dict[str, Group]:
    """The kinds of a result, without those that it does not have."""
    weights, sizes = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    errors: dict[str, list[tuple[float, str]]] = {kind: [] for kind in KINDS}
    for name, shape in part_shapes(config).items():
        weights[_kind(name)] += prod(shape)
    for record in records:
        kind = _kind(record.name.removeprefix("model.").rpartition(".")[0])
        sizes[kind] += record.bytes
        errors[kind] += _errors(record)
    worst = {kind: max(found, default=(None, "")) for kind, found in errors.items()}
    return {kind: Group(weights[kind], sizes[kind], *worst[kind]) for kind in KINDS if weights[kind]}


def _kind(part: str) -> str:
    return next(kind for kind, pattern in KINDS.items() if pattern.search(part))


def _errors(record: TensorRecord) -> Iterator[tuple[float, str]]:
    """The error of a tensor, or that of each expert in it."""
    if record.error is None:
        return
    if record.error.experts:
        yield from ((error, f"{record.name}, expert {e}") for e, error in enumerate(record.error.experts))
    else:
        yield record.error.relative, record.name
