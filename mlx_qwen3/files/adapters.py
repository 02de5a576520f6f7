"""Adapters of PEFT and mlx-lm: every tensor accounted for, as the low-rank change of one matrix or as a whole weight.

A part is named as in names.py. `embed_tokens` is the matrix that tokens are looked up in, and `lm_head` is the output
matrix, also of a model that uses one matrix for both: an adapter may change one of them alone.

r rank, V vocabulary
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError, UsageError
from . import adapter_config
from .adapter_config import MERGE, AdapterConfig, read_config
from .config import Qwen3Config
from .dtypes import FLOATS
from .fingerprint import samples
from .headers import StoredTensor, TensorFile, tensors_of
from .hub import resolve_adapter
from .names import NAME_MAP, SWITCH, fusions, hf_name, part_shapes
from .reading import exists, short
from .values import Floats, to_float32

EMBEDDING, HEAD = "embed_tokens", "lm_head"
PREFIX = "base_model.model."  # of PEFT's names


@dataclass(frozen=True)
class Leaves:
    """How a kind of module is stored: b (outputs, r) and a (r, inputs), or their transposes."""

    a: str
    b: str
    transposed: bool = False


PEFT_LINEAR = Leaves("lora_A.weight", "lora_B.weight")
PEFT_EMBEDDING = Leaves("lora_embedding_B", "lora_embedding_A", transposed=True)  # A (r, V), B (hidden, r)
MLX_LINEAR = Leaves("lora_a", "lora_b", transposed=True)
MLX_EMBEDDING = Leaves("lora_b", "lora_a")  # lora_a (V, r), lora_b (r, hidden)
MLX_EXPERTS = Leaves("lora_a", "lora_b")  # a stack of each
MAGNITUDES = ("lora_magnitude_vector", "lora_magnitude_vector.weight", "m")
WHOLE = ("weight", "base_layer.weight")  # PEFT also saves the embedding that it has adapted


@dataclass(frozen=True)
class LowRank:
    """The change of one matrix (outputs, inputs): scale * b @ a. With DoRA, each row then gets the norm `magnitude`."""

    a: StoredTensor
    b: StoredTensor
    transposed: bool
    scale: float
    magnitude: StoredTensor | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[-1 if self.transposed else 0]

    def arrays(self) -> tuple[Floats, Floats, Floats | None]:
        """a (r, inputs), b (outputs, r) times the scale, and the magnitudes (outputs,), float32."""
        a, b = (values_of(self.a), values_of(self.b))
        a, b = (np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)) if self.transposed else (a, b)
        return a, b * np.float32(self.scale), None if self.magnitude is None else values_of(self.magnitude)


@dataclass(frozen=True)
class Adapter:
    """The changes of one adapter, by part. Nothing but headers is read before it is asked for."""

    source: str
    config: AdapterConfig
    strength: float  # which its scale is multiplied by
    low_rank: Mapping[str, LowRank]
    whole: Mapping[str, StoredTensor]  # weights that take the place of the model's, before the low-rank changes
    file: TensorFile
    shapes: Mapping[str, tuple[int, ...]]  # of the model's parts

    @property
    def asked(self) -> str:
        """As a command names it."""
        return self.source if self.strength == 1 else f"{self.source}={self.strength:g}"

    @property
    def placed(self) -> str:
        """The same with its folder, for another process."""
        folder = str(self.file.path.parent.absolute())
        return folder if self.strength == 1 else f"{folder}={self.strength!r}"

    @cached_property
    def fingerprint(self) -> str:
        """Differs for another adapter or strength, or for a copy of the file."""
        digest = hashlib.sha256(f"{self.strength} {sorted(self.config.raw.items(), key=str)}".encode())
        digest.update(f"{self.file.size} {self.file.status.st_mtime_ns}".encode() + self.file.header)
        for tensor in self.tensors():
            for sample in samples(tensor):
                digest.update(sample)
        return digest.hexdigest()

    def tensors(self) -> Iterator[StoredTensor]:
        """Every tensor that is used, some of them more than once."""
        for change in self.low_rank.values():
            yield from (tensor for tensor in (change.a, change.b, change.magnitude) if tensor is not None)
        yield from self.whole.values()

    def nbytes(self, config: Qwen3Config, dtype: mx.Dtype) -> int:
        """What its arrays take in memory in a dtype, beside the model's own."""
        heights = {name: shape[0] for name, shape in self.shapes.items()}
        inputs = {name: shape[-1] for name, shape in self.shapes.items()}
        fused = [fusion.parts for fusion in fusions(config, NAME_MAP).values()]
        fused += [(name,) for name in self.low_rank if not any(name in parts for parts in fused)]
        values = sum(math.prod(self.shapes[name]) for name in self.whole)
        for parts in fused:
            rank = sum(self.low_rank[name].rank for name in parts if name in self.low_rank)
            values += rank * (inputs[parts[0]] + sum(heights[name] for name in parts))
        return values * dtype.size


