"""A model with adapters: another `Qwen3` that shares the arrays of its base.

All changes of a matrix W have one form, y = gain * (W x) + b (a x); see low_rank.py. LoRA has no gain, and the ranks of
several adapters add up. DoRA multiplies gain and b by a ratio for each row: the trained norm over the norm of the row
of W with this adapter's change. In a fused matrix each part has columns of b of its own.

r rank
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from ..files.adapter_reader import EMBEDDING, HEAD
from ..files.adapters import Adapter
from ..files.names import EXPERT_MAP, LEAVES, NAME_MAP, Fusion, fusions
from ..files.values import Floats, cast, float32_of, floats_of, to_mlx
from .linear import ConcatLinear, Embedding, Linear
from .low_rank import AdaptedEmbedding, AdaptedExpertLinear, AdaptedLinear, InputAndOutput, TiedOutput
from .qwen3 import Qwen3, RMSNorm

BLOCK_ROWS = 1 << 12  # of a matrix whose norms are computed at a time
Rows = Callable[[int, int], mx.array]  # (first row, number of rows) -> their weights


def adapted(model: Qwen3, adapters: Sequence[Adapter]) -> Qwen3:
    """The model with these adapters, merged in this order, as another object. `model` does not change.

    The adapters are opened for `model.config`. Their arrays have the dtype in which the model computes, and are
    evaluated here. Raises CheckpointError if a file has become shorter or float16 cannot hold a value.
    """
    if not adapters:
        return model
    made: Qwen3 = _copied(model)
    for name, module in _Changes(model, adapters).modules():
        mx.eval(module.parameters())
        made.update_modules(tree_unflatten([(name, module)]))
    if model.fingerprint is not None:
        names = " ".join((model.fingerprint, *(adapter.fingerprint for adapter in adapters)))
        made.fingerprint = hashlib.sha256(names.encode()).hexdigest()
    return made


def _copied(value: Any) -> Any:
    """A copy of a module that holds other modules, which are copied too if they hold modules. Leaves are shared."""
    if isinstance(value, list):
        return [_copied(item) for item in value]
    if not isinstance(value, nn.Module) or not value.children():
        return value
    made = type(value).__new__(type(value))
    made.__dict__.update(value.__dict__)
    dict.update(made, {name: _copied(item) for name, item in value.items()})
    return made


@dataclass(frozen=True)
class _Change:
    """All changes of one part: a (r, inputs), b (outputs, r), gain (outputs,)."""

    a: Floats
    b: Floats
    gain: Floats | None = None

    def and_then(self, a: Floats, b: Floats, magnitude: Floats | None, rows: Rows) -> "_Change":
        """With one more adapter. `rows` are those of W, needed for DoRA."""
        ratio = None if magnitude is None else magnitude / _norms(rows, a, b)
        a, b = np.concatenate([self.a, a]), np.concatenate([self.b, b], axis=1)
        if ratio is None:
            return _Change(a, b, self.gain)
        return _Change(a, b * ratio[:, None], ratio if self.gain is None else ratio * self.gain)


class _Changes:
    """The modules that take the place of those of `model`."""

    def __init__(self, model: Qwen3, adapters: Sequence[Adapter]):
        self._model, self._adapters = model, adapters
        self._shapes = adapters[0].shapes
        self._left = {part for adapter in adapters for part in (*adapter.low_rank, *adapter.whole)}

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Each module by its name in the model."""
        config = self._model.config
        for fusion in fusions(config, EXPERT_MAP).values():
            if self._take(fusion.parts):
                yield fusion.name, self._experts(fusion)
        for fusion in fusions(config, NAME_MAP).values():
            if self._take(fusion.parts):
                yield fusion.name, self._projection(fusion.name, fusion.parts)
        tied = config.tie_word_embeddings
        if self._take((EMBEDDING, HEAD) if tied else (EMBEDDING,)):
            yield EMBEDDING, self._tied() if tied else self._embedding()
        for part in sorted(self._left):
            yield part, self._norm(part) if len(self._shapes[part]) == 1 else self._projection(part, (part,))

    def _take(self, parts: Sequence[str]) -> bool:
        """Whether one of these parts changes."""
        found = self._left & set(parts)
        self._left -= found
        return bool(found)

    def _projection(self, name: str, parts: Sequence[str]) -> nn.Module:
        base, heights = _at(self._model, name), [self._shapes[part][0] for part in parts]
        firsts = [sum(heights[:index]) for index in range(len(parts))]
        weights = [self._whole(part) for part in parts]
        if any(weight is not None for weight in weights):
            base = _joined(
                [
                    _linear(weight) if weight is not None else _rows_module(base, index, first, height)
                    for index, (weight, first, height) in enumerate(zip(weights, firsts, heights, strict=True))
                ]
            )
        changes = [self._change(part, base, first) for part, first in zip(parts, firsts, strict=True)]
        return self._adapted(base, changes, heights, name)

    def _adapted(
        self, base: nn.Module, changes: Sequence[_Change | None], heights: Sequence[int], name: str
    ) -> nn.Module:
        """The base with the changes of its parts, which have so many rows."""
        if not (found := [change for change in changes if change]):
            return base
        a = np.concatenate([change.a for change in found])
        b, gain = np.zeros((sum(heights), len(a)), np.float32), np.ones(sum(heights), np.float32)
        row = column = 0
        for change, height in zip(changes, heights, strict=True):
            if change:
                b[row : row + height, column : column + len(change.a)] = change.b
                gain[row : row + height] = 1 if change.gain is None else change.gain
                column += len(change.a)
            row += height
        with_gain = any(change.gain is not None for change in found)
        gains = self._array(gain, name) if with_gain else None
        # `a` lies in memory as W does, rank by rank. Else MKL takes many times longer for one row: dev/LOG.md.
        return AdaptedLinear(base, self._array(a, name).T, self._array(b.T, name), gains)

    def _experts(self, fusion: Fusion) -> nn.Module:
        assert fusion.experts is not None
        outputs, inputs = self._shapes[fusion.parts[0]]
        base, each = _at(self._model, fusion.name), len(fusion.parts) // fusion.experts
        changes = [self._change(part, base, 0) for part in fusion.parts]
        experts = [changes[first : first + each] for first in range(0, len(changes), each)]
        rank = max(sum(len(change.a) for change in parts if change) for parts in experts)
        a = np.zeros((fusion.experts, rank, inputs), np.float32)
        b = np.zeros((fusion.experts, each * outputs, rank), np.float32)
        for expert, parts in enumerate(experts):
            column = 0
            for index, change in enumerate(parts):
                if change:
                    columns = slice(column, column + len(change.a))
                    a[expert, columns] = change.a
                    b[expert, index * outputs : (index + 1) * outputs, columns] = change.b
                    column = columns.stop
        return AdaptedExpertLinear(base, self._array(a, fusion.name), self._array(b, fusion.name))

    def _embedding(self) -> nn.Module:
        base, weight = _at(self._model, EMBEDDING), self._whole(EMBEDDING)
        if weight is not None and not _equal(base, weight):
            base = Embedding(1, 1)
            base.weight = weight
        if not (change := self._change(EMBEDDING, base, 0)):
            return base
        gain = None if change.gain is None else self._array(change.gain, EMBEDDING)
        return AdaptedEmbedding(base, self._array(change.a, EMBEDDING), self._array(change.b, EMBEDDING), gain)

    def _tied(self) -> nn.Module:
        """The embedding and the output that is tied to it. Adapters can change each alone."""
        embedding, own, weight = self._embedding(), _at(self._model, EMBEDDING), self._whole(HEAD)
        plain = embedding["base"] if isinstance(embedding, AdaptedEmbedding) else embedding
        if weight is None or _equal(own, weight):
            matrix: nn.Module = own
        else:
            matrix = plain if _equal(plain, weight) else _linear(weight)
        change = self._change(HEAD, matrix, 0)
        if embedding is matrix and not change:
            return embedding
        output = matrix if isinstance(matrix, Linear) else TiedOutput(matrix)
        return InputAndOutput(embedding, self._adapted(output, [change], [self._shapes[HEAD][0]], HEAD))

    def _norm(self, part: str) -> nn.Module:
        norm = _at(self._model, part)
        made = RMSNorm(1, eps=norm.eps)
        if (weight := self._whole(part)) is not None:
            made.weight = weight
        return made

    def _change(self, part: str, base: nn.Module, first: int) -> _Change | None:
        """The changes of a part, which begins at row `first` of `base`, by the adapters after its last whole weight."""
        last = max((index for index, adapter in enumerate(self._adapters) if part in adapter.whole), default=0)
        changes = [adapter.low_rank[part] for adapter in self._adapters[last:] if part in adapter.low_rank]
        outputs, inputs = self._shapes[part]
        found = _Change(np.zeros((0, inputs), np.float32), np.zeros((outputs, 0), np.float32))
        for change in changes:
            found = found.and_then(*change.arrays(), lambda row, count: _weight(base, first + row, count))
        return found if changes else None

    def _whole(self, part: str) -> mx.array | None:
        """The last weight that an adapter has in place of the model's, in the dtype of the model."""
        found = [adapter.whole[part] for adapter in self._adapters if part in adapter.whole]
        return self._array(floats_of(found[-1]), part) if found else None

    def _array(self, array: Floats, name: str) -> mx.array:
        return cast(to_mlx(np.ascontiguousarray(array)), self._model.norm.weight.dtype, name)


