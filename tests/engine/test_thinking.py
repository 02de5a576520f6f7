"""The thinking budget against an oracle: cut the thinking, append the closing text, continue token by token."""

import mlx.core as mx
import pytest
from checkpoints import VOCABULARY, write_checkpoint, write_tokenizer

from mlx_qwen3 import load
from mlx_qwen3.engine.engine import Engine
from mlx_qwen3.engine.reply import generate
from mlx_qwen3.engine.request import ReplyOptions, prepare
from mlx_qwen3.engine.sampler import Sampler
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.engine.thinking import CLOSING, ThinkingBudget
from mlx_qwen3.errors import UsageError
from mlx_qwen3.text.tokenizer import Tokenizer

TEXTS = ("What is 17 + 25?", "Sort these words: pear, apple, fig", "Reverse: a b c d e")
SETTINGS = {
    "greedy": SamplingParams(temperature=0),
    "sampled": SamplingParams(temperature=1.2, top_k=0, seed=5),
    "penalties": SamplingParams(temperature=0.8, frequency_penalty=0.4, repetition_penalty=1.1, seed=2),
}
BUDGETS = (0, 3, 12)
LIMIT = 64


@pytest.fixture(scope="module")
def demo():
    return load("demo", dtype="fp32")


def oracle(demo, prompt, sampling, budget, limit=LIMIT, opened=False):
    """The reply token by token, by a cache that only grows and a sampler that is new each time."""
    model, tokenizer = demo
    think, end = (tokenizer.encode(tag)[0] for tag in ("<think>", "</think>"))
    tokens: list[int] = []
    cache, fed = model.make_cache(), 0
    while len(tokens) < limit and not (tokens and tokens[-1] in tokenizer.stop_ids):
        sampler = Sampler(sampling, [prompt], tokenizer.size, replies=[tokens])
        known = [*prompt, *tokens]
        logits, fed = model(mx.array([known[fed:]]), cache=cache)[:, -1], len(known)
        tokens.append(sampler.next(logits, len(tokens)).item())
        opening = -1 if opened else tokens.index(think) if think in tokens else None
        if opening is not None and end not in tokens and len(tokens) - opening - 1 == budget:
            tokens += tokenizer.encode(CLOSING)
        elif opened and budget == 0 and len(tokens) == 1:
            tokens = tokenizer.encode(CLOSING)
    return tokens[:limit]


@pytest.fixture(scope="module")
def expected(demo):
    """Replies by setting, budget and text."""
    found = {}
    for name, sampling in SETTINGS.items():
        for budget, text in zip(BUDGETS, TEXTS, strict=True):
            ids = prepare(demo[0].config, demo[1], text).ids
            found[name, budget, text] = oracle(demo, ids, sampling, budget)
    return found


