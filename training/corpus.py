"""The tasks as one table, and deterministic streams of training and held-out examples.

As a program it prints examples to read.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from training.example import Example, Message, held_out
from training.tasks import arithmetic, chat, knowledge, lists, recall, schema, tools

Generator = Callable[[random.Random], Example]
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "Answer briefly.",
    "Be polite and short.",
    "You are a small demo model.",
    "You are an assistant that answers in complete sentences.",
    "Answer the question.",
    "You are a helpful assistant. Answer briefly.",
    "你是一个有用的助手。",
    "You help people with small tasks.",
)
QUICK: tuple[Generator, ...] = (
    arithmetic.addition,
    arithmetic.subtraction,
    knowledge.capital,
    knowledge.fact,
    knowledge.unit,
    lists.sort,
    lists.reverse,
    lists.count,
    chat.greeting,
    chat.unknown,
)


def quick(rng: random.Random) -> Example:
    return rng.choice(QUICK)(rng)


def earlier_turn(rng: random.Random) -> Example:
    """A quick question for the earlier turns of a conversation. Training never sees held-out ones, not even here."""
    while held_out((example := quick(rng)).key):
        pass
    return example


@dataclass(frozen=True)
class Task:
    """`weight` is the task's share of training. `thought` is the share of its examples whose working is written out."""

    name: str
    make: Generator
    weight: float
    thought: float = 0.5


TASKS = {
    t.name: t
    for t in (
        Task("addition", arithmetic.addition, 1.6, 0.35),
        Task("subtraction", arithmetic.subtraction, 2.9, 0.4),
        Task("large arithmetic", arithmetic.large, 0.9, 0.85),
        Task("sort", lists.sort, 4.6, 0.55),
        Task("reverse", lists.reverse, 2.8),
        Task("count", lists.count, 2.8, 0.55),
        Task("capitals", knowledge.capital, 1.4),
        Task("facts", knowledge.fact, 1.6),
        Task("units", knowledge.unit, 0.9),
        Task("recall", partial(recall.recall, quick=earlier_turn), 1.0),
        Task("acknowledge", recall.acknowledge, 0.4),
        Task("tool call", tools.call, 1.1, 0.35),
        Task("tool response", tools.respond, 0.8),
        Task("no tool fits", partial(tools.no_call, quick=quick), 1.4, 0.3),
        Task("JSON schema", schema.schema, 1.4),
        Task("greetings", chat.greeting, 0.9),
        Task("unknown", chat.unknown, 1.0),
    )
}


def context(rng: random.Random, example: Example, share: float = 1.0) -> Example:
    """Sometimes puts a system prompt or earlier turns before a short example."""
    messages: list[Message] = list(example.messages)
    if len(messages) <= 3 and rng.random() < 0.18 * share:
        for _ in range(rng.choice((1, 1, 2))):
            # an earlier answer about names or tools would change what is right, so only quick questions
            earlier = earlier_turn(rng)
            messages = [*earlier.messages, {"role": "assistant", "content": earlier.answer}, *messages]
    if rng.random() < 0.3 * share:
        messages.insert(0, {"role": "system", "content": rng.choice(SYSTEMS)})
    return replace(example, messages=messages)


def draw(rng: random.Random, task: Task, evaluation: bool, share: float = 1.0) -> Example:
    """One example from the wanted side of the split."""
    while True:
        example = task.make(rng)
        if held_out(example.key) is evaluation:
            return context(rng, example, share)


def examples(task: str, count: int, seed: int) -> list[Example]:
    """Held-out examples of a task, no two with the same prompt."""
    rng = random.Random(f"evaluate {task} {seed}")
    found: list[Example] = []
    seen: set[str] = set()
    tries = 0
    while len(found) < count and tries < 50 * count:
        example = draw(rng, TASKS[task], True)
        text, tries = repr(example.messages), tries + 1
        if text not in seen:
            seen.add(text)
            found.append(example)
    return found


def stream(seed: int, share: float = 1.0) -> Iterator[tuple[Example, bool]]:
    """Endless training examples, each with whether its working is written out (thinking on)."""
    rng, table = random.Random(seed), list(TASKS.values())
    weights = [task.weight for task in table]
    while True:
        task = rng.choices(table, weights)[0]
        example = draw(rng, task, False, share)
        yield example, not example.thinking or rng.random() < task.thought


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = f"one of: {', '.join(TASKS)}"
    parser.add_argument("--task", choices=list(TASKS), metavar="NAME", help=f"examples of this task only; {names}")
    parser.add_argument("--count", type=int, default=5, metavar="N", help="examples of each task; default: 5")
    args = parser.parse_args()
    rng = random.Random(0)
    for task in [TASKS[args.task]] if args.task else TASKS.values():
        print(f"## {task.name}")
        for _ in range(args.count):
            e = draw(rng, task, False)
            turns = " / ".join(f"{m['role'][0]}: {m['content'][:200]!r}" for m in e.messages[-3:])
            print(
                f"{turns}\n   think {e.thinking!r}\n   => {e.answer!r}{f' [{len(e.tools)} tools]' if e.tools else ''}"
            )


if __name__ == "__main__":
    main()
