"""Prints the tables of models.md: memory by bits and context, and what fits which Mac.

`python docs/refresh.py` puts them into the page. Nothing is loaded: all numbers follow from the shapes.
"""

import argparse
from dataclasses import dataclass

VOCABULARY, HEAD_DIM, CACHE_BYTES = 151_936, 128, 2  # the cache holds bf16
GROUP_BITS = 32 / 64  # 4- and 8-bit matrices: a 16-bit scale and a 16-bit bias for every 64 weights
WORKING_BYTES = 1e9  # left for activations, the tokenizer and Python
GPU_SHARE = {36: 2 / 3, 10_000: 3 / 4}  # of a Mac's memory, for Macs up to this many GiB
MACS = (8, 16, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512)  # GiB
BITS = (16, 8, 6, 4)
SHORTEST = 8192  # tokens of context that a Mac must hold before we say that a model fits


@dataclass(frozen=True)
class Shape:
    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    inner: int  # of the MLP, or of one expert
    tied: bool
    context: int = 40_960
    experts: int = 0

    def matrices(self) -> int:
        """Parameters of all matrices."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * HEAD_DIM
        mlp = 3 * self.hidden * self.inner * max(self.experts, 1) + self.experts * self.hidden
        return self.layers * (attention + mlp) + (1 if self.tied else 2) * VOCABULARY * self.hidden

    def norms(self) -> int:
        return self.layers * 2 * (self.hidden + HEAD_DIM) + self.hidden

    def parameters(self) -> int:
        return self.matrices() + self.norms()

    def weight_bytes(self, bits: int) -> float:
        return self.matrices() * (bits + (GROUP_BITS if bits < 16 else 0)) / 8 + 2 * self.norms()

    def cache_bytes(self, tokens: int) -> float:
        return tokens * self.layers * 2 * self.kv_heads * HEAD_DIM * CACHE_BYTES


DENSE = (
    Shape("0.6B", 28, 1024, 16, 8, 3072, True),
    Shape("1.7B", 28, 2048, 16, 8, 6144, True),
    Shape("4B", 36, 2560, 32, 8, 9728, True),
    Shape("4B-2507", 36, 2560, 32, 8, 9728, True, context=262_144),
    Shape("8B", 36, 4096, 32, 8, 12288, False),
    Shape("14B", 40, 5120, 40, 8, 17408, False),
    Shape("32B", 64, 5120, 64, 8, 25600, False),
)
EXPERTS = (
    Shape("30B-A3B", 48, 2048, 32, 4, 768, False, experts=128),
    Shape("30B-A3B-2507", 48, 2048, 32, 4, 768, False, context=262_144, experts=128),
    Shape("235B-A22B", 94, 4096, 64, 4, 1536, False, experts=128),
)


def table(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def memory() -> str:
    """Weights by bits, and the cache by context, in GB (10^9 bytes)."""
    head = ["Qwen3", "parameters", *(f"{bits} bits" for bits in BITS), "1,000 tokens", "32,768 tokens", "whole context"]
    rows = []
    for shape in DENSE + EXPERTS:
        weights = [f"{shape.weight_bytes(bits) / 1e9:.1f}" for bits in BITS]
        cache = [f"{shape.cache_bytes(tokens) / 1e9:.2f}" for tokens in (1000, 32_768)]
        whole = f"{shape.cache_bytes(shape.context) / 1e9:.1f} ({shape.context:,})"
        rows.append([shape.name, f"{shape.parameters():,}", *weights, *cache, whole])
    return table(head, rows)


def usable(gigabytes: int) -> float:
    """Bytes of a Mac's memory that the GPU may take."""
    return gigabytes * 2**30 * next(share for largest, share in GPU_SHARE.items() if gigabytes <= largest)


def fit(shape: Shape, gigabytes: int) -> str:
    """The most bits that leave room for a context of SHORTEST, and the longest context with them."""
    for bits in (16, 8, 4):
        room = usable(gigabytes) - WORKING_BYTES - shape.weight_bytes(bits)
        if room >= shape.cache_bytes(SHORTEST):
            tokens = min(shape.context, int(room / shape.cache_bytes(1)))
            return f"{'bf16' if bits == 16 else f'{bits}-bit'}, {tokens // 1024}k"
    return "-"


def macs() -> str:
    """The best precision and the longest context, for each Mac and each model that runs."""
    shapes = DENSE + EXPERTS
    head = ["Mac", "for the GPU", *(shape.name for shape in shapes)]
    rows = [[f"{size} GB", f"{usable(size) / 1e9:.1f}", *(fit(shape, size) for shape in shapes)] for size in MACS]
    return table(head, rows)


if __name__ == "__main__":
    tables = {"memory": memory, "macs": macs}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=tables, help="Which table.")
    print(tables[parser.parse_args().table]())
