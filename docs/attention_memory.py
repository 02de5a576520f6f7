"""Peak memory and time of one attention against the length: the fused operation, and blocks of queries.

The heads are those of Qwen3-0.6B. Prints a table, and with FILE draws it as PNG, which needs matplotlib.
"""

import argparse
import time
from collections.abc import Callable

import mlx.core as mx

from mlx_qwen3.compare.attention import attention_chunk

HEADS, KV_HEADS, HEAD_DIM = 16, 8, 128  # of Qwen3-0.6B
LENGTHS = (512, 1024, 2048, 4096, 8192)
CHUNKS = (64, 256, 1024)


def fused(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    out = mx.fast.scaled_dot_product_attention(q, k, v, scale=HEAD_DIM**-0.5, mask="causal")
    return out.transpose(0, 2, 1, 3).reshape(1, q.shape[2], -1)


def measure(function: Callable[..., mx.array], length: int) -> tuple[float, float]:
    """(peak memory above q, k and v in MB, seconds)."""
    shapes = [(1, heads, length, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    arrays = [mx.random.normal(shape, key=mx.random.key(index)) for index, shape in enumerate(shapes)]
    mx.eval(arrays)
    mx.clear_cache()
    mx.reset_peak_memory()
    before, start = mx.get_active_memory(), time.perf_counter()
    mx.eval(function(*arrays))
    return (mx.get_peak_memory() - before) / 1e6, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", metavar="FILE", help="Such as docs/attention-memory.png.")
    file = parser.parse_args().file
    functions: dict[str, Callable[..., mx.array]] = {"fused": fused}
    for chunk in CHUNKS:
        functions[f"attention_chunk, {chunk} queries"] = lambda q, k, v, chunk=chunk: attention_chunk(
            q, k, v, chunk=chunk
        )
    results = {name: [measure(function, length) for length in LENGTHS] for name, function in functions.items()}
    print(f"{'MB (s)':28}" + "".join(f"{length:>18}" for length in LENGTHS))
    for name, values in results.items():
        print(f"{name:28}" + "".join(f"{f'{memory:.0f} ({seconds:.2f})':>18}" for memory, seconds in values))
    if file:
        draw(file, results)


def draw(path: str, results: dict[str, list[tuple[float, float]]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for name, values in results.items():
        axes.plot(LENGTHS, [memory for memory, _ in values], "o-", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
    axes.set_xlabel("length (queries = keys)")
    axes.set_ylabel("peak memory above q, k, v (MB)")
    axes.set_title(f"one attention, {HEADS} heads on {KV_HEADS}, float32, MLX on the {mx.default_device().type.name}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
