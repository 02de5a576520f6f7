"""Prefixes: what a prompt shares with earlier prompts and replies is not computed again."""

import pytest
from prefixes import LIMIT, Counted, prompt_of, reply, row
from schedules import Breaks, Broken

from mlx_qwen3 import load
from mlx_qwen3.engine.prefix import PrefixStore
from mlx_qwen3.engine.scheduler import Scheduler
from mlx_qwen3.model.buffers import STEP
from mlx_qwen3.model.load import load_model


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny, "fp32")


@pytest.mark.parametrize("cut", [1, 2, 30, 31, 60])
def test_a_prompt_and_its_beginnings(model, cut):
    store, prompt = PrefixStore(LIMIT), prompt_of(60)
    assert reply(model, store, prompt)[1] == 60
    expected, computed = reply(model, None, prompt[:cut])
    assert computed == cut
    assert reply(model, store, prompt[:cut]) == (expected, 1)  # the last token is always computed


def test_a_longer_prompt_computes_what_is_new(model):
    store, prompt = PrefixStore(LIMIT), prompt_of(60)
    reply(model, store, prompt[:1])
    reply(model, store, prompt[:20])
    assert reply(model, store, prompt) == (reply(model, None, prompt)[0], 40)


def test_a_prompt_that_continues_after_the_reply(model):
    store, prompt = PrefixStore(LIMIT), prompt_of(60)
    tokens, _ = reply(model, store, prompt)
    longer = [*prompt, *tokens, *prompt_of(5, 1)]
    assert reply(model, store, longer) == (reply(model, None, longer)[0], 6)  # the reply's last token was not fed


def test_a_template_that_drops_earlier_thinking_shares_what_lies_before_it():
    model, tokenizer = load("demo", dtype="fp32")
    store = PrefixStore(LIMIT)
    messages = [{"role": "user", "content": "What is 17 + 25?"}]
    first = tokenizer.encode(tokenizer.apply_chat_template(messages))
    tokens, _ = reply(model, store, first, 60)
    messages += [{"role": "assistant", "content": "42"}, {"role": "user", "content": "And 1 more?"}]
    second = tokenizer.encode(tokenizer.apply_chat_template(messages))
    assert second[: len(first) + len(tokens)] != [*first, *tokens]
    shared = next(i for i, (a, b) in enumerate(zip([*first, *tokens], second, strict=False)) if a != b)
    assert shared >= len(first) - 2
    assert reply(model, store, second, 60) == (reply(model, None, second, 60)[0], len(second) - shared)


def test_requests_under_way_share_a_prompt(model):
    prompt = prompt_of(100)
    scheduler = Counted(model, model.config.vocab_size, max_rows=4)
    rows = [row(prompt, 6) for _ in range(3)]
    for made in rows:
        scheduler.add(made)
    list(scheduler.run())
    assert scheduler.computed == 100 + 1 + 1
    assert [made.tokens for made in rows] == [reply(model, None, prompt, 6)[0]] * 3


def test_the_least_recently_used_is_removed_first(model):
    prompts = [prompt_of(40, seed) for seed in range(3)]
    store = PrefixStore(LIMIT)
    reply(model, store, prompts[0])
    one = store.nbytes
    store = PrefixStore(2 * one)
    for index in (0, 1, 0, 2):
        reply(model, store, prompts[index])
    assert [reply(model, store, prompts[index])[1] for index in (0, 2, 1)] == [1, 1, 40]


def test_a_prefix_holds_no_slots_that_nothing_fills(model):
    store = PrefixStore(LIMIT)
    reply(model, store, prompt_of(20))
    assert store.last.cache.capacity == 27 < STEP


def test_what_a_failed_row_computed_is_not_kept(model):
    store = PrefixStore(LIMIT)
    scheduler = Scheduler(model, model.config.vocab_size, prefixes=store)
    failed = row(prompt_of(40))
    failed.steering = [Breaks(2)]
    scheduler.add(failed)
    assert isinstance(list(scheduler.run())[-1][1], Broken)
    assert store.last is None


@pytest.mark.parametrize("heard", [1, 2, 4])
def test_a_reply_that_is_not_read_to_its_end_leaves_its_prefix(model, heard):
    store = PrefixStore(LIMIT)
    scheduler = Scheduler(model, model.config.vocab_size, prefixes=store)
    scheduler.add(made := row(prompt_of(40)))
    for _ in scheduler.run():
        if len(made.tokens) == heard:
            break
    list(scheduler.close())
    assert store.last.ids.tolist() == [*made.prompt, *made.tokens[:-1]]
    assert reply(model, store, made.prompt)[1] == 1
