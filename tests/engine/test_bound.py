"""Bound replies: thinking stays free, the answer is of the grammar, rows beside them are as they are alone."""

import json
from copy import deepcopy
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3 import Engine, JsonSchema, Lark, Regex, generate, load, stream
from mlx_qwen3.engine import speculative
from mlx_qwen3.engine.bound import BoundAnswer, check_thinking
from mlx_qwen3.engine.decode import generate_batch
from mlx_qwen3.engine.grammar import compiled
from mlx_qwen3.engine.reply import run
from mlx_qwen3.engine.request import ReplyOptions, prepare
from mlx_qwen3.engine.rows import Row
from mlx_qwen3.engine.sampler import Sampler
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.engine.scheduler import Scheduler
from mlx_qwen3.engine.speculative import Lookup, Pace
from mlx_qwen3.errors import UsageError

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
GREEDY = SamplingParams(temperature=0)
WILD = SamplingParams(temperature=1.5, top_k=0, top_p=1.0, seed=4)
TEXT = "What is 17 + 25?"
NUMBER = Regex("[0-9]{1,3}")


@pytest.fixture(scope="module")
def demo():
    return load("demo", dtype="fp32")


def tokens_of(demo, *texts):
    return [demo[1].encode(text)[0] for text in texts]


def oracle(demo, prompt, grammar, sampling, limit=200):
    """A bound reply without thinking, by the model's logits and the texts that llguidance accepts."""
    model, tokenizer = demo
    tokens, match, cache, fed = [], grammar.begin(), model.make_cache(), 0
    while len(tokens) < limit and not (tokens and tokens[-1] in tokenizer.stop_ids):
        known = [*prompt, *tokens]
        logits, fed = model(mx.array([known[fed:]]), cache=cache)[:, -1], len(known)
        logits = mx.where(mx.array(match.allowed().tolist()), logits[:, : tokenizer.size], -mx.inf)
        tokens.append(Sampler(sampling, [prompt], tokenizer.size, replies=[tokens]).next(logits, len(tokens)).item())
        match.take(tokens[-1])
    return tokens


@pytest.mark.parametrize("sampling", [GREEDY, WILD], ids=["greedy", "sampled"])
def test_a_reply_alone_is_that_of_the_oracle(demo, sampling):
    grammar = compiled(demo[1], JsonSchema(PERSON))
    options = ReplyOptions(sampling, thinking=False, grammar=grammar)
    request = prepare(demo[0].config, demo[1], TEXT, options)
    result = generate(*demo, TEXT, sampling=sampling, thinking=False, grammar=grammar)
    assert result.tokens == oracle(demo, request.ids, grammar, sampling)
    assert result.finish_reason == "stop"
    assert set(json.loads(result.text)) == {"name", "age"}


def test_rows_beside_each_other(demo):
    """Bound and free rows at once: each has the reply that it has alone."""
    jobs = [
        {"grammar": JsonSchema(PERSON), "thinking": False, "sampling": WILD},
        {"sampling": WILD},
        {"grammar": NUMBER, "sampling": GREEDY},
        {"sampling": GREEDY, "thinking": False},
        {"grammar": JsonSchema(PERSON), "sampling": WILD, "thinking_budget": 4},
    ]
    alone = [generate(*demo, TEXT, max_tokens=120, **job) for job in jobs]
    with Engine(*demo, max_rows=8) as engine:
        replies = [engine.submit(engine.prepare(TEXT, ReplyOptions(max_tokens=120, **job))) for job in jobs]
        chunks = [list(reply) for reply in replies]
    for expected, found in zip(alone, chunks, strict=True):
        assert [chunk.token for chunk in found] == expected.tokens
        assert found[-1].finish_reason == expected.finish_reason


def test_thinking_stays_free(demo):
    free = generate(*demo, TEXT, sampling=GREEDY)
    bound = generate(*demo, TEXT, sampling=GREEDY, grammar=NUMBER)
    assert bound.thinking == free.thinking != ""
    assert bound.text.isdigit()
    assert bound.finish_reason == "stop"
    assert "".join(chunk.text for chunk in stream(*demo, TEXT, sampling=GREEDY, grammar=NUMBER)) == bound.text


@pytest.mark.parametrize("budget", [0, 3, 1000])
def test_the_thinking_budget_holds_before_a_bound_answer(demo, budget):
    result = generate(*demo, TEXT, sampling=GREEDY, grammar=NUMBER, thinking_budget=budget)
    assert result.text.isdigit()
    limited = "limited time" in result.thinking
    assert limited == (budget < 1000)
    free = generate(*demo, TEXT, sampling=GREEDY, thinking_budget=budget)
    assert result.thinking == free.thinking


