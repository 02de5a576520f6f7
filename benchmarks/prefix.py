"""First token of a prompt whose first 2,000 tokens are kept from an earlier request, beside one that is new.

Each pair of requests has tokens of its own, so that only the second of a pair finds something. Both have 2,016 tokens.
"""

import argparse
import time
from statistics import median

import mlx_qwen3
from mlx_qwen3 import Engine, ReplyOptions, SamplingParams

# isort: split
import numpy as np

KEPT, NEW = 2000, 16


def main(source: str, rounds: int = 5) -> None:
    model, tokenizer = mlx_qwen3.load(source)
    options = ReplyOptions(sampling=SamplingParams(temperature=0), max_tokens=2)
    draw = np.random.default_rng(0)
    cold, warm = [], []
    with Engine(model, tokenizer, max_rows=1) as engine:

        def seconds(ids: list[int]) -> float:
            request = engine.prepare(ids, options)
            began = time.perf_counter()
            reply = engine.submit(request)
            next(reply)
            taken = time.perf_counter() - began
            list(reply)
            return taken

        for _ in range(1 + rounds):
            first, second, *kept = (draw.integers(0, 500, size).tolist() for size in (NEW, NEW, KEPT))
            cold.append(seconds(kept[0] + first))
            warm.append(seconds(kept[0] + second))
    of_cold, of_warm = median(cold[1:]), median(warm[1:])  # the first pair warms up
    print(f"{source}: new {1e3 * of_cold:.1f} ms, kept {1e3 * of_warm:.1f} ms, {of_warm / of_cold:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="A checkpoint with a tokenizer, or demo.")
    parser.add_argument("rounds", nargs="?", type=int, default=5, metavar="ROUNDS", help="Default: 5.")
    main(**vars(parser.parse_args()))
