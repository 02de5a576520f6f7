"""Packed releases converted: seconds, peak memory and loss, beside mlx-lm where it can read them; Markdown on stdout.

python benchmarks/releases.py make FOLDER             releases of Qwen3-0.6B's shape, with random codes, in FOLDER
python benchmarks/releases.py speed FOLDER [ROUNDS]   whole processes, interleaved

The loss is the norm of the difference of all weights over their norm, between the result and the values of the release.
Both are read by this package; tests/files/test_packed.py compares what it reads with the definitions.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from conversion import OURS, ROOT, THEIRS, run

CASES = {  # name of a release -> the conversions of it: "" as it is, or a mode
    "fp8": ("", "affine4"),
    "awq": ("",),
    "gptq4": ("",),
    "gptq8": ("",),
    "act-order": ("",),
    "compressed": ("",),
}
READ_BY_MLX_LM = ("awq", "gptq4")  # it refuses the others


def make(folder: str) -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    import releases
    from test_full_size import SHAPE

    place, group = Path(folder), {"group_size": 128}
    releases.write_fp8(place / "fp8", **SHAPE)
    releases.write_awq(place / "awq", **{**SHAPE, "torch_dtype": "float16", **group})
    for name, how in {
        "gptq4": {"order": None, "sym": True},
        "gptq8": {"bits": 8, "sym": True},
        "act-order": {"order": "shuffled"},
    }.items():
        releases.write_gptq(place / name, **{**SHAPE, "torch_dtype": "float16", **group, **how})
    releases.write_compressed(place / "compressed", **{**SHAPE, **group})


def speed(folder: str, rounds: int = 3) -> None:
    cases = [(name, "mlx-qwen3", OURS, mode) for name, modes in CASES.items() for mode in modes]
    cases += [(name, "mlx-lm", THEIRS, "") for name in READ_BY_MLX_LM]
    found: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    losses: dict[tuple[str, ...], str] = {}
    for _ in range(rounds):
        for name, who, program, mode in cases:
            source, key = f"{folder}/{name}", (name, mode, who)
            with tempfile.TemporaryDirectory() as place:
                try:
                    found.setdefault(key, []).append(run(program, source, f"{place}/out", mode))
                except subprocess.CalledProcessError as error:
                    losses[key] = f"fails: {error.stderr}"
                    continue
                if key not in losses:
                    losses[key] = f"{_loss(source, f'{place}/out'):.2g}"
    print("| release | result | | seconds | peak MB | loss |\n|---|---|---|---|---|---|")
    for (name, mode, who), figures in found.items():
        loss = losses[name, mode, who]
        times = [f"{median(values):.1f}" for values in zip(*figures, strict=True)] or ["-", "-"]
        print(f"| {name} | {mode or 'as it is'} | {who} | {times[0]} | {times[1]} | {loss.strip().splitlines()[-1]} |")


def _loss(source: str, result: str) -> float:
    sys.path.insert(0, str(ROOT))
    import numpy as np

    from mlx_qwen3.files.checkpoint import Checkpoint
    from mlx_qwen3.files.values import read_rows

    before, after = Checkpoint(source).parts, Checkpoint(result).parts
    difference = norm = 0.0
    for name in before:
        a, b = (
            read_rows(part.leaves, part.quantization, 0, part.leaves["weight"].shape[0])
            for part in (before[name], after[name])
        )
        difference += float(np.square(a - b, dtype=np.float32).sum(dtype=np.float64))
        norm += float(np.square(a).sum(dtype=np.float64))
    return (difference / norm) ** 0.5


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    commands = {"make": make, "speed": lambda *a: speed(a[0], *map(int, a[1:]))}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands, help="See above.")
    parser.add_argument("arguments", nargs="+", help="See above.")
    given = parser.parse_args()
    commands[given.command](*given.arguments)