def test_a_prompt_that_opens_the_block(demo):
    model, tokenizer = demo
    ids = [*prepare(model.config, tokenizer, TEXT).ids, *tokenizer.encode("<think>")]
    result = generate(*demo, ids, sampling=GREEDY, grammar=NUMBER)
    assert result.thinking
    assert result.text.isdigit()


def test_in_the_block_everything_is_allowed_but_the_end(demo):
    tokenizer = demo[1]
    think, end_think, digit = tokens_of(demo, "<think>", "</think>", "7")
    part = BoundAnswer(compiled(tokenizer, NUMBER), may_think=True)
    first = part.allowed()
    assert first[[think, digit]].all()
    assert not first[end_think]
    assert part.waits()
    assert part.settle(think) == think
    ends = sorted(tokenizer.stop_ids)
    assert np.flatnonzero(~part.allowed()).tolist() == ends
    part.settle(end_think)
    line, lines = (tokenizer.encode(text) for text in ("\n", "\n\n"))
    assert np.flatnonzero(part.allowed()).tolist() == sorted([*tokens_of(demo, *"0123456789"), *line, *lines])
    part.settle(line[0])
    assert not part.allowed()[lines[0]]
    part.settle(digit)
    assert part.allowed()[[digit, *ends]].all()
    assert not part.allowed()[[think, *line]].any()


def test_a_tag_in_letters_ends_the_block_too(demo):
    """A token that ends such a tag may already begin the answer: the tag's own token takes its place."""
    tokenizer = demo[1]
    part = BoundAnswer(compiled(tokenizer, NUMBER), may_think=True, opens_thinking=True)
    spelled = tokenizer.encode("hm</think") + tokenizer.encode(">")
    assert [part.settle(token) for token in spelled] == spelled
    assert part.allowed()[tokens_of(demo, "7")].all()
    part = BoundAnswer(compiled(tokenizer, NUMBER), may_think=True, opens_thinking=True)
    part.settle(tokenizer.encode("h")[0])
    part._thinking = SimpleNamespace(add=lambda token: ("", "{"), thinks=False)
    assert part.settle(5) == tokens_of(demo, "</think>")[0]


def test_a_reply_that_is_told_not_to_think_begins_with_its_answer(demo):
    [think] = tokens_of(demo, "<think>")
    assert not BoundAnswer(compiled(demo[1], NUMBER), may_think=False).allowed()[think]
    request = prepare(demo[0].config, demo[1], TEXT, ReplyOptions(thinking=False, grammar=NUMBER))
    assert not request.may_think
    assert prepare(demo[0].config, demo[1], TEXT, ReplyOptions(grammar=NUMBER)).may_think


def test_a_reply_that_is_cut_says_so(demo):
    result = generate(*demo, TEXT, sampling=GREEDY, thinking=False, grammar=JsonSchema(PERSON), max_tokens=3)
    assert (result.finish_reason, len(result.tokens)) == ("length", 3)


class Fails:
    """A grammar that fails after some tokens."""

    def __init__(self, after):
        self.after = after

    def allowed(self):
        self.after -= 1
        if self.after < 0:
            raise UsageError("the grammar of the reply has failed: broken")
        return np.ones(self.size, bool)

    def take(self, token):
        pass


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_grammar_that_fails_ends_its_own_reply_only(demo, after):
    model, tokenizer = demo
    Fails.size = tokenizer.size
    alone = generate(*demo, TEXT, sampling=GREEDY, thinking=False).tokens
    broken = SimpleNamespace(tokenizer=tokenizer, begin=lambda: Fails(after))
    with Engine(*demo, max_rows=4) as engine:
        requests = [engine.prepare(TEXT, ReplyOptions(GREEDY, thinking=False)) for _ in range(3)]
        object.__setattr__(requests[1], "grammar", broken)
        replies = [engine.submit(request) for request in requests]
        found = []
        with pytest.raises(UsageError, match="the grammar of the reply has failed: broken"):
            found.extend(replies[1])
        assert [[chunk.token for chunk in replies[index]] for index in (0, 2)] == [alone, alone]
        again = engine.submit(engine.prepare(TEXT, ReplyOptions(GREEDY, thinking=False)))
        assert [chunk.token for chunk in again] == alone
    with pytest.raises(UsageError, match="has failed: broken"):
        list(run(model, tokenizer, requests[1]))