@pytest.mark.parametrize("lookup", [False, True], ids=["plain", "drafts"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_reply_alone(demo, expected, setting, lookup):
    for (name, budget, text), tokens in expected.items():
        if name == setting:
            options = {"sampling": SETTINGS[name], "thinking_budget": budget, "max_tokens": LIMIT, "lookup": lookup}
            assert generate(*demo, text, **options).tokens == tokens, (budget, text)


def test_a_reply_with_a_draft_model(demo, expected):
    for (name, budget, text), tokens in expected.items():
        if name == "sampled":
            options = {"sampling": SETTINGS[name], "thinking_budget": budget, "max_tokens": LIMIT, "draft": demo[0]}
            assert generate(*demo, text, **options).tokens == tokens, (budget, text)


def test_replies_beside_others(demo, expected):
    """All of them at once, in batches where each row has its own budget, or none."""
    greedy = SETTINGS["greedy"]
    free = [prepare(demo[0].config, demo[1], text, ReplyOptions(greedy, max_tokens=LIMIT)) for text in TEXTS]
    with Engine(*demo, max_rows=8) as engine:
        replies = []
        for name, budget, text in expected:
            options = ReplyOptions(SETTINGS[name], max_tokens=LIMIT, thinking_budget=budget)
            replies.append(engine.submit(prepare(demo[0].config, demo[1], text, options)))
        without = [engine.submit(request) for request in free]
        assert [[chunk.token for chunk in reply] for reply in replies] == list(expected.values())
        for text, reply in zip(TEXTS, without, strict=True):
            assert [chunk.token for chunk in reply] == generate(*demo, text, sampling=greedy, max_tokens=LIMIT).tokens


def test_thinking_and_answer_are_told_apart(demo):
    result = generate(*demo, TEXTS[0], sampling=SETTINGS["greedy"], thinking_budget=5)
    assert result.thinking.endswith("have to give the solution based on the thinking directly now.")
    assert "think" not in result.text
    assert result.finish_reason == "stop"


def test_a_budget_that_is_not_reached_changes_nothing(demo):
    free = generate(*demo, TEXTS[0], sampling=SETTINGS["greedy"])
    thinking = free.tokens.index(demo[1].encode("</think>")[0]) - 1
    for budget in (thinking + 1, 1000):
        assert generate(*demo, TEXTS[0], sampling=SETTINGS["greedy"], thinking_budget=budget).tokens == free.tokens
    off = generate(*demo, TEXTS[0], sampling=SETTINGS["greedy"], thinking=False)
    raw = prepare(demo[0].config, demo[1], TEXTS[0], ReplyOptions(thinking=False)).ids
    assert generate(*demo, raw, sampling=SETTINGS["greedy"], thinking_budget=0).tokens == off.tokens


@pytest.mark.parametrize("budget", [0, 3])
def test_a_block_that_the_prompt_opened_counts_from_the_start(demo, budget):
    ids = [*prepare(demo[0].config, demo[1], TEXTS[0]).ids, *demo[1].encode("<think>")]
    tokens = oracle(demo, ids, SETTINGS["greedy"], budget, opened=True)
    result = generate(*demo, ids, sampling=SETTINGS["greedy"], thinking_budget=budget, max_tokens=LIMIT)
    assert result.tokens == tokens
    assert result.tokens[budget : budget + 5] == demo[1].encode(CLOSING)[:5]


def test_max_tokens_counts_the_closing_text(demo):
    result = generate(*demo, TEXTS[0], sampling=SETTINGS["greedy"], thinking_budget=2, max_tokens=10)
    assert (len(result.tokens), result.finish_reason, result.text) == (10, "length", "")


@pytest.mark.parametrize("text", ["answer", "\n<think>a</think>b", "<think>abc", "<think>a</thi", "x<think>abcdef"])
@pytest.mark.parametrize("budget", [0, 1, 2, 3])
def test_what_counts_is_what_the_reader_sees_as_thinking(tmp_path_factory, text, budget):
    """Scripted replies, with tags that are one token."""
    folder = write_tokenizer(write_checkpoint(tmp_path_factory.mktemp("scripted"), vocab_size=VOCABULARY))
    tokenizer = Tokenizer(folder)
    tokens = tokenizer.encode(text)
    part = ThinkingBudget(tokenizer, budget)
    settled = []
    while len(settled) < len(tokens) and not part.waits():
        settled.append(part.settle(tokens[len(settled)]))
    thinking = text.strip().removeprefix("<think>").split("</think>")[0] if text.strip().startswith("<think>") else None
    assert part.waits() == (thinking is not None and len(thinking) >= budget)
    assert settled == tokens[: len(settled)]
    if part.waits():
        assert tokenizer.decode(settled).strip() == "<think>" + thinking[:budget]
        assert [part.settle(0) for _ in tokenizer.encode(CLOSING)] == tokenizer.encode(CLOSING)
        assert not part.waits()
        assert part.settle(7) == 7


@pytest.mark.parametrize("budget", [-1, 1.5, True, "5"])
def test_what_is_not_a_budget_is_refused(budget):
    with pytest.raises(UsageError, match=r"thinking_budget is .*; expected a number of tokens, 0 or more"):
        ReplyOptions(thinking_budget=budget)


def test_a_budget_of_what_does_not_think_is_refused(demo, tmp_path):
    for options in ({"thinking": False}, {"template_args": {"enable_thinking": False}}):
        with pytest.raises(UsageError, match="thinking_budget limits the thinking, which is switched off"):
            ReplyOptions(thinking_budget=5, **options)
    folder = write_tokenizer(write_checkpoint(tmp_path, vocab_size=VOCABULARY))
    backend = folder / "tokenizer.json"
    backend.write_text(backend.read_text().replace("<think>", "<hmm>"))
    model, tokenizer = load(folder, "fp32")
    with pytest.raises(UsageError, match="this tokenizer has no token <think>"):
        prepare(model.config, tokenizer, "hi", ReplyOptions(thinking_budget=5))
