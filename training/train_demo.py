"""Trains the demo checkpoint in PyTorch and writes it as a Hugging Face folder.

With --moe it cuts the dense demo into experts and trains these (moe.py). The seed is fixed. Progress goes to stdout.
If it is killed, rerun the command to resume from DIR.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeForCausalLM

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mlx_qwen3.files.config import Qwen3Config as Settings  # noqa: E402
from mlx_qwen3.files.moe import spelled_out  # noqa: E402
from training import attention  # noqa: E402
from training.corpus import stream  # noqa: E402
from training.moe import as_qwen3_moe, balance_loss, upcycled  # noqa: E402
from training.recipe import DENSE, MOE, Recipe, rate  # noqa: E402
from training.text import EOS, PAD, encoded, shipped_tokenizer, train_tokenizer  # noqa: E402


class Place(NamedTuple):
    """Where training is: steps done, the chunk the next batch comes from, and the steps before that chunk."""

    step: int = 0
    chunk: int = 0
    chunk_start: int = 0


SHAPE: dict[str, Any] = {
    "vocab_size": 2560,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 96,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
}


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    end, pad = tokenizer.encode(EOS + PAD, add_special_tokens=False)
    config = Qwen3Config(**SHAPE, eos_token_id=end, pad_token_id=pad, bos_token_id=None)
    config._attn_implementation = attention.NAME
    return Qwen3ForCausalLM(config)


def cut(rows: list[tuple[list[int], int]], size: int) -> Iterator[list[tuple[list[int], int]]]:
    """Rows sorted by length, in groups of at most `size` tokens after padding. A lone row is left out:
    a batch of one would be compiled anew."""
    group: list[tuple[list[int], int]] = []
    for row in sorted(rows, key=lambda r: len(r[0])):
        if group and (len(group) + 1) * padded(len(row[0])) > size:
            yield group
            group = []
        group.append(row)
    if len(group) > 1:
        yield group


def padded(length: int) -> int:
    return -(-length // 16) * 16


def tensors(group: list[tuple[list[int], int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ids (B, L) padded on the right, and labels (B, L): the next token, -100 where it carries no loss."""
    length = padded(max(len(ids) for ids, _ in group))
    ids = torch.full((len(group), length), pad)
    labels = torch.full((len(group), length), -100)
    for i, (row, prompt) in enumerate(group):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, prompt - 1 : len(row) - 1] = torch.tensor(row[prompt:])
    return ids, labels


def batches(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, place: Place
) -> Iterator[tuple[torch.Tensor, torch.Tensor, Place]]:
    """The batches from a place on, each with the place after it. A chunk depends on the seed and its number alone,
    so that a resumed run sees what an unbroken one would have seen."""
    step, chunk, start = place
    while True:
        source = stream(recipe.seed * 1_000_003 + chunk, recipe.context)
        rows = [encoded(tokenizer, example, thinking) for example, thinking in islice(source, recipe.chunk)]
        groups = list(cut(rows, recipe.batch))
        random.Random(chunk).shuffle(groups)
        for group in groups[step - start :]:
            step += 1
            yield *tensors(group, tokenizer.pad_token_id), Place(step, chunk, start)
        chunk, start = chunk + 1, step


def optimizers(model: Qwen3ForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.model.layers.named_parameters() if p.ndim == 2 and "router" not in name]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def loss_of(model: Qwen3ForCausalLM, body: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean loss over the labelled tokens. Right padding needs no mask under causal attention."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = body(input_ids=ids, use_cache=False).last_hidden_state  # (B, L, C)
        wanted = labels >= 0
        logits = F.linear(hidden[wanted], model.model.embed_tokens.weight)  # (N, V): only for tokens with a loss
    targets = labels[wanted]
    # a batch of long prompts has few targets: the floor keeps its noise down
    return F.cross_entropy(logits.float(), targets, reduction="sum") / max(len(targets), 300)


def save_state(
    path: Path, model: Qwen3ForCausalLM, optims: list[torch.optim.Optimizer], place: Place, seconds: float
) -> None:
    state = {
        "model": model.state_dict(),
        "optims": [o.state_dict() for o in optims],
        "place": tuple(place),
        "seconds": seconds,
    }
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)  # a kill while writing leaves the old state whole


