"""What a cache of 8 or 4 bits costs on the built-in text, and what it saves.

With `random` it takes four rows of 128 random tokens in place of the text, for a checkpoint without a tokenizer.
"""

import argparse

import numpy as np

from mlx_qwen3.compare.cache_cost import cache_cost
from mlx_qwen3.compare.divergence import sequences_for
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.files.hub import resolve
from mlx_qwen3.files.values import to_mlx
from mlx_qwen3.model.kv_format import KV_BITS
from mlx_qwen3.model.load import load_model


def main(source: str, tokens: str = "text") -> None:
    checkpoint = Checkpoint(resolve(source))
    model = load_model(checkpoint)
    if tokens == "random":
        rows = [to_mlx(np.random.default_rng(0).integers(0, checkpoint.config.vocab_size, (4, 128)))]
    else:
        rows = [to_mlx(np.array([ids])) for ids in sequences_for(checkpoint, None)[0][1:]]
    print("| bits | bytes of a token | of unquantized | KL mean | KL max | same best token | keys | values | tokens |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for bits in KV_BITS:
        cost = cache_cost(model, rows, bits)
        worst = [max(getattr(layer, name) for layer in cost.layers) for name in ("keys", "values")]
        print(
            f"| {bits} | {cost.token_bytes:,} | {cost.token_bytes / cost.unquantized_bytes:.2f} | {cost.kl_mean:.2g} "
            f"| {cost.kl_max:.2g} | {cost.top1_agreement:.1%} | {worst[0]:.2g} | {worst[1]:.2g} | {cost.tokens} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="A folder, a Hub id or demo.")
    parser.add_argument("tokens", nargs="?", choices=("text", "random"), default="text", help="Default: text.")
    main(**vars(parser.parse_args()))
