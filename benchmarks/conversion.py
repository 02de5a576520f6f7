"""Conversion measured: `speed` against mlx-lm, `modes` for what every mode costs; Markdown rows on stdout.

python benchmarks/conversion.py speed SOURCE [ROUNDS]     time and peak memory of whole processes, interleaved
python benchmarks/conversion.py modes SOURCE [MODE...]    bits, size, KL divergence, top-1, perplexity ratio
python benchmarks/conversion.py exact [MODE...]           exact match of the demo model on its own tasks
python benchmarks/conversion.py random FOLDER [SHAPE]     random weights: 0.6B, 0.6B-mid, 30B-A3B

Peak memory is the VmHWM of Linux's /proc, of the process and its threads.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
OURS = """
import sys
from mlx_qwen3.conversion.convert import convert
convert(sys.argv[1], sys.argv[2], quantize=sys.argv[3] or None, divergence=False)
"""
THEIRS = """
import sys
from mlx_lm.convert import convert
convert(sys.argv[1], sys.argv[2], quantize=bool(sys.argv[3]))
"""
EMPTY = ""
PEAK = """
import pathlib
print("VmHWM", pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
MODES = "bf16 affine8 affine6 affine5 affine4 affine4g32 affine4g128 affine3 affine2 mxfp8 mxfp4 nvfp4 mixed".split()


def run(program: str, *arguments: str) -> tuple[float, float]:
    """(seconds, peak MB) of a process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    command = [sys.executable, "-c", program + PEAK, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return time.monotonic() - began, int(result.stdout.split("VmHWM")[1].split()[0]) / 1000


def speed(source: str, rounds: int = 3) -> None:
    cases = [
        (name, program, mode) for mode in ("", "affine4") for name, program in (("mlx-qwen3", OURS), ("mlx-lm", THEIRS))
    ]
    found: dict[tuple[str, str], list[tuple[float, float]]] = {(name, mode): [] for name, _, mode in cases}
    print(f"an empty Python process: {run(EMPTY)[1]:.0f} MB")
    for _ in range(rounds):
        for name, program, mode in cases:
            with tempfile.TemporaryDirectory() as folder:
                found[name, mode].append(run(program, source, f"{folder}/out", mode))
    print("| result | | seconds | peak MB |\n|---|---|---|---|")
    for (name, mode), figures in found.items():
        seconds, peak = (median(values) for values in zip(*figures, strict=True))
        print(f"| {mode or 'as stored'} | {name} | {seconds:.2f} | {peak:.0f} |")


def modes(source: str, *wanted: str) -> None:
    print("| mode | bits per weight | MB | KL mean | KL p99 | top-1 | perplexity ratio | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for mode in wanted or MODES:
        option = ["--dtype", mode] if mode in ("bf16", "fp16", "fp32") else ["--quantize", mode]
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            command = [sys.executable, ROOT / "convert.py", source, f"{folder}/out", *option, "--json"]
            result = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
            seconds = time.monotonic() - began
        b = result["divergence"]
        ratio = "-" if b["perplexity_ratio"] is None else f"{b['perplexity_ratio']:.4f}"
        print(
            f"| {mode} | {result['bits_per_weight']:.3f} | {result['bytes'] / 1e6:.1f} | {b['kl_mean']:.3g} "
            f"| {b['kl_p99']:.3g} | {b['top1_agreement']:.3f} | {ratio} | {seconds:.1f} |",
            flush=True,
        )


def exact(*wanted: str) -> None:
    """Thinking on, 30 held-out examples of every task."""
    sys.path.insert(0, str(ROOT))
    from mlx_qwen3.conversion.convert import convert
    from mlx_qwen3.files.hub import DEMO
    from training import evaluate

    print("| mode | exact match |\n|---|---|")
    for mode in wanted or MODES:
        with tempfile.TemporaryDirectory() as folder:
            source = str(DEMO)
            if mode != "bf16":  # unpacked values are the same and faster, because a BLAS can multiply them
                convert(source, f"{folder}/packed", quantize=mode, divergence=False)
                source = f"{folder}/plain"
                convert(f"{folder}/packed", source, quantize="none", dtype="fp32", divergence=False)
            engine, tokenizer = evaluate.mlx_engine(source, folder)
            cases = [case for case in evaluate.cases(tokenizer, evaluate.TASKS, 30, 0) if case.thinking]
            evaluate.answer_all(cases, engine, tokenizer)
        print(f"| {mode} | {sum(case.right for case in cases) / len(cases):.1%} |", flush=True)


def random(folder: str, shape: str = "0.6B") -> None:
    """0.6B with all layers, or with four (0.6B-mid), and Qwen3's tokenizer if QWEN3_TOKENIZER says where it is. 30B-A3B
    with two layers, and a small vocabulary, beside which they count."""
    sys.path.insert(0, str(ROOT / "tests"))
    import mlx.core as mx
    from checkpoints import FULL_MOE, random_weights, write_checkpoint
    from test_full_size import SHAPE

    small = {"num_hidden_layers": 2, "vocab_size": 4096, "torch_dtype": "bfloat16"}
    mid = {**SHAPE, "num_hidden_layers": 4}
    config = {"0.6B": SHAPE, "0.6B-mid": mid, "30B-A3B": {**FULL_MOE, **small}}[shape]
    write_checkpoint(Path(folder), config, {})
    weights = {name: mx.array(value).astype(mx.bfloat16) for name, value in random_weights(config).items()}
    mx.save_safetensors(f"{folder}/model.safetensors", weights, {"format": "pt"})
    if shape != "30B-A3B" and (tokenizer := os.environ.get("QWEN3_TOKENIZER")):
        for path in Path(tokenizer).glob("tokenizer*.json"):
            shutil.copyfile(path, Path(folder) / path.name)


if __name__ == "__main__":
    commands = {"speed": lambda *a: speed(a[0], *map(int, a[1:])), "modes": modes, "exact": exact, "random": random}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands, help="See above.")
    parser.add_argument("arguments", nargs="*", help="See above.")
    given = parser.parse_args()
    commands[given.command](*given.arguments)
