"""The changes of stacks of experts, as PEFT has them for transformers 5: `target_parameters` instead of modules.

A stack (E, outputs, inputs) has one lora_A (E * r, inputs), expert after expert, and one lora_B (outputs, r * E), in
which the expert is what changes fastest. Of two stacks in one module, PEFT wraps one around the other: the name of the
inner one has `base_layer`.

E experts, r rank
"""

from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from .adapter_config import AdapterConfig
from .config import Qwen3Config
from .derived import Derivation, DerivedTensor, Latest
from .headers import StoredTensor
from .names import EXPERT_MAP, Fusion, fusions, hf_name
from .values import floats_of


def stacks(settings: AdapterConfig, config: Qwen3Config) -> dict[str, Fusion]:
    """The stacks that have matrices, by what the names of their tensors begin with."""
    by_module: dict[str, list[Fusion]] = {}
    for fusion in fusions(config, EXPERT_MAP).values():  # gate_up_proj before down_proj, as PEFT comes to them
        if settings.targets_parameter(hf_name(fusion.name)):
            by_module.setdefault(hf_name(fusion.name).rpartition(".")[0], []).append(fusion)
    return {
        module + depth * ".base_layer": fusion
        for module, found in by_module.items()
        for depth, fusion in enumerate(reversed(found))
    }


def split(
    fusion: Fusion, a: StoredTensor, b: StoredTensor, latest: Latest
) -> Iterator[tuple[str, tuple[StoredTensor, StoredTensor]]]:
    """(part, (its a (r, inputs), its b (outputs, r))) for the parts of every expert."""
    assert fusion.experts is not None
    experts, each = fusion.experts, len(fusion.parts) // fusion.experts
    rank, outputs = a.shape[0] // experts, b.shape[0] // each
    for index, part in enumerate(fusion.parts):
        expert, row = index // each, index % each * outputs
        columns = _columns(b, slice(row, row + outputs), expert, experts, latest)
        yield part, (a.rows(expert * rank, rank), columns)


def _columns(b: StoredTensor, rows: slice, expert: int, experts: int, latest: Latest) -> StoredTensor:
    """Some rows of one expert's b, which has every E-th column."""

    def values(first: int, count: int) -> np.ndarray:
        whole = latest.get(b.name, "values", lambda: floats_of(b))
        return np.ascontiguousarray(whole[rows][first : first + count, expert::experts])

    how = Derivation(values, (b.name,), mx.float32, "taken out of the stack of all experts")
    shape = (rows.stop - rows.start, b.shape[1] // experts)
    return DerivedTensor(b.name, mx.float32, shape, b.file, 0, derivation=how)
