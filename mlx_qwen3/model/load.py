"""Loads the weights of a checkpoint into a model. Each is read once, directly into its final memory."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from ..errors import CheckpointError
from ..files.adapted import AdaptedCheckpoint
from ..files.adapters import Adapter, check_beside, open_adapter
from ..files.blank import clear_cache
from ..files.checkpoint import Checkpoint
from ..files.config import Qwen3Config
from ..files.dtypes import parse_dtype
from ..files.filling import Fill, Filling
from ..files.fingerprint import fingerprint
from ..files.layout import Module, checkpoint_dtype, native_modules
from ..files.names import APART, EXPERT_MAP, NAME_MAP, Fusion, fusions, part_shapes
from ..files.unpacked import is_packed, unpacked_parts
from ..files.values import placed
from . import kernels
from .adapted import adapted
from .linear import ConcatLinear, ExpertLinear, Linear
from .qwen3 import Qwen3


class Loading:
    """A model whose weights are being read. Other code can run meanwhile: `finish` waits for them.

    As a context it stops at the end of the block, if it has not finished.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: str | mx.Dtype | None = None, unpack: bool = False):
        """As `load_model`, and with the same errors."""
        config, parts = checkpoint.config, checkpoint.parts
        checkpoint.check_repeated_head()
        compute = compute_dtype(checkpoint, dtype)
        self.unpack = unpack and is_packed(parts)
        if self.unpack:
            parts = unpacked_parts(parts, compute)
        modules = native_modules(parts, config, compute)
        self._model = Qwen3(config)
        places = _shape_modules(self._model, modules, config)
        self._parameters, fillings = _parameters(modules, places, compute)
        self._fill = Fill(fillings)
        self._model.fingerprint, self._model.unpacked = fingerprint(checkpoint, compute, self.unpack), self.unpack

    def finish(self, adapters: Sequence[Adapter] = ()) -> Qwen3:
        """The model with these adapters, all evaluated. Raises CheckpointError if a file has become shorter."""
        self._fill.finish()
        # Here, even the shapes: another thread could not do it.
        mx.eval([array for _, array in self._parameters])
        self._model.load_weights(self._parameters, strict=True)
        return adapted(self._model, adapters)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._fill.stop()


def load_model(
    checkpoint: Checkpoint | str | Path,
    dtype: str | mx.Dtype | None = None,
    adapters: Sequence[Adapter | str | Path] = (),
    unpack: bool = False,
) -> Qwen3:
    """The model of a checkpoint in any supported layout, or of its folder, with the weights evaluated.

    `dtype` (bf16, fp16, fp32) is that of the computation and of all weights that are not packed. The default is the
    checkpoint's own on a GPU and float32 on a CPU, where MLX multiplies bf16 matrices more slowly.
    `adapters` are opened ones, or each a FOLDER|HUBID[=SCALE].
    `unpack`: packed weights become the values that they stand for, matrix by matrix. They take more memory, and a CPU
    multiplies them faster.
    Raises ConfigError, CheckpointError, or UsageError for another dtype.
    """
    checkpoint = Checkpoint.of(checkpoint)
    opened = [open_adapter(adapter, checkpoint.config) for adapter in adapters]
    check_beside(checkpoint.folder, checkpoint.adapters if isinstance(checkpoint, AdaptedCheckpoint) else opened)
    return Loading(checkpoint, dtype, unpack).finish(opened)


def compute_dtype(checkpoint: Checkpoint, dtype: str | mx.Dtype | None = None) -> mx.Dtype:
    """The dtype in which a checkpoint computes after `load_model`. Raises UsageError for an unknown dtype."""
    return parse_dtype(dtype) or (checkpoint_dtype(checkpoint.parts) if kernels.on_gpu() else mx.float32)


def _shape_modules(model: Qwen3, modules: list[Module], config: Qwen3Config) -> dict[str, str]:
    """Give every module of the model the form of its weights. Returns the model paths of parts that are not stacked."""
    packings = {module.name: module.quantization for module in modules}
    places: dict[str, str] = {}
    for fusion in fusions(config, NAME_MAP, EXPERT_MAP).values():
        if fusion.name in packings:
            continue
        names = list(fusion.parts)
        if fusion.experts is not None:
            names = [apart.name for apart in fusions(config, APART).values() if set(apart.parts) <= set(names)]
            if not names or not packings.keys() >= set(names):
                raise CheckpointError(
                    f"{fusion.name}: its experts are packed in different ways, which cannot be computed together; "
                    "unpack them with convert --quantize none"
                )
        model.update_modules(tree_unflatten([(fusion.name, ConcatLinear(_projections(fusion, names, config)))]))
        places |= {name: f"{fusion.name}.parts.{index}" for index, name in enumerate(names)}
    by_path = {places.get(name, name): packing for name, packing in packings.items()}
    nn.quantize(model, class_predicate=lambda path, _: asdict(packing) if (packing := by_path.get(path)) else False)
    return places


def _projections(fusion: Fusion, names: list[str], config: Qwen3Config) -> list[nn.Module]:
    """A projection for each of these parts, or stacks of parts, of a fused module."""
    shapes = [part_shapes(config)[part] for part in fusion.parts[: len(names)]]  # of one expert
    if fusion.experts is None:
        return [Linear(columns, rows) for rows, columns in shapes]
    return [ExpertLinear(fusion.experts, columns, rows) for rows, columns in shapes]


def _parameters(
    modules: Sequence[Module], places: Mapping[str, str], dtype: mx.Dtype
) -> tuple[list[tuple[str, mx.array]], list[Filling]]:
    """(every parameter by its path in the model, floats in `dtype`, what is still to be read into them)

    `places` are the paths that are not the names.
    """
    parameters: list[tuple[str, mx.array]] = []
    fillings: list[Filling] = []
    for module in modules:
        for name, tensors in module.tensors():
            array, waiting = placed(tensors, dtype)
            path = name.replace(module.name, places.get(module.name, module.name), 1)
            parameters.append((path, array.reshape(module.shape(array.shape))))
            fillings += waiting
        clear_cache()  # or what was computed here in another dtype stays allocated
    return parameters, fillings
