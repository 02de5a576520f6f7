"""Graph nodes of a decode step and of a prompt's pass, per layer, as Metal dispatches them: ours and mlx-lm's.

Metal runs each of MLX's `fast` operations, and our own kernel, as one dispatch; a CPU expands them. So each is replaced
by one operation that no compiler fuses, the graph is exported, and the operations that move data are counted: views
(slices, reshapes, transposes, broadcasts) cost Metal nothing. What Metal copies to make a kernel's input contiguous is
not in the graph. So the inputs of every kernel are computed, and their strides compared with what MLX's kernels take
without a copy (RULES).
A slice update at a position that is an array has a second, tiny dispatch, which computes the offset
(mlx/backend/gpu/primitives.cpp); it is counted beside the nodes.
"""

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx_qwen3  # noqa: F401  before MLX: it loads the BLAS

# isort: split
import mlx.core as mx
import mlx.nn as nn

from mlx_qwen3.engine.runner import decode_step
from mlx_qwen3.model import kernels
from mlx_qwen3.model.linear import Linear
from mlx_qwen3.model.load import load_model
from mlx_qwen3.model.qwen3 import Qwen3

VIEWS = "Broadcast Flatten Unflatten Transpose Slice ExpandDims Squeeze Reshape Split AsStrided".split()
PROMPT = mx.array([[1, 2, 3]])


def one_norm_rope(qkv: mx.array, weight: mx.array, cos: mx.array, *_: Any) -> tuple[mx.array, mx.array]:
    (B, _, L, _), (normed, _, D) = cos.shape, weight.shape
    done = mx.sort(qkv).reshape(B, -1, L, D)
    H = 2 * normed - done.shape[1]
    return done[:, :H], done[:, H:].reshape(B, 2, -1, L, D).transpose(1, 0, 2, 3, 4)


GPU: tuple[Any, str, Callable[..., Any]] = (kernels, "on_gpu", lambda: True)
STANDINS: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    (mx.fast, "rms_norm", lambda x, *_, **__: mx.sort(x)),
    (mx.fast, "rope", lambda x, *_, **__: mx.sort(x)),
    (mx.fast, "scaled_dot_product_attention", lambda q, *_, **__: mx.sort(q)),
    (kernels, "norm_rope", one_norm_rope),
    (kernels, "attend", lambda q, *_: mx.sort(q)),
    GPU,
    (kernels, "replay_after", lambda: 0),
)
STEPS = {"decode step": [0], "decode step of 4 rows": [0] * 4, "decode step of 4 rows, padded": [0, 1, 0, 2]}


Layout = tuple[tuple[int, ...], list[int]]  # shape and strides


def dense(layout: Layout) -> bool:
    """Whether the elements lie in the order of the axes, without gaps."""
    expected = 1
    for size, stride in reversed(list(zip(*layout, strict=True))):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def transposed(layout: Layout) -> bool:
    """Whether it is a dense (B, L, N, D) whose second and third axis have changed places."""
    shape, strides = layout
    return len(shape) == 4 and dense((tuple(shape[i] for i in (0, 2, 1, 3)), [strides[i] for i in (0, 2, 1, 3)]))


def last(layout: Layout) -> bool:
    return layout[1][-1] == 1


# What the Metal kernels of MLX 0.32 take without a copy, as far as we know; it was not tried on Metal. See
# normalization.cpp, rope.cpp, scaled_dot_product_attention.cpp, matmul.cpp and custom_kernel.cpp in mlx/backend/metal.
RULES: dict[str, Callable[[Layout], bool]] = {
    "rms_norm": lambda x: dense(x) or transposed(x),
    "rope": lambda x: dense(x) or transposed(x) or (len(x[0]) == 3 and last(x)),
    "queries": lambda x: dense(x) or transposed(x),
    "keys and values": lambda x: last(x) and (1 in x[0][:2] or x[1][0] == x[1][1] * x[0][1]),
    "product": dense,
    "our kernel": dense,
}


