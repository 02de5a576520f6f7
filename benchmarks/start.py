"""Whole processes that make one token, ours and mlx-lm's in turns, and where ours spends its time.

"load" reads the weights in their own dtype and in float32, beside `cat FILE > /dev/null`.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
PROMPT = ["--prompt", "Hello", "--max-tokens", "1"]
PARTS = """
import sys, time
began = time.perf_counter()
import mlx_qwen3
import mlx.core
from mlx_qwen3.cli import app, generate
from mlx_qwen3.engine import reply
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.model.load import load_model
from mlx_qwen3.text.tokenizer import Tokenizer
imported = time.perf_counter()
checkpoint = Checkpoint(sys.argv[1])
checkpoint.parts
opened = time.perf_counter()
Tokenizer(checkpoint)
tokens = time.perf_counter()
model = load_model(checkpoint, "fp32")
loaded = time.perf_counter()
print(imported - began, opened - imported, tokens - opened, loaded - tokens)
"""
LOAD = """
import sys, time
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.model.load import load_model
checkpoint = Checkpoint(sys.argv[1])
checkpoint.parts
began = time.perf_counter()
model = load_model(checkpoint, sys.argv[2])
print(time.perf_counter() - began)
"""


def seconds(*command: str) -> tuple[float, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return time.perf_counter() - began, done.stdout


def main(folder: str, rounds: int = 5) -> None:
    python, files = sys.executable, sorted(map(str, Path(folder).glob("*.safetensors")))
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for _ in range(rounds):
        note("whole process", seconds(python, str(ROOT / "generate.py"), "--model", folder, *PROMPT)[0])
        note("mlx_lm.generate", seconds(python, "-m", "mlx_lm", "generate", "--model", folder, *PROMPT)[0])
        parts = seconds(python, "-c", PARTS, folder)[1].split()
        for name, part in zip(("imports", "headers", "tokenizer", "load, float32"), parts, strict=True):
            note(name, float(part))
        note("cat", seconds("sh", "-c", 'cat "$@" > /dev/null', "sh", *files)[0])
        note("load as stored", float(seconds(python, "-c", LOAD, folder, "bf16")[1]))
    for name, values in found.items():
        print(f"{name:16} {median(values):7.3f} s   [{min(values):.3f}, {max(values):.3f}]")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", help="A Hugging Face folder with Qwen3's tokenizer.")
    parser.add_argument("rounds", nargs="?", type=int, default=5, metavar="ROUNDS", help="Default: 5.")
    main(**vars(parser.parse_args()))
