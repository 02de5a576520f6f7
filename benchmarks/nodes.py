"""Graph nodes of a decode step and of a prompt's pass, per layer, as Metal dispatches them: ours and mlx-lm's.

    python benchmarks/nodes.py FOLDER   (a Hugging Face or an MLX folder)

Metal runs each of MLX's `fast` operations, and our own kernel, as one dispatch; a CPU expands them. So each is replaced
by one operation that no compiler fuses, the graph is exported, and the operations that move data are counted: views
(slices, reshapes, transposes, broadcasts) cost Metal nothing. What Metal copies to make a kernel's input contiguous is
not in the graph: in a prompt's pass rms_norm copies the slices of a fused q and k, which our kernel does not.
A slice update at a position that is an array has a second, tiny dispatch, which computes the offset
(mlx/backend/gpu/primitives.cpp); it is counted beside the nodes.
"""

import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

import mlx_qwen3  # noqa: F401  first: it loads the BLAS
from mlx_qwen3.engine.runner import decode_step, prefill
from mlx_qwen3.model import kernels
from mlx_qwen3.model.load import load_model

VIEWS = "Broadcast Flatten Unflatten Transpose Slice ExpandDims Squeeze Reshape Split AsStrided".split()
PROMPT = mx.array([[1, 2, 3]])


def one_norm_rope(qkv: mx.array, weight: mx.array, cos: mx.array, *_: Any) -> tuple[mx.array, mx.array]:
    (B, _, L, _), (normed, _, D) = cos.shape, weight.shape
    done = mx.sort(qkv).reshape(B, -1, L, D)
    H = 2 * normed - done.shape[1]
    return done[:, :H], done[:, H:].reshape(B, 2, -1, L, D).transpose(1, 0, 2, 3, 4)


STANDINS: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    (mx.fast, "rms_norm", lambda x, *_, **__: mx.sort(x)),
    (mx.fast, "rope", lambda x, *_, **__: mx.sort(x)),
    (mx.fast, "scaled_dot_product_attention", lambda q, *_, **__: mx.sort(q)),
    (kernels, "norm_rope", one_norm_rope),
    (kernels, "attend", lambda q, *_: mx.sort(q)),
    (kernels, "on_gpu", lambda: True),
    (kernels, "replay_after", lambda: 0),
)
Graphs = dict[str, list[mx.array]]  # the arrays that each graph makes


def ours(folder: str, kv_bits: int | None = None) -> tuple[Graphs, int]:
    """The graphs, and the number of layers."""
    model = load_model(folder)
    graphs = {}
    prompted = model.make_cache(kv_bits=kv_bits)
    graphs["prompt"] = [model(PROMPT, prompted), *prompted.buffers]
    cache = model.make_cache(kv_bits=kv_bits)
    mx.eval(prefill(model, PROMPT, cache), cache.buffers)
    graphs["decode step"] = [decode_step(model)(PROMPT[0, :1], cache), *cache.buffers]
    for rows, padding in {"4 rows": [0] * 4, "4 rows, padded": [0, 1, 0, 2]}.items():
        cache = model.make_cache(4, padding, kv_bits)
        mx.eval(prefill(model, mx.repeat(PROMPT, 4, axis=0), cache), cache.buffers)
        graphs[f"decode step of {rows}"] = [decode_step(model)(mx.repeat(PROMPT[0, :1], 4), cache), *cache.buffers]
    return graphs, len(model.layers)


def mlx_lm(folder: str) -> tuple[Graphs, int]:
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(folder))

    def graph(tokens: mx.array, cache: list[Any]) -> list[mx.array]:
        logits = model(tokens, cache=cache)
        return [logits, *(array for layer in cache for array in (layer.keys, layer.values))]

    cache = make_prompt_cache(model)
    mx.eval(graph(PROMPT, cache))
    graphs = {"prompt": graph(PROMPT, make_prompt_cache(model)), "decode step": graph(PROMPT[:, :1], cache)}
    return graphs, len(model.layers)


def count(arrays: list[mx.array]) -> Counter[str]:
    """Operations that the arrays still wait for, by name, without views."""
    with tempfile.NamedTemporaryFile(suffix=".dot") as file:
        mx.export_to_dot(file.name, *arrays)
        names = re.findall(r'label ?= ?"(\w+)", shape=rectangle', Path(file.name).read_text())
    return Counter(name for name in names if name not in VIEWS)


def main() -> None:
    folder = sys.argv[1]
    for module, name, standin in STANDINS:
        setattr(module, name, standin)
    for name, build in {"mlx-qwen3": ours, "mlx-lm": mlx_lm}.items():
        graphs, layers = build(folder)
        for graph, arrays in graphs.items():
            operations = count(arrays)
            offsets = operations["DynamicSliceUpdate"] / layers
            nodes = per_layer(operations, layers)
            print(
                f"{name}, {graph}: {nodes} nodes a layer, {nodes + offsets:g} dispatches; in all {operations.total()}"
            )
            print("   " + ", ".join(f"{name} {number / layers:.2g}" for name, number in operations.most_common()))


def per_layer(operations: Counter[str], layers: int) -> int:
    return sum(number // layers for number in operations.values())


if __name__ == "__main__":
    main()
