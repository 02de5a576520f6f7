"""An adapter merged into its base: seconds and peak memory of whole processes, beside PEFT; Markdown on stdout.

python benchmarks/adapters.py make BASE FOLDER [RANK]            a LoRA of every projection, with random values
python benchmarks/adapters.py speed BASE ADAPTER [ROUNDS]        interleaved

PEFT merges in memory: from_pretrained, merge_and_unload, save_pretrained of transformers, in the dtype of the base.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

from conversion import ROOT, run

OURS = """
import sys
from mlx_qwen3.conversion.convert import convert
convert(sys.argv[1], sys.argv[2], adapters=[sys.argv[3]], layout="hf", quantize=sys.argv[4] or None, divergence=False)
"""
PEFT = """
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
PeftModel.from_pretrained(base, sys.argv[3]).merge_and_unload().save_pretrained(sys.argv[2])
"""
CASES = (("bf16", "mlx-qwen3", OURS, ""), ("bf16", "PEFT", PEFT, ""), ("affine4", "mlx-qwen3", OURS, "affine4"))


def make(base: str, folder: str, rank: str = "16") -> None:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from adapting import ATTENTION, write_peft

    config = json.loads((Path(base) / "config.json").read_text())
    write_peft(Path(folder), (*ATTENTION, "gate_proj", "up_proj", "down_proj"), config, int(rank))


def speed(base: str, adapter: str, rounds: str = "3") -> None:
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(int(rounds)):
        for result, who, program, mode in CASES:
            with tempfile.TemporaryDirectory() as place:
                found.setdefault((result, who), []).append(run(program, base, f"{place}/out", adapter, mode))
    print("| result | | seconds | peak MB |\n|---|---|---|---|")
    for (result, who), figures in found.items():
        seconds, peak = (median(values) for values in zip(*figures, strict=True))
        print(f"| {result} | {who} | {seconds:.1f} | {peak:.0f} |")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    commands = {"make": make, "speed": speed}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands, help="See above.")
    parser.add_argument("arguments", nargs="+", help="See above.")
    given = parser.parse_args()
    commands[given.command](*given.arguments)
