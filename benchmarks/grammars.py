"""Time of compiling grammars and of making masks, over JSON schemas and their instances.

SCHEMAS has one JSON object a line: {"schema": ..., "tests": [{"data": ...}]}.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlx_qwen3 import GrammarCompiler, JsonObject, JsonSchema, Tokenizer
from mlx_qwen3.errors import UsageError


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, (time.perf_counter() - start) * 1e3


def show(name: str, times: list[float]) -> None:
    p95, p99 = np.percentile(times, [95, 99])
    print(
        f"{name}: {len(times)} | ms: median {np.median(times):.3f}, p95 {p95:.3f}, p99 {p99:.3f}, most {max(times):.2f}"
    )


def main(folder: str, file: str) -> None:
    tokenizer = Tokenizer(folder)
    compiler = GrammarCompiler(tokenizer)
    _, first = timed(lambda: compiler.compile(JsonObject()))
    compiling, masks = [], []
    for line in filter(None, Path(file).read_text(encoding="utf-8").split("\n")):
        entry = json.loads(line)
        try:
            grammar, took = timed(lambda entry=entry: compiler.compile(JsonSchema(entry["schema"], strict=False)))
        except UsageError:
            continue
        compiling.append(took)
        for test in entry["tests"]:
            match = grammar.begin()
            for token in tokenizer.encode(json.dumps(test["data"], ensure_ascii=False)):
                mask, took = timed(match.allowed)
                masks.append(took)
                if not mask[token]:
                    break
                match.take(token)
    print(f"vocabulary of {tokenizer.size} and the first grammar: {first / 1e3:.2f} s")
    show("grammars", compiling)
    show("masks", masks)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="TOKENIZER", help="A folder with a tokenizer.json.")
    parser.add_argument("file", metavar="SCHEMAS", help="A file of JSON lines.")
    main(**vars(parser.parse_args()))