def test_many_prompts_of_token_ids(demo):
    model, tokenizer = demo
    grammar = compiled(tokenizer, NUMBER)
    prompts = [prepare(model.config, tokenizer, text).ids for text in (TEXT, "hello", "Reverse: a b")]
    replies = generate_batch(model, prompts, max_tokens=20, grammar=grammar, sampling=WILD)
    assert all(tokenizer.decode(reply).isdigit() for reply in replies)
    alone = generate_batch(model, prompts[:1], max_tokens=20, grammar=grammar, sampling=WILD, lookup=True)
    assert alone == replies[:1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grammar": {"type": "object"}}, r"grammar is \{'type': 'object'\}; expected a Grammar, or one of JsonObject"),
        ({"grammar": NUMBER, "stop": "x"}, "a stop string would end the reply before its grammar is complete"),
        ({"grammar": NUMBER, "continue_final_message": True}, "a grammar binds a whole answer"),
    ],
)
def test_options_that_contradict_a_grammar_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        ReplyOptions(**options)


# Names repeat, so that lookup finds something to guess.
PEOPLE = JsonSchema({"type": "array", "items": PERSON, "minItems": 3, "maxItems": 5})


@pytest.fixture
def eager(monkeypatch):
    """A draft model guesses, however long its guesses take."""
    monkeypatch.setattr(speculative, "Pace", lambda costs, draft_cost=0.0: Pace((1.0,) * 8))


@pytest.mark.parametrize(
    ("sampling", "thinking"),
    [(GREEDY, True), (WILD, False), (SamplingParams(0.8, frequency_penalty=0.5, seed=2), False)],
    ids=["greedy", "sampled", "penalties"],
)
def test_guesses_change_no_token(demo, eager, sampling, thinking):
    options = {"sampling": sampling, "thinking": thinking, "grammar": PEOPLE, "max_tokens": 48, "logprobs": 1}
    plain = generate(*demo, TEXT, lookup=False, **options)
    for guesser in ({"lookup": True}, {"draft": demo[0]}):
        guessed = generate(*demo, TEXT, **guesser, **options)
        assert guessed.tokens == plain.tokens
        assert guessed.drafted_tokens > 0
        assert np.allclose(
            [each.logprob for each in guessed.logprobs], [each.logprob for each in plain.logprobs], atol=1e-3
        )


def test_right_guesses_save_passes(demo, eager):
    options = ReplyOptions(GREEDY, thinking=False, grammar=PEOPLE, max_tokens=120)
    for engine_options in ({"lookup": True}, {"draft": demo[0]}):
        with Engine(*demo, **engine_options) as engine:
            *_, last = engine.submit(engine.prepare(TEXT, options))
        assert last.accepted > 20


def test_a_guess_that_the_grammar_forbids_is_refused_even_if_the_model_cannot_read_it(demo):
    """Its embedding is NaN, which reaches every position of the pass that checks it."""
    model, tokenizer = deepcopy(demo[0]), demo[1]
    [unread] = tokens_of(demo, "the")
    weight = np.array(model.embed_tokens.weight)
    weight[unread] = np.nan
    model.embed_tokens.weight = mx.array(weight)
    ids = [token for token in prepare(model.config, tokenizer, TEXT).ids if token != unread]
    grammar = compiled(tokenizer, Regex("[0-9]{9}"))
    expected = generate_batch(demo[0], [ids], max_tokens=12, grammar=grammar)

    class Wrong(Lookup):
        def propose(self, room, sampler):
            return [unread, unread][:room]

    drafter = Wrong(ids, Pace((1.0,) * 8))
    row = Row(ids, GREEDY, 12, tokenizer.stop_ids, steering=[BoundAnswer(grammar, may_think=False)], drafter=drafter)
    scheduler = Scheduler(model, tokenizer.size)
    scheduler.add(row)
    assert not [event for _, event in scheduler.run() if isinstance(event, Exception)]
    assert [token for token in row.tokens if token not in tokenizer.stop_ids] == expected[0]
    assert drafter.drafted > drafter.accepted == 0


def test_a_block_that_no_token_closes_is_refused():
    tokenizer = SimpleNamespace(encode=lambda text: list(text.encode()))
    with pytest.raises(UsageError, match="a grammar after thinking needs a tokenizer with the token </think>"):
        check_thinking(tokenizer)


def test_lark_of_a_reply(demo):
    result = generate(*demo, TEXT, thinking=False, sampling=WILD, grammar=Lark('start: "a" /[0-9]/ | "b"'))
    assert result.text == "b" or (result.text[0] == "a" and result.text[1:].isdigit())
