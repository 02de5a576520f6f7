"""Random schedules of the engine's scheduler, and the replies that the rows get alone."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx

from mlx_qwen3.engine.memory import Memory
from mlx_qwen3.engine.prefix import PrefixStore
from mlx_qwen3.engine.prefix_folder import PrefixFolder
from mlx_qwen3.engine.rows import Row
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.engine.scheduler import Scheduler
from mlx_qwen3.engine.speculative import Lookup, Pace
from mlx_qwen3.engine.thinking import ThinkingBudget
from mlx_qwen3.text.tokenizer import THINK

QUESTIONS = (
    "What is 17 + 25?",
    "Sort these words: pear, apple, fig",
    "What is the capital of France?",
    "Reverse: a b c d e",
    "hello",
    "What is 123 + 456?",
)
SETTINGS = (
    {"temperature": 0},
    {"temperature": 0.6},
    {"temperature": 1.3, "top_k": 0},
    {"temperature": 0, "repetition_penalty": 1.3},
    {"temperature": 0.8, "frequency_penalty": 0.5},
)
LONGEST = 60  # tokens of a reply with a thinking budget: the closing text has 42


@dataclass(frozen=True)
class Job:
    """The settings of a row."""

    prompt: tuple[int, ...]
    setting: int
    seed: int
    max_tokens: int
    drafts: bool
    budget: int | None = None  # of thinking
    adapter: str | None = None

    def row(self, stop_ids: Any, tokenizer: Any = None) -> Row:
        sampling = SamplingParams(**SETTINGS[self.setting], seed=self.seed)
        drafter = Lookup(self.prompt, Pace((1.0,) * 8)) if self.drafts else None
        steering = []
        if self.budget is not None:
            steering.append(ThinkingBudget(tokenizer, self.budget, [self.prompt[-1]] == tokenizer.encode(THINK)))
        return Row(
            self.prompt, sampling, self.max_tokens, stop_ids, steering=steering, drafter=drafter, adapter=self.adapter
        )


class Broken(Exception):
    """An error in the code of one row."""


@dataclass
class Breaks:
    """Steering that raises after some tokens."""

    after: int
    seen: int = 0

    def waits(self) -> bool:
        return False

    def allowed(self) -> None:
        return None

    def settle(self, token: int) -> int:
        self.seen += 1
        if self.seen > self.after:
            raise Broken
        return token


@dataclass
class Schedule:
    """Rows that join, are cancelled and fail at random moments; `rows` are all that were submitted, by their jobs."""

    model: Any
    vocabulary: int
    stop_ids: Any
    prompts: Sequence[Sequence[int]]
    seed: int
    folder: PrefixFolder | None = None
    kv_bits: int | None = None
    rows: list[tuple[Job, Row]] = field(default_factory=list)
    heard: dict[Row, list[int]] = field(default_factory=dict)
    errors: dict[Row, Exception] = field(default_factory=dict)
    cancelled: set[Row] = field(default_factory=set)
    memory: Memory | None = None
    tokenizer: Any = None  # with it some rows have a thinking budget
    adapters: Mapping[str | None, Any] | None = None  # models of the rows, by name

    def run(self) -> None:
        rng = random.Random(self.seed)
        prefixes = PrefixStore(rng.choice([10**5, 10**8]), self.folder) if rng.random() < 0.6 else None
        max_rows = rng.choice([1, 2, 4, 8])
        limits = {"kv_bits": self.kv_bits, "memory": self.memory, "adapters": self.adapters}
        scheduler = Scheduler(self.model, self.vocabulary, max_rows=max_rows, prefixes=prefixes, **limits)
        waiting = [self._job(rng) for _ in range(rng.randint(1, 8))]
        pace = rng.choice([0.1, 0.5, 1.0])
        while waiting or scheduler.busy:
            if waiting and rng.random() < pace:
                job = waiting.pop()
                row = job.row(self.stop_ids, self.tokenizer)
                if rng.random() < 0.1:
                    row.steering = [*row.steering, Breaks(rng.randint(0, 8))]
                self.rows.append((job, row))
                scheduler.add(row)
            for row, event in scheduler.step():
                if isinstance(event, Exception):
                    self.errors[row] = event
                else:
                    self.heard.setdefault(row, []).append(event)
                if rng.random() < 0.02:
                    row.ended = True
                    self.cancelled.add(row)
            if self.memory and scheduler.running[1:]:  # a row alone may have more than the budget
                held = prefixes.nbytes if prefixes else 0
                assert self.memory.running(scheduler._batches) <= self.memory.budget, self.seed
                assert self.memory.running(scheduler._batches, 1) + held <= self.memory.budget, self.seed

    def _job(self, rng: random.Random) -> Job:
        # Few different jobs, so that thousands of schedules share the replies of the rows alone.
        prompt = tuple(rng.choice(self.prompts))
        if rng.random() < 0.3:  # a beginning of another prompt, one token at the least
            prompt = prompt[: rng.choice([1, 2, len(prompt) // 2, len(prompt) - 1])]
        job = Job(prompt, rng.randrange(len(SETTINGS)), rng.randrange(2), rng.randint(1, 40), rng.random() < 0.3)
        if self.tokenizer is not None and rng.random() < 0.2:
            setting, budget = rng.choice([0, 1, 4]), rng.choice([0, 2, 9])
            job = replace(job, setting=setting, seed=0, budget=budget, max_tokens=rng.randint(1, LONGEST))
        return replace(job, adapter=rng.choice(list(self.adapters))) if self.adapters else job


class Alone:
    """The tokens of jobs that run by themselves, without drafts."""

    def __init__(self, model: Any, vocabulary: int, stop_ids: Any, tokenizer: Any = None, adapters: Any = None):
        self._tokenizer, self._adapters = tokenizer, adapters or {None: model}
        self._model, self._vocabulary, self._stop_ids = model, vocabulary, stop_ids
        self._known: dict[Any, tuple[int, ...]] = {}

    def __call__(self, job: Job) -> tuple[int, ...]:
        key = job.prompt, job.setting, job.seed, job.budget, job.adapter
        if key not in self._known:
            scheduler = Scheduler(self._adapters[job.adapter], self._vocabulary)
            longest = 40 if job.budget is None else LONGEST
            alone = replace(job, max_tokens=longest, drafts=False, adapter=None)
            scheduler.add(alone.row(self._stop_ids, self._tokenizer))
            self._known[key] = tuple(event for _, event in scheduler.run() if isinstance(event, int))
        return self._known[key][: job.max_tokens]


def regret(model: Any, job: Job, heard: Sequence[int], kv_bits: int) -> float:
    """How far the logits of a row's greedy tokens lie below the best ones when the row, given them, runs alone."""
    ids = mx.array([[*job.prompt, *heard[:-1]]])
    logits = model(ids, model.make_cache(1, None, kv_bits))[0, len(job.prompt) - 1 :]
    chosen = mx.take_along_axis(logits, mx.array(heard)[:, None], axis=-1)[:, 0]
    return float((logits.max(axis=-1) - chosen).max().item())