def copies(build: Callable[[], Any]) -> Counter[str]:
    """The inputs of kernels that Metal would copy in what `build` computes, by the kernel."""
    found: Counter[str] = Counter()
    inside = False

    def see(name: str, *arrays: Any) -> None:
        for array in arrays:
            mx.eval(array)
            view = memoryview(array)
            layout = view.shape, [stride // view.itemsize for stride in view.strides]
            found[name] += not RULES[name](layout)

    def watched(place: Any, name: str, rule: str, inputs: Any, also: str = "", results: Any = None) -> Any:
        plain = getattr(place, name)

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal inside
            if inside:  # what a CPU does in place of a kernel
                return plain(*arguments, **options)
            first, *others = inputs(*arguments)
            see(rule, first)
            see(also or rule, *others)
            inside = True
            made = plain(*arguments, **options)
            inside = False
            return made if results is None else tuple(map(results, made))  # our kernel makes dense arrays

        setattr(place, name, call)
        return place, name, plain

    plain = [
        (kernels, "can_compile", kernels.can_compile),
        watched(mx.fast, "rms_norm", "rms_norm", lambda x, *_: [x]),
        watched(mx.fast, "rope", "rope", lambda x, *_: [x]),
        watched(mx.fast, "scaled_dot_product_attention", "queries", lambda q, k, v: [q, k, v], "keys and values"),
        watched(kernels, "norm_rope", "our kernel", lambda *arrays: arrays[:4], results=mx.contiguous),
        watched(kernels, "attend", "queries", lambda q, kv, *_: [q, kv[0, :], kv[1, :]], "keys and values"),
        watched(Linear, "__call__", "product", lambda _, x: [x]),
        watched(Linear, "add", "product", lambda _, residual, x: [residual, x]),
        watched(nn.Linear, "__call__", "product", lambda _, x: [x]),
        watched(nn.QuantizedLinear, "__call__", "product", lambda _, x: [x]),
    ]
    kernels.can_compile = lambda: False  # a step that is traced has no numbers
    try:
        mx.eval(build())
    finally:
        for place, name, function in plain:
            setattr(place, name, function)
    return +found


Builders = dict[str, Callable[[], list[mx.array]]]  # each makes the arrays of one graph, not evaluated
Graphs = dict[str, list[mx.array]]


def our_builders(model: Qwen3, kv_bits: int | None = None) -> Builders:
    def prompt() -> list[mx.array]:
        cache = model.make_cache(kv_bits=kv_bits)
        return [model(PROMPT, cache), *cache.buffers]

    def step(padding: list[int]) -> list[mx.array]:
        rows = len(padding)
        cache = model.make_cache(rows, padding, kv_bits)
        mx.eval(model(mx.repeat(PROMPT, rows, axis=0), cache), cache.buffers)
        return [decode_step(model)(mx.repeat(PROMPT[0, :1], rows), cache), *cache.buffers]

    return {"prompt": prompt, **{name: partial(step, padding) for name, padding in STEPS.items()}}


def their_builders(model: Any) -> Builders:
    from mlx_lm.models.cache import BatchKVCache, make_prompt_cache

    def graph(tokens: mx.array, cache: list[Any]) -> list[mx.array]:
        logits = model(tokens, cache=cache)
        return [logits, *(array for layer in cache for array in (layer.keys, layer.values))]

    def step(padding: list[int]) -> list[mx.array]:
        rows = len(padding)
        cache = [BatchKVCache(padding) for _ in model.layers] if rows > 1 else make_prompt_cache(model)
        mx.eval(graph(mx.repeat(PROMPT, rows, axis=0), cache))
        return graph(mx.repeat(PROMPT[:, :1], rows, axis=0), cache)

    return {
        "prompt": lambda: graph(PROMPT, make_prompt_cache(model)),
        **{name: partial(step, padding) for name, padding in STEPS.items()},
    }


def ours(folder: str, kv_bits: int | None = None) -> tuple[Graphs, int]:
    """The graphs, and the number of layers."""
    model = load_model(folder)
    return {name: build() for name, build in our_builders(model, kv_bits).items()}, len(model.layers)


def our_copies(folder: str, kv_bits: int | None = None) -> dict[str, Counter[str]]:
    """`copies` of each graph. `kernels.on_gpu` must say that there is a GPU."""
    return {name: copies(build) for name, build in our_builders(load_model(folder), kv_bits).items()}


def count(arrays: list[mx.array]) -> Counter[str]:
    """Operations that the arrays still wait for, by name, without views."""
    with tempfile.NamedTemporaryFile(suffix=".dot") as file:
        mx.export_to_dot(file.name, *arrays)
        names = re.findall(r'label ?= ?"(\w+)", shape=rectangle', Path(file.name).read_text())
    return Counter(name for name in names if name not in VIEWS)


def main() -> None:
    from mlx_lm.utils import load_model as load_theirs

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", help="A Hugging Face or an MLX folder.")
    folder = parser.parse_args().folder
    other, _ = load_theirs(Path(folder))
    setattr(*GPU)
    copied = {"mlx-qwen3": our_copies(folder)}
    copied["mlx-lm"] = {name: copies(build) for name, build in their_builders(other).items()}
    for place, name, standin in STANDINS:
        setattr(place, name, standin)
    model = load_model(folder)
    layers = len(model.layers)
    for name, builders in {"mlx-qwen3": our_builders(model), "mlx-lm": their_builders(other)}.items():
        for graph, build in builders.items():
            operations = count(build())
            offsets = operations["DynamicSliceUpdate"] / layers
            nodes = per_layer(operations, layers)
            also = ", ".join(f"{number} of {kernel}" for kernel, number in copied[name][graph].items()) or "none"
            print(
                f"{name}, {graph}: {nodes} nodes a layer, {nodes + offsets:g} dispatches; in all "
                f"{operations.total()}; copied inputs: {also}"
            )
            print("   " + ", ".join(f"{name} {number / layers:.2g}" for name, number in operations.most_common()))


def per_layer(operations: Counter[str], layers: int) -> int:
    return sum(number // layers for number in operations.values())


if __name__ == "__main__":
    main()
