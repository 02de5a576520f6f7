"""Peak memory and time of one attention against the length: the fused operation, and blocks of queries.

The heads are those of Qwen3-0.6B. Prints a table, and with FILE draws it as PNG, which needs matplotlib.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from mlx_qwen3.compare.attention import attention_chunk  # noqa: E402
from mlx_qwen3.drawing import FIRST, SECOND, figure_class, look, png  # noqa: E402

HEADS, KV_HEADS, HEAD_DIM = 16, 8, 128  # of Qwen3-0.6B
LENGTHS = (512, 1024, 2048, 4096, 8192)
CHUNKS = (64, 256, 1024)
STYLES = ((SECOND, "^"), (FIRST, "o"), (FIRST, "s"), (FIRST, "D"))  # of the fused operation, then of CHUNKS


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
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="Such as docs/attention-memory.png.")
    file = parser.parse_args().file
    functions: dict[str, Callable[..., mx.array]] = {"fused": fused}
    for chunk in CHUNKS:
        functions[f"blocks of {chunk:,} queries"] = lambda q, k, v, chunk=chunk: attention_chunk(q, k, v, chunk=chunk)
    results = {name: [measure(function, length) for length in LENGTHS] for name, function in functions.items()}
    print(f"{'MB (s)':28}" + "".join(f"{length:>18}" for length in LENGTHS))
    for name, values in results.items():
        print(f"{name:28}" + "".join(f"{f'{memory:.0f} ({seconds:.2f})':>18}" for memory, seconds in values))
    if file:
        draw(file, results)


@look()
def draw(path: Path, results: dict[str, list[tuple[float, float]]]) -> None:
    figure = figure_class()(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for (name, values), (colour, marker) in zip(results.items(), STYLES, strict=True):
        memory = [megabytes for megabytes, _ in values]
        axes.plot(LENGTHS, memory, color=colour, marker=marker, markersize=5)
        place = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(name, (LENGTHS[-1], memory[-1]), color=colour, **place)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()
    axes.set_xlabel("length: queries and keys, logarithmic")
    axes.set_ylabel("peak memory above q, k and v, MB, logarithmic")
    axes.set_title(
        f"One attention, {HEADS} heads on {KV_HEADS}, float32, on the {mx.default_device().type.name}", loc="left"
    )
    axes.grid()
    path.write_bytes(png(figure))


if __name__ == "__main__":
    main()
