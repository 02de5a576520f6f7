"""An adapter merged into its base: seconds and peak memory of whole processes, beside others; Markdown on stdout.

python benchmarks/adapters.py make BASE FOLDER [RANK]            a LoRA of every projection, with random values
python benchmarks/adapters.py speed BASE ADAPTER [ROUNDS]        interleaved

PEFT merges in memory: from_pretrained, merge_and_unload, save_pretrained of transformers, in the dtype of the base.
mlx-lm merges by `mlx_lm fuse`, from a copy of the adapter in its own form. It needs a tokenizer in BASE.
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
MLX_LM = """
import sys
from mlx_lm.fuse import main
base, out, adapter = sys.argv[1:4]
sys.argv[1:] = ["--model", base, "--save-path", out, "--adapter-path", f"{adapter}-mlx"]
main()
"""
CASES = (
    ("bf16", "mlx-qwen3", OURS, ""),
    ("bf16", "PEFT, merge_and_unload and save_pretrained", PEFT, ""),
    ("bf16", "mlx_lm fuse", MLX_LM, ""),
    ("affine4", "mlx-qwen3", OURS, "affine4"),
)


def make(base: str, folder: str, rank: str = "16") -> None:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from adapting import ATTENTION, write_peft

    config = json.loads((Path(base) / "config.json").read_text())
    place = write_peft(Path(folder), (*ATTENTION, "gate_proj", "up_proj", "down_proj"), config, int(rank))
    for_mlx_lm(place, Path(f"{folder}-mlx"))


def for_mlx_lm(peft: Path, folder: Path) -> None:
    """The same changes in mlx-lm's form."""
    import numpy as np
    from adapting import write
    from safetensors.numpy import load_file

    settings = json.loads((peft / "adapter_config.json").read_text())
    names = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b"}
    tensors = {}
    for name, array in load_file(peft / "adapter_model.safetensors").items():
        module, leaf = name.removeprefix("base_model.model.").split(".lora_")
        tensors[f"{module}.{names[f'lora_{leaf}']}"] = np.ascontiguousarray(array.T)
    keys = sorted({name.split(".", 3)[3].rpartition(".")[0] for name in tensors})
    parameters = {"rank": settings["r"], "scale": settings["lora_alpha"] / settings["r"], "dropout": 0.0, "keys": keys}
    config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}
    write(folder, config, tensors, "adapters.safetensors")


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