def _at(model: nn.Module, name: str) -> nn.Module:
    found: Any = model
    for part in name.split("."):
        found = found[int(part)] if part.isdigit() else found[part]
    return found


def _linear(weight: mx.array) -> Linear:
    made = Linear(1, 1)
    made.weight = weight
    return made


def _joined(modules: Sequence[nn.Module]) -> nn.Module:
    """Projections of one input side by side, as one matrix if none is packed."""
    if all(isinstance(module, Linear) for module in modules):
        return _linear(mx.concatenate([module["weight"] for module in modules]))
    return ConcatLinear(modules)


def _rows_module(module: nn.Module, index: int, first: int, count: int) -> nn.Module:
    """The part with this index of a fused module, which has the rows from `first` on."""
    if isinstance(module, ConcatLinear):
        part: nn.Module = module.parts[index]
        return part
    made: nn.Module = type(module).__new__(type(module))
    made.__dict__.update(module.__dict__)
    rows = slice(first, first + count)
    arrays = {name: mx.contiguous(module[name][rows]) for name in LEAVES if name in module}
    dict.update(made, arrays)
    return made


def _weight(module: nn.Module, first: int, count: int) -> mx.array:
    """Rows of the matrix of a plain or packed module, or of several side by side; float32."""
    if isinstance(module, ConcatLinear):
        for part in module.parts:
            height = part["weight"].shape[0]
            if first < height:
                return _weight(part, first, count)
            first -= height
    arrays = {name: module[name][first : first + count] for name in LEAVES if name in module}
    weight: mx.array = arrays["weight"]
    if "scales" in arrays:
        how = (module.group_size, module.bits, module.mode)
        weight = mx.dequantize(weight, arrays["scales"], arrays.get("biases"), *how)
    return weight.astype(mx.float32)


def _equal(module: nn.Module, weight: mx.array) -> bool:
    return "scales" not in module and bool(mx.array_equal(module["weight"], weight).item())


def _norms(rows: Rows, a: Floats, b: Floats) -> Floats:
    """The norm of each row of W + b @ a."""
    found, columns = [], to_mlx(a)
    for first in range(0, len(b), BLOCK_ROWS):
        part = slice(first, first + BLOCK_ROWS)
        weight = mx.addmm(rows(first, len(b[part])), to_mlx(np.ascontiguousarray(b[part])), columns)
        found.append(float32_of(mx.linalg.norm(weight, axis=1)))
    return np.concatenate(found)
