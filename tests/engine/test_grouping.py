"""Short prompts that wait together are computed in one pass, and each reply is the one that its prompt gets alone."""

import numpy as np
import pytest
from checkpoints import write_checkpoint
from prefixes import LIMIT, Counted, prompt_of, reply, row
from schedules import Breaks, Broken

from mlx_qwen3.engine.grouping import PASS, SPREAD, WORTH_SHARING, together, waits
from mlx_qwen3.engine.memory import Memory
from mlx_qwen3.engine.prefix import PrefixStore
from mlx_qwen3.model.load import load_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Untied: a tied model with random weights repeats one token. head_dim 32: keys and values can be quantized."""
    return load_model(
        write_checkpoint(tmp_path_factory.mktemp("model"), tie_word_embeddings=False, head_dim=32), "fp32"
    )


class Passes(Counted):
    """Notes the rows and tokens of every pass over prompts."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.passes = []

    def _run(self, prompt):
        before = prompt.left
        super()._run(prompt)
        self.passes.append((prompt.rows, before - prompt.left))


def run(model, rows, **options):
    scheduler = Passes(model, model.config.vocab_size, max_rows=len(rows), **options)
    for one in rows:
        scheduler.add(one)
    failed = [(one, event) for one, event in scheduler.run() if isinstance(event, Exception)]
    return scheduler.passes, failed


CPU = next(tokens for kind, tokens in PASS.items() if kind.name == "cpu")


@pytest.mark.parametrize(
    ("lengths", "left", "chunk", "expected"),
    [
        ([20], [20], 16, False),  # a prompt alone that takes several passes
        ([20, 20], [20, 20], 40, True),
        ([20, 20], [20, 20], 39, False),
        ([20, 20 + CPU], [20, 20 + CPU], 1000, True),
        ([20, 21 + CPU], [20, 21 + CPU], 1000, False),
        ([20, 20, 20 + CPU], [20, 20, 20 + CPU], 1000, True),  # two passes saved
        ([20, 20 + SPREAD], [20, 20], 1000, True),
        ([20, 21 + SPREAD], [20, 20], 1000, False),
    ],
)
def test_what_is_computed_together(lengths, left, chunk, expected):
    assert together(lengths, left, chunk) is expected


def test_a_row_waits_for_one_whose_beginning_it_can_copy():
    first = row(prompt_of(WORTH_SHARING + 10))
    alike = row([*first.prompt[:WORTH_SHARING], *prompt_of(10, 1)])
    assert waits(alike, 0, [row(prompt_of(10, 2)), first])
    assert not waits(alike, 1, [first])  # so much is known already
    assert not waits(row([*first.prompt[: WORTH_SHARING - 1], 3]), 0, [first])


@pytest.mark.parametrize("kv_bits", [None, 8])
def test_replies_are_those_of_the_prompts_alone(model, kv_bits):
    prompts = [prompt_of(length, length) for length in (12, 5, 17, 1, 9)]
    expected = []
    for prompt in prompts:
        run(model, [alone := row(prompt)], kv_bits=kv_bits)
        expected.append(alone.tokens)
    rows = [row(prompt) for prompt in prompts]
    passes, _ = run(model, rows, kv_bits=kv_bits)
    assert passes == [(5, 17)]
    assert [one.tokens for one in rows] == expected
    assert len({tuple(tokens) for tokens in expected}) == 5


def test_known_beginnings_of_different_lengths(model):
    """The longest rest decides; a row that knows more computes some of it again."""
    store, known = PrefixStore(LIMIT), prompt_of(40)
    reply(model, store, known)
    prompts = [
        [*known[:30], *prompt_of(6, 1)],
        [*known[:4], *prompt_of(13, 2)],
        prompt_of(10, 3),
        [*known, *prompt_of(2, 4)],
    ]
    rows = [row(prompt) for prompt in prompts]
    passes, _ = run(model, rows, prefixes=store)
    assert passes == [(4, 13)]
    assert [one.cached for one in rows] == [23, 4, 0, 29]
    assert [one.tokens for one in rows] == [reply(model, None, prompt)[0] for prompt in prompts]


def test_rows_that_join_those_that_run(model):
    prompts = [prompt_of(length, length) for length in (12, 11, 8, 13, 9, 10)]
    rows = [row(prompt, 12) for prompt in prompts]
    scheduler = Passes(model, model.config.vocab_size, max_rows=6)
    for first, more in ((0, 1), (1, 3), (3, 6)):
        for one in rows[first:more]:
            scheduler.add(one)
        list(scheduler.step())
        list(scheduler.step())
    list(scheduler.run())
    assert scheduler.passes == [(1, 12), (2, 11), (3, 13)]
    assert [one.tokens for one in rows] == [reply(model, None, prompt, 12)[0] for prompt in prompts]


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_row_that_fails_at_its_first_token_disturbs_no_other(model, bad):
    prompts = [prompt_of(length, length) for length in (12, 11, 8)]
    rows = [row(prompt) for prompt in prompts]
    rows[bad].steering = [Breaks(1)]
    passes, failed = run(model, rows)
    assert passes == [(3, 12)]
    assert [(one, type(error)) for one, error in failed] == [(rows[bad], Broken)]
    others = [index for index in range(3) if index != bad]
    assert [rows[i].tokens for i in others] == [reply(model, None, prompts[i])[0] for i in others]


def test_a_row_that_has_ended_before_its_pass_is_left_out(model):
    rows = [row(prompt_of(length, length)) for length in (12, 11, 8)]
    rows[1].ended = True
    passes, _ = run(model, rows)
    assert passes == [(2, 12)]
    assert not rows[1].tokens


def test_rows_of_one_token_leave_their_prefixes(model):
    store = PrefixStore(LIMIT)
    rows = [row(prompt_of(length, length), 1) for length in (12, 11, 8)]
    passes, _ = run(model, rows, prefixes=store)
    assert passes == [(3, 12)]
    assert [len(one.tokens) for one in rows] == [1, 1, 1]
    assert [store.longest(np.array(one.prompt, np.int32)) for one in rows] == [12, 11, 8]


def test_what_does_not_fit_the_memory_together_runs_one_after_the_other(model):
    rows = [row(prompt_of(length, length)) for length in (12, 11, 8)]
    memory = Memory(model, None, 3)
    memory.budget = memory.with_rows([], rows[:2])
    passes, _ = run(model, rows, memory=memory)
    assert passes[0] == (2, 12)
    assert sum(count for count, _ in passes) == 3
    assert [one.tokens for one in rows] == [reply(model, None, one.prompt)[0] for one in rows]