def load_state(path: Path, model: Qwen3ForCausalLM, optims: list[torch.optim.Optimizer]) -> tuple[Place, float]:
    if not path.exists():
        return Place(), 0.0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for o, s in zip(optims, state["optims"], strict=True):
        o.load_state_dict(s)
    return Place(*state["place"]), float(state["seconds"])


def set_rates(optims: list[torch.optim.Optimizer], recipe: Recipe, step: int) -> None:
    for optim, full in zip(optims, (recipe.muon_rate, recipe.adam_rate), strict=True):
        for group in optim.param_groups:
            group["lr"] = full * rate(recipe, step)


def train(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, work: Path) -> Qwen3ForCausalLM:
    model = upcycled(recipe.seed) if recipe.balance else new_model(tokenizer, recipe.seed)
    optims = optimizers(model, recipe)
    place, before = load_state(work / "state.pt", model, optims)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{size:.2f} M parameters, from step {place.step} of {recipe.steps}", flush=True)
    body = torch.compile(model.model, dynamic=True)
    source = batches(recipe, tokenizer, place)
    start = last = time.perf_counter()
    tokens, mean = 0, float("nan")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    while place.step < recipe.steps:
        set_rates(optims, recipe, place.step)
        ids, labels, place = next(source)
        loss = loss_of(model, body, ids, labels)
        balance = recipe.balance * balance_loss(model, ids != tokenizer.pad_token_id) if recipe.balance else 0.0
        (loss + balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad()
        tokens += ids.numel()
        mean = loss.item() if math.isnan(mean) else 0.98 * mean + 0.02 * loss.item()
        spent = time.perf_counter() - start
        if place.step % 100 == 0:
            minutes, speed = (before + spent) / 60, tokens / spent
            print(f"step {place.step} loss {mean:.4f} {speed:.0f} tokens/s {minutes:.1f} min", flush=True)
        if place.step == recipe.steps or stop.is_set() or time.perf_counter() - last > 120:
            last = time.perf_counter()
            save_state(work / "state.pt", model, optims, place, before + spent)
        if stop.is_set():
            raise SystemExit(f"stopped at step {place.step}; rerun the command to resume")
    return model


def write(model: Qwen3ForCausalLM | Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """The Hugging Face folder: bf16 weights, greedy decoding as the default."""
    end, pad = tokenizer.encode(EOS + PAD, add_special_tokens=False)
    model.config._attn_implementation = "sdpa"
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=[end, pad], pad_token_id=pad)
    model.bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)
    path = out / "config.json"
    raw = json.loads(path.read_text())
    config = Settings.from_hf(raw)
    if config.moe:
        spelled = raw | spelled_out(raw, config.moe, config.rope_theta)
        path.write_text(json.dumps(dict(sorted(spelled.items())), indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moe", action="store_true", help="the demo with a mixture of experts, from the dense demo")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: mlx_qwen3/demo, or mlx_qwen3/demo_moe")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="place of the training state; default: in training/work"
    )
    parser.add_argument("--new-tokenizer", action="store_true", help="train it on the corpus too; not the shipped one")
    args = parser.parse_args()
    if args.moe and args.new_tokenizer:
        parser.error("--moe starts from the demo, whose weights fit its own tokenizer; drop --new-tokenizer")
    name, recipe = ("demo_moe", MOE) if args.moe else ("demo", DENSE)
    out, work = args.out or ROOT / "mlx_qwen3" / name, args.work or ROOT / "training" / "work" / name
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    tokenizer = train_tokenizer(recipe.seed) if args.new_tokenizer else shipped_tokenizer()
    model = train(recipe, tokenizer, work)
    write(as_qwen3_moe(model) if args.moe else model, tokenizer, out)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
