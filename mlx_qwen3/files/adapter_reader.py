"""Finds the tensors of every part in the file of an adapter: each is accounted for, by name and shape.

r rank, V vocabulary
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import CheckpointError
from . import adapter_config
from .adapter_config import AdapterConfig
from .adapter_experts import split, stacks
from .config import Qwen3Config
from .derived import Latest
from .dtypes import FLOATS
from .headers import StoredTensor, TensorFile, tensors_of
from .names import SWITCH, Fusion, fusions, hf_name
from .reading import short
from .values import Floats, floats_of

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
        a, b = floats_of(self.a), floats_of(self.b)
        a, b = (np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)) if self.transposed else (a, b)
        return a, b * np.float32(self.scale), None if self.magnitude is None else floats_of(self.magnitude)


class Reader:
    """Reads the one file of an adapter."""

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
        self._tensors: dict[str, StoredTensor] = {}
        for tensor in tensors_of(file):
            if (name := tensor.name.removeprefix(PREFIX)) in self._tensors:
                raise CheckpointError(f"{self._name(tensor)} is there with and without the prefix {PREFIX}; remove one")
            self._tensors[name] = tensor
        self._left, self._latest = dict(self._tensors), Latest()

    def read(self) -> tuple[dict[str, LowRank], dict[str, StoredTensor]]:
        low_rank: dict[str, LowRank] = {}
        whole: dict[str, StoredTensor] = {}
        for module, parts in self._modules().items():
            low_rank |= self._low_rank(module, parts)
            whole |= self._whole(module, parts)
        for module, fusion in stacks(self._settings, self._config).items():
            low_rank |= self._stack(module, fusion)
        if self._left:
            raise CheckpointError(self._unexpected(min(self._left)))
        if not low_rank and not whole:
            raise CheckpointError(
                f"{short(self._source)} changes nothing: its {adapter_config.FILE} names no module of this model; "
                f"{self._bases()}"
            )
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
            raise self._unsupported(magnitude, f"DoRA of {module} is")
        self._check(magnitude, (outputs,), module)
        return {parts[0]: LowRank(a, b, leaves.transposed, scale, magnitude)}

    def _stack(self, module: str, fusion: Fusion) -> dict[str, LowRank]:
        a, b = self._take(module, PEFT_LINEAR.a), self._take(module, PEFT_LINEAR.b)
        if a is None or b is None:
            raise CheckpointError(self._missing(module, PEFT_LINEAR.a if a is None else PEFT_LINEAR.b))
        rank, scale = self._settings.scaling(hf_name(fusion.name))
        outputs, inputs = self._shapes[fusion.parts[0]]
        each, columns = len(fusion.parts) // (fusion.experts or 1), (fusion.experts or 1) * rank
        self._check(a, (columns, inputs), module)
        self._check(b, (each * outputs, columns), module)
        return {part: LowRank(*both, False, scale) for part, both in split(fusion, a, b, self._latest)}

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
            raise self._unsupported(tensor, "whole weights of experts are")
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

    def _unsupported(self, tensor: StoredTensor, what: str) -> CheckpointError:
        return CheckpointError(f"{self._name(tensor)}: {what} not supported; {self._settings.remedy}")

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
