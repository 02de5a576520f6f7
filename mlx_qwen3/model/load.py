"""The weights of a checkpoint into a model, each read once into the memory it stays in."""

from dataclasses import asdict
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from ..files.checkpoint import StoredTensor
from ..files.config import Qwen3Config
from ..files.layout import Module, cast, checkpoint_dtype, fusions, native_modules, parse_dtype, part_shapes, read_parts
from . import kernels
from .qwen3 import ConcatLinear, Qwen3


def load_model(folder: str | Path, dtype: str | mx.Dtype | None = None) -> Qwen3:
    """The model of a checkpoint folder in any supported layout, its weights evaluated.

    `dtype` (bf16, fp16, fp32) is that of the computation and of all weights that are not packed. The default is the
    checkpoint's own on a GPU and float32 on a CPU, where MLX multiplies bf16 matrices 2.5 to 6 times slower.
    Raises ConfigError, CheckpointError, or UsageError for another dtype.
    """
    folder = Path(folder)
    config = Qwen3Config.from_folder(folder)
    parts = read_parts(folder, config)
    compute = parse_dtype(dtype) or (checkpoint_dtype(parts) if kernels.on_gpu() else mx.float32)
    modules = native_modules(parts, config, compute)
    model = Qwen3(config)
    places = _shape_modules(model, modules, config)
    reader = _Reader()
    parameters = []
    for module in modules:
        for name, tensors in module.tensors():
            path = name.replace(module.name, places.get(module.name, module.name), 1)
            parameters.append((path, reader.read(tensors, compute)))
    model.load_weights(parameters, strict=True)
    return model


def _shape_modules(model: Qwen3, modules: list[Module], config: Qwen3Config) -> dict[str, str]:
    """Give every module of the model the form of its weights; returns model paths of parts that stay alone."""
    packings = {module.name: module.quantization for module in modules}
    places: dict[str, str] = {}
    for fused, names in fusions(config).items():
        if fused not in packings:
            shapes = part_shapes(config)
            parts = ConcatLinear([nn.Linear(shapes[name][1], shapes[name][0], bias=False) for name in names])
            model.update_modules(tree_unflatten([(fused, parts)]))
            places |= {name: f"{fused}.parts.{index}" for index, name in enumerate(names)}
    by_path = {places.get(name, name): packing for name, packing in packings.items()}
    nn.quantize(model, class_predicate=lambda path, _: asdict(packing) if (packing := by_path.get(path)) else False)
    return places


class _Reader:
    """Reads tensors through MLX, which loads a file's arrays lazily, straight into the memory they stay in."""

    def __init__(self) -> None:
        self._files: dict[Path, dict[str, mx.array]] = {}

    def read(self, tensors: tuple[StoredTensor, ...], dtype: mx.Dtype) -> mx.array:
        arrays = [cast(self._take(tensor), dtype, tensor.name) for tensor in tensors]
        array = arrays[0] if len(arrays) == 1 else mx.concatenate(arrays)
        mx.eval(array)
        del arrays
        mx.clear_cache()  # or the parts just stacked stay allocated beside the whole: two copies of the weights
        return array

    def _take(self, tensor: StoredTensor) -> mx.array:
        if tensor.path not in self._files:
            self._files[tensor.path] = mx.load(str(tensor.path))  # type: ignore[assignment]
        return tensor.cut(self._files[tensor.path].pop(tensor.name))
