"""The memory budget: what is refused, what waits, and that the estimate is what is measured."""

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import TINY
from prefixes import LIMIT, prompt_of, reply, row

from mlx_qwen3 import load
from mlx_qwen3.engine import memory
from mlx_qwen3.engine.memory import Costs, Memory, default_budget
from mlx_qwen3.engine.prefix import PrefixStore
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.engine.scheduler import Scheduler
from mlx_qwen3.errors import MemoryBudgetError, Qwen3Warning, UsageError
from mlx_qwen3.files.config import Qwen3Config
from mlx_qwen3.model.load import load_model
from mlx_qwen3.model.qwen3 import Qwen3


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny, "fp32")


# --- before loading


@pytest.mark.parametrize("memory", [100_000, "100 KB"])
def test_load_refuses_it_too(tiny, memory):
    with pytest.raises(MemoryBudgetError, match="the weights take"):
        load(tiny, memory=memory)


@pytest.mark.parametrize("memory", ["5", "a lot", 0, -1, 1.5, True])
def test_a_wrong_budget_is_refused(tiny, model, memory):
    with pytest.raises(UsageError, match=r"^memory is"):
        load(tiny, memory=memory)
    with pytest.raises(UsageError, match=r"^memory is"):
        Memory(model, memory)


def test_the_limits_of_control_groups_count(tmp_path, monkeypatch):
    own = tmp_path / "cgroup"
    own.write_text("5:cpu:/\n4:memory:/job/task\n0::/unified\n")
    for place, name, limit in (
        ("memory/job", "memory.limit_in_bytes", "7000000000"),
        ("memory/job/task", "memory.limit_in_bytes", "9000000000"),
        ("unified", "memory.max", "max"),
    ):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / name).write_text(limit + "\n")
    assert sorted(memory._cgroup_limits(tmp_path, own)) == [7 * 10**9, 9 * 10**9]
    assert list(memory._cgroup_limits(tmp_path, tmp_path / "none")) == []
    monkeypatch.setattr(memory, "_cgroup_limits", lambda: [8 * 10**9])
    assert default_budget() == 7 * 10**9


def test_the_default_budget_is_part_of_the_machine():
    assert 0 < default_budget() < 10**14


# --- requests


def test_a_request_that_never_fits_is_refused_with_both_numbers(model):
    enough = Memory(model).row(100, 400)
    assert Memory(model, enough).limit(100, 400, open_ended=False) == 400
    with pytest.raises(MemoryBudgetError, match=r"100 tokens and a reply of 4000 need .* MB .*budget is .* MB; make"):
        Memory(model, enough).limit(100, 4000, open_ended=False)


def test_a_default_limit_is_cut_to_what_fits_and_that_is_said(model):
    limits = Memory(model, Memory(model).row(100, 2400))
    with pytest.warns(Qwen3Warning, match="max_tokens is 2460: more would not fit the memory budget of"):
        assert limits.limit(100, 4000, open_ended=True) == 2460  # 2,560 slots
    assert limits.limit(100, 300, open_ended=True) == 300
    with pytest.raises(MemoryBudgetError):
        limits.limit(3000, 4000, open_ended=True)


def test_a_default_limit_leaves_room_for_other_rows(model):
    budget = Memory(model).row(10, 9000)
    with pytest.warns(Qwen3Warning, match="max_tokens is"):
        alone = Memory(model, budget, 1).limit(10, 20000, open_ended=True)
    with pytest.warns(Qwen3Warning, match="max_tokens is"):
        shared = Memory(model, budget, 4).limit(10, 20000, open_ended=True)
    assert shared == pytest.approx(alone / 4, rel=0.15)


@pytest.mark.parametrize(("share", "together"), [(1.0, 1), (1.9, 2)])
def test_rows_that_do_not_fit_now_wait(model, share, together):
    limits = Memory(model, int(share * Memory(model).row(100, 400)))
    assert limits.with_row([], row(prompt_of(100), 400)) <= limits.budget
    scheduler = Scheduler(model, 151, max_rows=4, memory=limits)
    rows = [row(prompt_of(100, seed), 400) for seed in range(3)]
    for made in rows:
        scheduler.add(made)
    most = 0
    while scheduler.busy:
        list(scheduler.step())
        most = max(most, len(scheduler.running))
        assert limits.running(scheduler._batches) <= limits.budget
        for made in scheduler.running:
            made.ended = len(made.tokens) >= 10
    assert most == together
    for made, seed in zip(rows, range(3), strict=True):
        assert made.tokens == reply(model, None, prompt_of(100, seed), 10)[0]


def test_prefixes_go_before_a_row_waits(model):
    store = PrefixStore(LIMIT)
    for seed in range(3):
        reply(model, store, prompt_of(300, seed))
    held = store.nbytes
    limits = Memory(model)
    limits.budget = limits.with_row([], row(prompt_of(100, 7))) + held // 3
    scheduler = Scheduler(model, 151, prefixes=store, memory=limits)
    scheduler.add(made := row(prompt_of(100, 7)))
    list(scheduler.step())
    assert scheduler.running == [made]
    assert 0 < store.nbytes <= held // 3