def open_adapter(adapter: "Adapter | str | Path", config: Qwen3Config) -> Adapter:
    """An adapter for a model of this config, from FOLDER|HUBID[=SCALE], or the adapter itself.

    Raises SourceError, ConfigError or CheckpointError that names what is missing, not expected or of another shape, and
    UsageError for a SCALE that cannot be.
    """
    if isinstance(adapter, Adapter):
        return adapter
    source, strength = _parse(str(adapter))
    folder = resolve_adapter(source)
    settings = read_config(folder)
    shapes = _shapes(config)
    file = TensorFile(_weights(folder, settings))
    low_rank, whole = _Reader(source, settings, config, shapes, file).read()
    found = Adapter(source, settings, strength, low_rank, whole, file, shapes)
    return found if strength == 1 else _scaled(found)


def merged(weight: Floats, part: str, adapters: Sequence[Adapter], first: int = 0) -> Floats:
    """Rows of a part's weight, from row `first` on, with the adapters merged into it one after the other, float32.

    The norms of DoRA are those of the base with its own change alone, as in PEFT.
    """
    rows, base = slice(first, first + len(weight)), weight
    for adapter in adapters:
        if part in adapter.whole:
            base = weight = values_of(adapter.whole[part].rows(first, len(weight)))
        if part in adapter.low_rank:
            a, b, magnitude = _arrays(adapter.low_rank[part])
            delta = b[rows] @ a
            weight = weight + delta
            if magnitude is not None:
                weight *= (magnitude[rows] / np.linalg.norm(base + delta, axis=1))[:, None]
    return weight


@lru_cache(maxsize=2)
def _arrays(change: LowRank) -> tuple[Floats, Floats, Floats | None]:
    """Kept for the rows that come next: a matrix is merged block by block."""
    return change.arrays()


def unties(config: Qwen3Config, adapters: Sequence[Adapter]) -> bool:
    """Whether a model with one matrix for input and output has two of them with these adapters."""
    return config.tie_word_embeddings and any(
        changes.get(EMBEDDING) != changes.get(HEAD) for a in adapters for changes in (a.low_rank, a.whole)
    )


def _parse(text: str) -> tuple[str, float]:
    """(source, scale) of FOLDER|HUBID[=SCALE]. A folder may have an = in its name."""
    source, equals, scale = text.rpartition("=")
    if not equals or exists(Path(text).expanduser()):
        return text, 1.0
    try:
        number = float(scale)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(
            f"the adapter {short(text)} has the scale {scale[:40]!r}; expected a number, as in {source}=0.5"
        )
    return source, number


def _weights(folder: Path, settings: AdapterConfig) -> Path:
    if exists(path := folder / settings.weights_file):
        return path
    if exists(folder / "adapter_model.bin"):
        raise CheckpointError(
            f"{folder} has its adapter in adapter_model.bin, a pickle file, which can run code when it is opened; "
            "save it with PEFT's save_pretrained, which writes safetensors"
        )
    raise CheckpointError(f"{folder} has no {settings.weights_file}, which its {adapter_config.FILE} goes with")


