"""An adapter merged into its base, or beside it: times, also of others, interleaved; Markdown on stdout.

python benchmarks/adapters.py make BASE FOLDER [RANK]              a LoRA of every projection, with random values
python benchmarks/adapters.py speed BASE ADAPTER [ROUNDS]          merging: seconds and peak memory of whole processes
python benchmarks/adapters.py beside BASE ADAPTER [TOKENS] [ROUNDS]  a prompt and a reply, with and without

PEFT merges in memory: from_pretrained, merge_and_unload, save_pretrained of transformers, in the dtype of the base.
mlx-lm merges by `mlx_lm fuse`, from a copy of the adapter in its own form. It needs a tokenizer in BASE.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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

REPLY = 8  # tokens after the first


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


def beside(base: str, adapter: str, tokens: str = "128", rounds: str = "5") -> None:
    """Both programs compute in float32 with the same BLAS."""
    found: dict[str, list[tuple[float, float]]] = {}
    contestants = _replies(base, adapter, list(range(1, int(tokens) + 1)))
    for _ in range(1 + int(rounds)):
        for who, reply in contestants.items():
            began, made = time.perf_counter(), reply()
            next(made)
            first = time.perf_counter()
            for _ in range(REPLY):
                next(made)
            found.setdefault(who, []).append((1e3 * (first - began), 1e3 * (time.perf_counter() - first) / REPLY))
    print("| | first token, ms | next token, ms |\n|---|---:|---:|")
    for who, figures in found.items():
        print(f"| {who} | " + " | ".join(f"{median(values[1:]):.1f}" for values in zip(*figures, strict=True)) + " |")


def _replies(base: str, adapter: str, prompt: list[int]) -> dict[str, Callable[[], Iterator[int]]]:
    """Replies of both programs, with and without the adapter, which mlx-lm reads in its own form."""
    from mlx_qwen3.engine.runner import decode_step, prefill
    from mlx_qwen3.model.load import load_model

    # isort: split
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model as load_mlx_lm

    def ours(*adapters: str) -> Callable[[], Iterator[int]]:
        model = load_model(base, "fp32", adapters)

        def reply() -> Iterator[int]:
            cache, step = model.make_cache(), decode_step(model)
            logits = prefill(model, mx.array([prompt]), cache)
            while True:
                token = mx.argmax(logits, axis=-1)
                mx.eval(token, cache.buffers)
                yield token.item()
                logits = step(token, cache)

        return reply

    def theirs(*adapters: str) -> Callable[[], Iterator[int]]:
        model, _ = load_mlx_lm(Path(base))
        for folder in adapters:
            model = load_adapters(model, folder)
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
        return lambda: (token for token, _ in generate_step(mx.array(prompt), model, max_tokens=REPLY + 2))

    return {
        "mlx-qwen3": ours(),
        "mlx-qwen3, adapter": ours(adapter),
        "mlx-lm": theirs(),
        "mlx-lm, adapter": theirs(f"{adapter}-mlx"),
    }


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    commands = {"make": make, "speed": speed, "beside": beside}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands, help="See above.")
    parser.add_argument("arguments", nargs="+", help="See above.")
    given = parser.parse_args()
    commands[given.command](*given.arguments)