# --- the estimate

LARGE = {"vocab_size": 40009, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 16}
LARGE |= {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64}  # 57 MB, and 34 MB for 256 tokens
BIG = {"vocab_size": 20011, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12}
BIG |= {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 128}  # 230 MB, and 12.6 MB for 256 tokens


@pytest.fixture(scope="module")
def large():
    """(a model whose weights and cache are nearly all that it takes, the memory that was in use before)"""
    before = mx.get_active_memory()
    return made_of(LARGE), before


def made_of(shape):
    model = Qwen3(Qwen3Config.from_hf(TINY | shape))
    mx.eval(model.parameters())
    return model


# Measured 0.93 to 0.98. A share near the bound would hang on how early a pass frees its arrays.
CASES = {
    "one row": {},
    "a full buffer": {"prompt": 240, "tokens": 17},
    "three rows": {"rows": 3, "prompt": 5},
    "four rows": {"rows": 4, "prompt": 30, "tokens": 8},
    "a prompt in chunks": {"prompt": 150},
    "8 bits": {"kv_bits": 8},
    "4 bits, four rows": {"rows": 4, "prompt": 30, "tokens": 8, "kv_bits": 4},
    # Penalties count the tokens of a step that a row that joins drops. They must not hold it, and with it the cache.
    "penalties": {"rows": 4, "prompt": 30, "sampling": SamplingParams(presence_penalty=0.5, repetition_penalty=1.1)},
}
LONG = {
    "a prompt": {"prompt": 300},
    # With so many tokens that the buffer has no slots that nobody writes to: MLX counts them, and they take no memory.
    "a prompt as long as a pass": {"prompt": 512, "tokens": 260},
    "four rows": {"rows": 4, "prompt": 60, "tokens": 8},
    "8 bits": {"prompt": 300, "kv_bits": 8},
    "4 bits, four rows": {"rows": 4, "prompt": 60, "tokens": 8, "kv_bits": 4},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_peak_is_what_was_estimated(large, case):
    model, before = large
    assert 0.9 < peak_share(model, before, **case) <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("case", LONG.values(), ids=LONG)
def test_so_is_that_of_a_larger_model(case):
    before = mx.get_active_memory()
    assert 0.9 < peak_share(made_of(BIG), before, **case) <= 1.0


def peak_share(model, before, *, rows=1, prompt=60, tokens=4, kv_bits=None, sampling=None):
    """The peak that was measured, as a share of the estimate."""
    limits = Memory(model, None, rows, kv_bits)
    made = [row(np.arange(prompt) % 1000 + first, tokens + rows) for first in range(rows)]
    # The gap: rows are to run together, so none may end while the next prompt is read.
    vocabulary = model.config.vocab_size if sampling else 1009
    for one in made:
        one.sampling = sampling or one.sampling
    scheduler = Scheduler(model, vocabulary, max_rows=rows, memory=limits, kv_bits=kv_bits, max_gap=100)
    estimate = 0
    mx.reset_peak_memory()
    for one in made:  # one after the other, or their prompts would be computed together
        estimate = max(estimate, limits.with_row(scheduler._batches, one))
        scheduler.add(one)
        while scheduler.waiting:
            list(scheduler.step())
    list(scheduler.run())
    return (mx.get_peak_memory() - before) / estimate


def test_prompts_that_are_computed_together_take_no_more_than_was_estimated(large):
    model, before = large
    memory, rows = Memory(model), [row(np.arange(30) + first, 8) for first in range(4)]
    scheduler = Scheduler(model, 1009, max_rows=4, memory=memory)
    estimate = memory.with_rows([], rows)
    mx.reset_peak_memory()
    for one in rows:
        scheduler.add(one)
    list(scheduler.step())
    assert len(scheduler.running) == 4
    list(scheduler.run())
    assert 0.4 < (mx.get_peak_memory() - before) / estimate <= 1.0


def test_a_row_that_joins_is_copied_layer_by_layer(large):
    """Only one layer is in memory twice, so that a batch never takes twice its memory."""
    model, _ = large
    scheduler = Scheduler(model, 1009, max_rows=3)
    for first in range(3):
        scheduler.add(row(np.arange(5) + first, 12))
        held = mx.get_active_memory()
        mx.reset_peak_memory()
        list(scheduler.step())
    assert len(scheduler.running) == 3
    [batch] = scheduler._batches
    new, alone = Costs.of(model).cache(4, 20), Costs.of(model).cache(1, 20)
    assert batch.nbytes == new
    # From two slots to four, beside the cache of the new row. A copy of all layers at once would add half of `new`.
    assert mx.get_peak_memory() - held < new / 2 + alone + 0.1 * new
