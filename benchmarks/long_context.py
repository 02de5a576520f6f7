"""A long cache: what a token takes beside the bytes that it reads, the longest gap, and the peak of memory.

The model has Qwen3-0.6B's shape but two layers and a small vocabulary, beside which the cache counts: a model of few
layers shows best if a layer is in memory twice. Its weights are random, and the cache is filled with random numbers,
not by a prompt. Then a pass of 128 tokens is timed, and a reply, which begins just before the window of the step grows.
"""

import argparse
import time
from itertools import pairwise
from statistics import median

import mlx_qwen3  # noqa: F401  before MLX: it loads the BLAS

# isort: split
import mlx.core as mx
from mlx.utils import tree_map

from mlx_qwen3.engine.batch import Batch
from mlx_qwen3.engine.rows import Row
from mlx_qwen3.engine.runner import prefill
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.files.config import Qwen3Config
from mlx_qwen3.model.cache import KVCache
from mlx_qwen3.model.qwen3 import Qwen3

CONFIG = {
    "model_type": "qwen3",
    "vocab_size": 4096,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 1 << 18,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
PASS, REPLY = 128, 64


def filled(model: Qwen3, tokens: int) -> KVCache:
    cache, config = model.make_cache(), model.config
    cache.limit = tokens + PASS + REPLY
    view = cache.view(tokens)
    query = mx.zeros((1, config.num_attention_heads, 1, config.head_dim))
    for layer in range(config.num_hidden_layers):
        new = 0.1 * mx.random.normal((2, 1, config.num_key_value_heads, tokens, config.head_dim))
        mx.eval(view.attend(layer, query, new, 1.0))
    cache.commit(view.buffers, tokens)
    mx.eval(cache.buffers)
    return cache


def measured(model: Qwen3, tokens: int) -> None:
    cache = filled(model, tokens - PASS - REPLY // 2)
    mx.clear_cache()
    mx.reset_peak_memory()
    began = time.perf_counter()
    logits = prefill(model, mx.array([[5] * PASS]), cache)
    mx.eval(logits, cache.buffers)
    prompt = time.perf_counter() - began
    used = model.nbytes + cache.nbytes
    passed = mx.get_peak_memory() / used
    batch = Batch(model, [row := Row([5] * cache.end, SamplingParams(temperature=0), REPLY)], cache, 4096, logits)
    del cache, logits
    mx.clear_cache()
    mx.reset_peak_memory()
    times = []
    while not row.ended:
        batch.step()
        times.append(time.perf_counter())
    gaps = [after - before for before, after in pairwise(times)][1:]
    token = median(gaps)
    read = model.nbytes + batch.nbytes * tokens // batch._cache.capacity
    print(
        f"| {tokens:,} | {1e3 * prompt / PASS:.2f} | {passed:.2f} | {1e3 * token:.1f} | {read / 1e6:,.0f} "
        f"| {read / token / 1e9:.1f} | {max(gaps) / token:.2f} | {mx.get_peak_memory() / used:.3f} |"
    )


def main(lengths: list[int]) -> None:
    model = Qwen3(Qwen3Config.from_hf(CONFIG))
    model.update(tree_map(lambda array: 0.02 * mx.random.normal(array.shape), model.parameters()))
    mx.eval(model.parameters())
    print("| tokens | prompt, ms a token | peak / (weights + cache) | decode, ms a token | reads, MB | GB/s", end="")
    print(" | longest gap / median | peak / (weights + cache) |\n|---|---|---|---|---|---|---|---|")
    for tokens in lengths:
        measured(model, tokens)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = "Tokens in the cache. Default: 8192 32768 131072."
    parser.add_argument("lengths", nargs="*", type=int, default=[8192, 32768, 131072], metavar="TOKENS", help=words)
    main(**vars(parser.parse_args()))
