"""The forward pass of a checkpoint in float32, one layer in memory at a time, and of its experts one.

The pass is that of model/. Weights are unpacked to float32 and multiplied by NumPy: this is true float32 on every
device, and on a CPU much faster than the BLAS in MLX's Linux wheel.

T tokens of all sequences together, L tokens of one sequence
"""

from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..files.checkpoint import Checkpoint
from ..files.names import NAME_MAP
from ..files.values import Floats, read_rows, to_mlx
from ..model.moe import MoE, Steps, expert_by_expert
from ..model.qwen3 import Block
from ..model.rope import RoPE
from ..model.view import View

PASS = 1024  # tokens of several sequences that go through a layer together, so that its experts are read once for them
Tick = Callable[[], None]


class Streamed:
    """The forward pass of a checkpoint. It reads each weight when it needs it."""

    def __init__(self, checkpoint: Checkpoint):
        self.config, self.parts = checkpoint.config, checkpoint.parts
        self._rope = RoPE(self.config)

    def hidden(self, sequences: Sequence[Sequence[int]], tick: Tick = lambda: None) -> Floats:
        """The normalised last states (T, hidden) of all sequences; `tick` is called after every layer."""
        groups = list(_groups([len(ids) for ids in sequences]))
        views = [Sequences(lengths) for lengths in groups]
        turns = [self._rope(view.positions) for view in views]
        embedded = np.concatenate([self._embed(ids) for ids in sequences])
        ends = np.cumsum([sum(lengths) for lengths in groups])[:-1]
        states = [to_mlx(rows) for rows in np.split(embedded, ends)]  # each (tokens of a group, hidden)
        for layer in range(self.config.num_hidden_layers):
            block = self._block(layer)
            states = [block(*pass_) for pass_ in zip(states, turns, views, strict=True)]
            mx.eval(states)
            tick()
        norm = nn.RMSNorm(self.config.hidden_size, eps=self.config.rms_norm_eps)
        norm.weight = to_mlx(self._weight("norm"))
        return np.concatenate([np.array(norm(state)) for state in states])

    def head(self, first: int, count: int) -> Floats:
        """Rows of the output matrix, (count, hidden)."""
        part = self.parts["embed_tokens" if self.config.tie_word_embeddings else "lm_head"]
        return read_rows(part.leaves, part.quantization, first, count)

    def _block(self, layer: int) -> Block:
        """A layer whose weights are read now, but those of an expert when it has tokens."""
        block = Block(self.config, layer)
        prefix = f"layers.{layer}."
        for name in ("input_layernorm", "self_attn.q_norm", "self_attn.k_norm", "post_attention_layernorm"):
            _submodule(block, name).weight = to_mlx(self._weight(prefix + name))
        products = {**NAME_MAP, **{name: (name,) for name in ("self_attn.o_proj", "mlp.down_proj", "mlp.gate")}}
        for name, parts in products.items():
            owner, leaf = name.split(".")
            if leaf in block[owner]:
                setattr(block[owner], leaf, self._product(*(prefix + part for part in parts)))
        if isinstance(block.mlp, MoE):
            block.mlp["experts"] = _ReadExperts(f"{prefix}mlp.experts", self._product)
        return block

    def _product(self, *parts: str) -> "_Product":
        return _Product(np.concatenate([self._weight(part) for part in parts]))

    def _weight(self, name: str) -> Floats:
        part = self.parts[name]
        return read_rows(part.leaves, part.quantization, 0, part.leaves["weight"].shape[0])

    def _embed(self, ids: Sequence[int]) -> Floats:
        part = self.parts["embed_tokens"]
        tokens, places = np.unique(ids, return_inverse=True)
        rows = [read_rows(part.leaves, part.quantization, int(token), 1) for token in tokens]
        return np.concatenate(rows)[places]


class _Product(nn.Module):
    """A projection (T, inputs) -> (T, outputs) as in model/linear.py, but by NumPy; the weight is (outputs, inputs)."""

    def __init__(self, weight: Floats):
        super().__init__()
        self._weight = weight

    def __call__(self, x: mx.array) -> mx.array:
        return to_mlx(np.array(x) @ self._weight.T)

    def add(self, residual: mx.array, x: mx.array) -> mx.array:
        return residual + self(x)


class _ReadExperts(nn.Module):
    """The experts of a layer as in model/moe.py. The weights of one expert at a time are in memory."""

    def __init__(self, prefix: str, product: Callable[..., _Product]):
        super().__init__()
        self._prefix, self._product = prefix, product

    def __call__(self, x: mx.array, chosen: mx.array, traced: bool) -> tuple[Steps, None]:
        def of(expert: int, *names: str) -> _Product:
            return self._product(*(f"{self._prefix}.{expert}.{name}" for name in names))

        return expert_by_expert(x, chosen, lambda e: of(e, "gate_proj", "up_proj"), lambda e: of(e, "down_proj")), None


class Sequences(View):
    """The view of a pass over several sequences, one after the other in one row, without a cache."""

    def __init__(self, lengths: Sequence[int]):
        positions = mx.concatenate([mx.arange(length) for length in lengths])[None]
        super().__init__(positions, sum(lengths))
        self._ends = np.cumsum(lengths)[:-1].tolist()

    def attend(self, layer: int, q: mx.array, kv: mx.array, scale: float) -> mx.array:
        """As `View`: no token sees another sequence."""
        pairs = zip(mx.split(q, self._ends, axis=2), mx.split(kv, self._ends, axis=3), strict=True)
        return mx.concatenate([self._attend(q, (kv,), scale, "causal") for q, kv in pairs], axis=2)


def _groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The lengths of consecutive sequences whose passes may be one: at most PASS tokens, or one longer sequence."""
    group: list[int] = []
    for length in lengths:
        if group and sum(group) + length > PASS:
            yield group
            group = []
        group.append(length)
    yield group


def _submodule(module: nn.Module, path: str) -> nn.Module:
    for name in path.split("."):
        module = module[name]
    return module
