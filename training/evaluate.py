"""Exact match per task on held-out examples, greedy, through this package's own convert and generate.

Prints Markdown tables on stdout and progress on stderr. `--engine transformers` asks transformers instead.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mlx_qwen3.files.hub import resolve  # noqa: E402
from training.corpus import TASKS, examples  # noqa: E402
from training.example import Example  # noqa: E402

Ids = list[int]
# prompts and the most new tokens -> the new tokens of each, without the stop token
Engine = Callable[[list[Ids], int], list[Ids]]
GROUP = 64  # prompts decoded together
SPARE = 24  # tokens an answer may be longer than expected


@dataclass
class Case:
    task: str
    example: Example
    thinking: bool
    prompt: Ids
    most: int
    """new tokens at most: an answer that needs more is wrong anyway"""
    answer: Ids = field(default_factory=list)
    text: str = ""
    cut: bool = False

    @property
    def right(self) -> bool:
        return self.example.check(self.text.rpartition("</think>")[2])


def cases(tokenizer: Any, tasks: Iterable[str], count: int, seed: int) -> list[Case]:
    """Every example twice: with thinking off and with thinking on."""

    def case(task: str, e: Example, thinking: bool) -> Case:
        text = tokenizer.apply_chat_template(e.messages, tools=e.tools, enable_thinking=thinking)
        wanted = f"<think>\n{e.thinking}\n</think>\n\n{e.answer}" if thinking else e.answer
        return Case(task, e, thinking, list(tokenizer.encode(text)), len(tokenizer.encode(wanted)) + SPARE)

    return [case(t, e, thinking) for t in tasks for e in examples(t, count, seed) for thinking in (False, True)]


def answer_all(found: list[Case], engine: Engine, tokenizer: Any) -> None:
    """Fills in the answers; cases whose answers and prompts are of similar length are decoded together."""
    start = time.perf_counter()
    rows = sorted(found, key=lambda c: (c.most // 32, len(c.prompt)))
    for i in range(0, len(rows), GROUP):
        group = rows[i : i + GROUP]
        limit = max(c.most for c in group)
        for case, ids in zip(group, engine([c.prompt for c in group], limit), strict=True):
            case.answer, case.text, case.cut = ids, tokenizer.decode(ids), len(ids) == limit
        seconds = time.perf_counter() - start
        print(f"\r{i + len(group)}/{len(rows)} answers, {seconds:.0f} s", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def table(found: list[Case]) -> tuple[str, dict[str, Any]]:
    """The Markdown table, and the same figures as data."""

    def share(rows: list[Case]) -> float:
        return sum(c.right for c in rows) / len(rows)

    scores: dict[str, Any] = {}
    for task in dict.fromkeys(c.task for c in found):
        sides = [[c for c in found if c.task == task and c.thinking is on] for on in (False, True)]
        scores[task] = {"n": len(sides[0]), "thinking_off": share(sides[0]), "thinking_on": share(sides[1])}
    lines = ["| task | n | thinking off | thinking on |", "|---|--:|--:|--:|"]
    lines += [f"| {t} | {s['n']} | {s['thinking_off']:.1%} | {s['thinking_on']:.1%} |" for t, s in scores.items()]
    means = [sum(s[side] for s in scores.values()) / len(scores) for side in ("thinking_off", "thinking_on")]
    lines.append(f"| **mean of tasks** | {len(found) // 2} | {means[0]:.2%} | {means[1]:.2%} |")
    return "\n".join(lines), {"tasks": scores, "mean_thinking_off": means[0], "mean_thinking_on": means[1]}


class TransformersTokenizer:
    """transformers' tokenizer with this package's interface."""

    def __init__(self, source: str):
        from transformers import AutoTokenizer

        self.inner = AutoTokenizer.from_pretrained(source)
        self.stop_ids = set(self.inner.encode("<|im_end|><|endoftext|>", add_special_tokens=False))

    def apply_chat_template(self, messages: Any, tools: Any = None, enable_thinking: bool = True) -> str:
        return str(
            self.inner.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=True, enable_thinking=enable_thinking
            )
        )

    def encode(self, text: str) -> Ids:
        return list(self.inner(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Ids) -> str:
        return str(self.inner.decode(ids))


def transformers_engine(source: str) -> tuple[Engine, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = TransformersTokenizer(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    pad, stop = tokenizer.inner.pad_token_id, tokenizer.stop_ids

    @torch.inference_mode()
    def run(prompts: list[Ids], most: int) -> list[Ids]:
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=most, do_sample=False)
        return [until_stop(row, stop) for row in out[:, width:].tolist()]

    return run, tokenizer


def until_stop(ids: Ids, stop: set[int]) -> Ids:
    return ids[: next((i for i, t in enumerate(ids) if t in stop), len(ids))]


def mlx_engine(source: str, folder: str) -> tuple[Engine, Any]:
    import mlx_qwen3
    from mlx_qwen3.engine.decode import generate_batch

    native = Path(folder) / "native"
    mlx_qwen3.convert(source, native)
    model, tokenizer = mlx_qwen3.load(native, dtype="fp32")

    def run(prompts: list[Ids], most: int) -> list[Ids]:
        return [list(ids) for ids in generate_batch(model, prompts, max_tokens=most, stop_ids=tokenizer.stop_ids)]

    return run, tokenizer


def against_transformers(source: str, found: list[Case], count: int) -> str:
    """Whether transformers in float32 would have chosen every one of these tokens, the stop token too.

    One forward pass over prompt and answer gives transformers' choice at every position. If all agree, its own greedy
    answer is the same text.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    stop, step = TransformersTokenizer(source).stop_ids, max(1, len(found) // count)
    picked = found[::step][:count]
    equal = tokens = 0
    for case in picked:
        with torch.inference_mode():
            choice = (
                model(torch.tensor([case.prompt + case.answer])).logits[0, len(case.prompt) - 1 :].argmax(-1).tolist()
            )
        ended = case.cut or choice[-1] in stop
        equal += choice[:-1] == case.answer and ended
        tokens += len(choice)
    return (
        f"transformers (float32) and MLX agree on every greedy token of {equal} of {len(picked)} answers "
        f"({tokens} tokens)."
    )


def loads(source: str, found: list[Case]) -> tuple[str, list[list[float]]]:
    """A mixture of experts: a Markdown table of each expert's share of the choices in each layer, over the prompts.

    transformers' routers in float32 choose. The shares of a layer sum to 1.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    counts = torch.zeros(model.config.num_hidden_layers, model.config.num_experts)
    for case in (c for c in found if c.thinking):
        with torch.inference_mode():
            routers = model(torch.tensor([case.prompt]), output_router_logits=True, logits_to_keep=1).router_logits
        for layer, logits in enumerate(routers):
            chosen = logits.topk(model.config.num_experts_per_tok).indices
            counts[layer] += torch.bincount(chosen.flatten(), minlength=model.config.num_experts)
    shares = (counts / counts.sum(1, keepdim=True)).tolist()
    lines = [f"| layer | {' | '.join(map(str, range(len(shares[0]))))} |", f"|--:|{'--:|' * len(shares[0])}"]
    lines += [f"| {i} | {' | '.join(f'{share:.1%}' for share in row)} |" for i, row in enumerate(shares)]
    return "\n".join(lines), shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="demo", help="demo, demo-moe or a Hugging Face folder")
    parser.add_argument("--engine", choices=["mlx", "transformers"], default="mlx", help="default: mlx")
    parser.add_argument("--examples", type=int, default=500, metavar="N", help="of each task; default: 500")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the examples; default: 0")
    words = f"only this task, may be repeated; one of: {', '.join(TASKS)}"
    parser.add_argument("--task", action="append", choices=list(TASKS), metavar="NAME", help=words)
    parser.add_argument(
        "--against-transformers", type=int, metavar="N", help="compare N answers with transformers, token by token"
    )
    parser.add_argument("--loads", action="store_true", help="each expert's share of the choices, over the prompts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument(
        "--show", type=int, default=0, metavar="N", help="print up to N wrong answers of each task on stderr"
    )
    args = parser.parse_args()
    source = str(resolve(args.source))
    with tempfile.TemporaryDirectory() as folder:
        engine, tokenizer = transformers_engine(source) if args.engine == "transformers" else mlx_engine(source, folder)
        found = cases(tokenizer, args.task or TASKS, args.examples, args.seed)
        answer_all(found, engine, tokenizer)
    text, figures = table(found)
    print(text)
    show_wrong(found, args.show)
    if args.against_transformers:
        figures["against_transformers"] = against_transformers(source, found, args.against_transformers)
        print("\n" + figures["against_transformers"])
    if args.loads:
        shares, figures["loads"] = loads(source, found)
        print("\n" + shares)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def show_wrong(found: list[Case], most: int) -> None:
    for task in TASKS if most else ():
        for case in [c for c in found if c.task == task and not c.right][:most]:
            asked, mode = case.example.messages[-1]["content"][-160:], "on" if case.thinking else "off"
            print(f"{task} {mode}: {asked!r} -> {case.text!r}, not {case.example.answer!r}", file=sys.stderr)


if __name__ == "__main__":
    main()