def _scaled(adapter: Adapter) -> Adapter:
    """With its strength. Raises UsageError if it has no meaning."""
    name = f"{short(adapter.source)}={adapter.strength:g}"
    if any(change.magnitude for change in adapter.low_rank.values()):
        raise UsageError(f"{name}: a DoRA adapter sets the norm of every row, which a scale does not fit; leave it out")
    if replaced := [part for part, tensor in adapter.whole.items() if not tensor.name.endswith("base_layer.weight")]:
        raise UsageError(f"{name}: this adapter replaces {replaced[0]}, which a scale does not fit; leave it out")
    scaled = {part: replace(c, scale=c.scale * adapter.strength) for part, c in adapter.low_rank.items()}
    return replace(adapter, low_rank=scaled)


def _shapes(config: Qwen3Config) -> dict[str, tuple[int, ...]]:
    shapes = part_shapes(config)
    return {**shapes, HEAD: shapes[EMBEDDING]}


class _Reader:
    """Finds the tensors of every part in the one file of an adapter."""

    def __init__(
        self,
        source: str,
        settings: AdapterConfig,
        config: Qwen3Config,
        shapes: Mapping[str, tuple[int, ...]],
        file: TensorFile,
    ):
        self._source, self._settings, self._config, self._shapes = source, settings, config, shapes
        self._layers = config.num_hidden_layers
        self._tensors = {tensor.name.removeprefix(PREFIX): tensor for tensor in tensors_of(file)}
        self._left = dict(self._tensors)

    def read(self) -> tuple[dict[str, LowRank], dict[str, StoredTensor]]:
        low_rank: dict[str, LowRank] = {}
        whole: dict[str, StoredTensor] = {}
        for module, parts in self._modules().items():
            low_rank |= self._low_rank(module, parts)
            whole |= self._whole(module, parts)
        if self._left:
            raise CheckpointError(self._unexpected(min(self._left)))
        tied = self._config.tie_word_embeddings
        for changes in (low_rank, whole):
            shared = self._settings.ties or (changes is whole and self._is_base(whole.get(EMBEDDING)))
            if tied and shared and EMBEDDING in changes:
                changes.setdefault(HEAD, changes[EMBEDDING])  # type: ignore[arg-type]
        return low_rank, whole

    def _modules(self) -> dict[str, tuple[str, ...]]:
        """The parts of each module, by its name in the file: mlx-lm has the experts of a layer in one."""
        modules: dict[str, tuple[str, ...]] = {hf_name(part): (part,) for part in self._shapes}
        if self._settings.form == "mlx-lm":
            if self._config.tie_word_embeddings:
                del modules[HEAD]
            for fusion in fusions(self._config, SWITCH).values():
                for part in fusion.parts:
                    del modules[hf_name(part)]
                modules[hf_name(fusion.name)] = fusion.parts
        return modules

    def _low_rank(self, module: str, parts: Sequence[str]) -> dict[str, LowRank]:
        leaves, shape = self._leaves(module, parts), self._shapes[parts[0]]
        a, b = self._take(module, leaves.a), self._take(module, leaves.b)
        magnitude = next((m for leaf in MAGNITUDES if (m := self._take(module, leaf))), None)
        wanted = len(shape) == 2 and self._settings.targets(module, self._layers)
        tied_head = module == HEAD and self._config.tie_word_embeddings and self._settings.ties
        if not wanted and not (tied_head and a and b):
            if found := a or b or magnitude:
                raise CheckpointError(f"{self._name(found)} is outside the modules that {adapter_config.FILE} names")
            return {}
        if a is None or b is None:
            raise CheckpointError(self._missing(module, leaves.a if a is None else leaves.b))
        if (magnitude is None) == (self._settings.method == "DoRA"):
            what = (
                self._missing(module, "lora_magnitude_vector")
                if magnitude is None
                else (f"{self._name(magnitude)} belongs to DoRA, which {adapter_config.FILE} does not have")
            )
            raise CheckpointError(what)
        rank, scale = self._settings.scaling(module)
        outputs, inputs = shape
        stack = () if len(parts) == 1 else (len(parts),)
        shapes = ((inputs, rank), (rank, outputs)) if leaves.transposed else ((rank, inputs), (outputs, rank))
        for tensor, expected in zip((a, b), shapes, strict=True):
            self._check(tensor, (*stack, *expected), module)
        if magnitude is None:
            return {part: LowRank(*each, leaves.transposed, scale) for part, each in self._apart(parts, a, b)}
        if leaves in (PEFT_EMBEDDING, MLX_EXPERTS) or "experts" in module:
            raise CheckpointError(f"{self._name(magnitude)}: DoRA of {module} is not supported; {MERGE}")
        self._check(magnitude, (outputs,), module)
        return {parts[0]: LowRank(a, b, leaves.transposed, scale, magnitude)}

    def _whole(self, module: str, parts: Sequence[str]) -> dict[str, StoredTensor]:
        found = {leaf: tensor for leaf in WHOLE if (tensor := self._take(module, leaf)) is not None}
        wanted = self._settings.saves(module, self._layers)
        if not found:
            if wanted and not (module == HEAD and self._config.tie_word_embeddings):
                raise CheckpointError(self._missing(module, "weight"))
            return {}
        if len(found) > 1:
            raise CheckpointError(f"{self._source} has two weights for {module}; remove one of them")
        [tensor] = found.values()
        # PEFT saves an embedding whose vocabulary has grown, whatever its config names.
        if not wanted and parts[0] not in (EMBEDDING, HEAD):
            raise CheckpointError(f"{self._name(tensor)} is outside the modules that {adapter_config.FILE} names")
        if "experts" in module or "switch_mlp" in module:
            raise CheckpointError(f"{self._name(tensor)}: whole weights of experts are not supported; {MERGE}")
        self._check(tensor, self._shapes[parts[0]], module)
        return {parts[0]: tensor}

    def _leaves(self, module: str, parts: Sequence[str]) -> Leaves:
        if self._settings.form == "PEFT":
            return PEFT_EMBEDDING if parts[0] == EMBEDDING else PEFT_LINEAR
        return MLX_EXPERTS if len(parts) > 1 else MLX_EMBEDDING if parts[0] == EMBEDDING else MLX_LINEAR

    def _take(self, module: str, leaf: str) -> StoredTensor | None:
        return self._left.pop(f"{module}.{leaf}", None)

    def _apart(
        self, parts: Sequence[str], a: StoredTensor, b: StoredTensor
    ) -> Iterator[tuple[str, tuple[StoredTensor, StoredTensor]]]:
        """The matrices of every part; those of experts are stacked."""
        if len(parts) == 1:
            yield parts[0], (a, b)
            return
        for expert, part in enumerate(parts):
            one, other = (replace(t.rows(expert, 1), shape=t.shape[1:]) for t in (a, b))
            yield part, (one, other)

    def _check(self, tensor: StoredTensor, expected: tuple[int, ...], module: str) -> None:
        if tensor.dtype not in FLOATS:
            raise CheckpointError(f"{self._name(tensor)} has dtype {tensor.dtype_name}; expected F32, F16 or BF16")
        if tensor.shape != expected:
            raise CheckpointError(
                f"{self._name(tensor)} has shape {list(tensor.shape)}, but this model and {adapter_config.FILE} give "
                f"{list(expected)}; {self._bases()}"
            )

    def _unexpected(self, name: str) -> str:
        return f"{self._name(self._left[name])} does not belong to any module of this model; {self._bases()}"

    def _missing(self, module: str, leaf: str) -> str:
        return (
            f"{short(self._source)} lacks {module}.{leaf}, though {adapter_config.FILE} names this module; the file is "
            f"incomplete or of another model; {self._bases()}"
        )

    def _bases(self) -> str:
        config, base = self._config, self._settings.base
        named = f"the adapter was trained on {short(base)}" if base else "the adapter does not name its base"
        return f"{named}, and this model has {config.num_hidden_layers} layers and hidden_size {config.hidden_size}"

    def _name(self, tensor: StoredTensor) -> str:
        return f"{short(tensor.name)} in {short(self._source)}"

    @staticmethod
    def _is_base(tensor: StoredTensor | None) -> bool:
        return tensor is not None and tensor.name.endswith("base_layer.weight")


def values_of(tensor: StoredTensor) -> Floats:
    """All values of a tensor, float32."""
    return to_float32(tensor.read(), tensor.dtype).reshape(tensor.shape)
