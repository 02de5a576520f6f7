"""Tokens per second of many rows at once: this package's scheduler beside mlx-lm's BatchGenerator; Markdown on stdout.

python benchmarks/batch.py FOLDER [ROWS,ROWS...] [ROUNDS]

Both compute in float32 with the same BLAS, each in a process of its own, in turns. All rows have prompts of PROMPT
tokens and decode greedily. A rate counts the tokens after the moment at which every row has its first one.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

PROMPT, TOKENS = 32, 33


def prompts(rows: int) -> list[list[int]]:
    return [[(7 + 31 * row + 13 * index) % 1000 for index in range(PROMPT)] for row in range(rows)]


def ours(folder: str) -> Iterator[tuple[int, Iterator[int]]]:
    import mlx_qwen3  # noqa: F401  first: it loads the BLAS
    from mlx_qwen3.engine.rows import Row
    from mlx_qwen3.engine.sampling import SamplingParams
    from mlx_qwen3.engine.scheduler import Scheduler
    from mlx_qwen3.model.load import load_model

    model = load_model(Path(folder), "fp32")

    def run(rows: int) -> Iterator[int]:
        # An unlimited gap: prompts are computed first, however long the running rows wait
        scheduler = Scheduler(model, model.config.vocab_size, max_rows=rows, max_gap=1e9)
        for row, prompt in enumerate(prompts(rows)):
            scheduler.add(Row(prompt, SamplingParams(temperature=0), TOKENS + rows, number=row))
        yield from (row.number for row, _ in scheduler.run())

    return run


def mlx_lm(folder: str):
    import mlx_qwen3  # noqa: F401  for the BLAS

    # isort: split
    import mlx.core as mx
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(folder))
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())

    def run(rows: int) -> Iterator[int]:
        generator = BatchGenerator(model, stop_tokens=[])
        uids = generator.insert(prompts(rows), [TOKENS + rows] * rows)
        while responses := generator.next_generated():
            yield from (uids.index(response.uid) for response in responses)
        generator.close()

    return run


def rate(run, rows: int) -> float:
    """Tokens per second of all rows, from the last first token on, as long as all rows run."""
    seen = [0] * rows
    began = made = 0
    for row in run(rows):
        seen[row] += 1
        if not began and min(seen) > 0:
            began, made = time.perf_counter(), sum(seen)
        if began and max(seen) >= TOKENS + rows - 1:
            return (sum(seen) - made) / (time.perf_counter() - began)
    raise SystemExit("too few tokens")


def main() -> None:
    folder = sys.argv[1]
    rows = [int(number) for number in (sys.argv[2] if len(sys.argv) > 2 else "1,2,4,8,16").split(",")]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    found = {(name, n): [] for n in rows for name in ("ours", "mlx_lm")}
    for _ in range(rounds):
        for name in ("ours", "mlx_lm"):
            command = [sys.executable, __file__, "--worker", name, folder, json.dumps(rows)]
            figures = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            for n, figure in zip(rows, figures, strict=True):
                found[name, n].append(figure)
    one = {name: median(found[name, rows[0]]) for name in ("ours", "mlx_lm")}
    print("| rows | mlx-qwen3, tok/s | times one row | mlx-lm, tok/s | times one row | ours / mlx-lm |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for n in rows:
        a, b = median(found["ours", n]), median(found["mlx_lm", n])
        print(f"| {n} | {a:.1f} | {a / one['ours']:.2f} | {b:.1f} | {b / one['mlx_lm']:.2f} | {a / b:.2f} |")


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        run = {"ours": ours, "mlx_lm": mlx_lm}[sys.argv[2]](sys.argv[3])
        rate(run, 1)  # warm up
        print(json.dumps([rate(run, rows) for rows in json.loads(sys.argv[4])]))
    else:
        main()
