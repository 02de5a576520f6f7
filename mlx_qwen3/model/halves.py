"""A pass over a long prompt on a CPU, with two halves of the tokens side by side on two streams.

L tokens of the one row, H query heads, K key/value heads, D head_dim
"""

from typing import TYPE_CHECKING

import mlx.core as mx

from .. import blas
from . import kernels
from .streams import STREAMS, side_by_side, slices
from .view import EagerView

if TYPE_CHECKING:
    from .qwen3 import Qwen3

LEAST_TOKENS = 224  # of a pass; with fewer, reading weights for both halves takes as long as is gained


def pay(model: "Qwen3", view: EagerView) -> bool:
    """Whether the pass of this view has a row whose tokens are worth to be halved."""
    rows, tokens = view.shape
    alone = rows == 1 and tokens >= LEAST_TOKENS and view.watch is None and model.config.moe is None
    return alone and not kernels.on_gpu() and blas.threads() >= STREAMS


def states(model: "Qwen3", ids: mx.array, view: EagerView, keep: int) -> mx.array:
    """`Qwen3.states` (keep, hidden) of token ids (L,), evaluated, as are the buffers of the view."""
    L = len(ids)
    with side_by_side() as streams:
        places = slices(L, len(streams))
        x, (cos, sin) = model.embed(ids), model.rope(view.positions)
        turns = [(cos[:, :, place], sin[:, :, place]) for place in places]
        parts = [x[place] for place in places]
        for layer in model.layers:
            made = []
            for stream, part, turn in zip(streams, parts, turns, strict=True):
                with mx.stream(stream):
                    made.append(layer.project(part, turn, view))
            q, kv = (mx.concatenate(list(halves), axis=-2) for halves in zip(*made, strict=True))
            if layer is model.layers[-1]:
                break
            out = layer.attend(q, kv, view)
            for index, (stream, place) in enumerate(zip(streams, places, strict=True)):
                with mx.stream(stream):
                    parts[index] = layer.finish(parts[index], out[:, :, place], view)
        x = mx.concatenate(parts)[L - keep :]
        out = layer.attend(q[:, :, L - keep :], kv, view)
        x = model.norm(layer.finish(x, out, view) if keep else x)
        mx.eval(x, view.buffers)
    return x
