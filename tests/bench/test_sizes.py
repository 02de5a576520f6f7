"""The sizes that a run chooses by itself: the largest that fit, by the speeds of a trial."""

from dataclasses import replace

import pytest
from benching import TWICE, chosen

from mlx_qwen3 import bench
from mlx_qwen3.bench import sizes
from mlx_qwen3.bench.options import Options
from mlx_qwen3.bench.sizes import SMALLER, Speed, fitting, needed
from mlx_qwen3.errors import UsageError
from mlx_qwen3.files.checkpoint import Checkpoint

FAST, SLOW = Speed(0.0001, 0.001), Speed(0.12, 0.5)


class Worker:
    """Answers like a contestant of a given speed; its first reply takes longer."""

    def __init__(self, speed, first=0.0):
        self._speed, self._first, self.asked = speed, first, 0

    def ask(self, command, ids, count):
        self.asked += 1
        begin = len(ids) * self._speed.prompt_token + (self._first if self.asked == 1 else 0)
        return {"seconds": [begin + self._speed.step * index for index in range(count)]}


@pytest.fixture
def entries(tiny):
    return chosen(tiny, against=("mlx-lm",))


def fitted(tiny, entries, workers, seconds=60.0, **changes):
    return fitting(Options(str(tiny), fit=True, **changes), entries, workers, Checkpoint(tiny).config, seconds)


def test_a_fast_machine_keeps_the_default(tiny, entries):
    workers = [Worker(FAST), Worker(FAST, first=1.0)]  # compiling is not counted
    assert fitted(tiny, entries, workers) == Options(str(tiny), fit=True)
    assert [worker.asked for worker in workers] == [2, 2]


def test_a_slow_contestant_makes_all_smaller(tiny, entries):
    found = fitted(tiny, entries, [Worker(FAST), slow := Worker(SLOW)])
    assert (found.prompt_tokens, found.generate) == SMALLER[-1]
    assert slow.asked == 1  # a second trial would take longer than it is worth
    assert needed(found, entries, [FAST, SLOW]) < 60


def test_the_largest_that_fits(tiny, entries):
    middle = Speed(0.02, 0.05)
    found = fitted(tiny, entries, [Worker(FAST), Worker(middle)])
    place = SMALLER.index((found.prompt_tokens, found.generate))
    larger = SMALLER[place - 1] if place else ((16, 512), 64)
    assert needed(found, entries, [FAST, middle]) <= 60
    assert needed(replace(found, prompt_tokens=larger[0], generate=larger[1]), entries, [FAST, middle]) > 60


def test_without_a_cache_and_with_rows_more_is_needed(tiny):
    with_reference = chosen(tiny, against=("transformers",))
    speeds = [FAST] * len(with_reference)
    assert [entry.name for entry in with_reference] == ["mlx-qwen3", "transformers", "reference"]
    options = Options(str(tiny))
    assert needed(options, with_reference, [*speeds[:2], SLOW]) > 8 * 16 * SLOW.prompt_token
    assert needed(replace(options, rows=(4,)), with_reference, speeds) > needed(options, with_reference, speeds)


def test_a_run_measures_what_it_has_chosen(bench_chat, at_once, monkeypatch):
    monkeypatch.setattr(sizes, "fitting", lambda options, *more: replace(options, prompt_tokens=(5,), generate=4))
    told = []
    options = Options(str(bench_chat), (TWICE,), repeat=1, fit=True, prompt_tokens=(7,), generate=5)
    report = bench.bench(options, tell=told.append)
    assert [(run.prompt_tokens, len(run.seconds)) for row in report.rows for run in row.runs] == [(5, 4)] * 2
    assert "prompts of 5 tokens and replies of 4: more would take long here; --prompt-tokens and --generate" in told[1]


def test_beside_a_baseline_the_sizes_are_those_of_the_baseline(bench_report, nothing_runs):
    baseline = bench.as_json(bench_report)
    options = replace(bench_report.options, prompt_tokens=(16, 512), generate=64, fit=True, dtype="fp16")
    with pytest.raises(UsageError, match="the baseline has --dtype default, this run fp16"):  # and not other sizes
        bench.bench(options, baseline=baseline)
