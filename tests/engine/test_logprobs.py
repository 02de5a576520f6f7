"""Log-probabilities: against a pass over the whole text, beside other rows, with a token that steering puts in."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.engine.engine import Engine
from mlx_qwen3.engine.logprobs import Scores
from mlx_qwen3.engine.reply import generate
from mlx_qwen3.engine.request import ReplyOptions
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.errors import UsageError

HOT = SamplingParams(1.3, 0, 1.0, presence_penalty=1.0, seed=4)


def expected(model, prompt, tokens):
    """log-softmax of the logits before each token (N, V), in float64, from one pass over everything."""
    ids = mx.array([[*prompt, *tokens[:-1]]])
    logits = np.array(model(ids)[0, len(prompt) - 1 :].astype(mx.float32)).astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def check(model, prompt, tokens, scores, count):
    """Alternatives are among the tokenizer's 261 ids; the embedding's padding rows stand for no text."""
    assert len(scores) == len(tokens)
    for row, token, found in zip(expected(model, prompt, tokens), tokens, scores, strict=True):
        assert found.logprob == pytest.approx(row[token], abs=1e-4)  # measured 2e-5
        assert [value for _, value in found.top] == pytest.approx(np.sort(row[:261])[::-1][:count], abs=1e-4)
        assert [row[index] for index, _ in found.top] == pytest.approx([value for _, value in found.top], abs=1e-4)


def test_they_are_those_of_the_model_before_penalties_and_temperature(chat):
    model, tokenizer = chat
    prompt = tokenizer.encode("hello")
    result = generate(model, tokenizer, prompt, sampling=HOT, max_tokens=12, logprobs=3)
    assert len(set(result.tokens)) > 3
    check(model, prompt, result.tokens, result.logprobs, 3)


def test_guesses_that_are_right_have_them_too(chat):
    model, tokenizer = chat
    prompt = tokenizer.encode("hello hello hello hello")
    options = {"sampling": SamplingParams(temperature=0), "max_tokens": 24, "logprobs": 3}
    plain = generate(model, tokenizer, prompt, **options, lookup=False)
    result = generate(model, tokenizer, prompt, **options, lookup=True)
    assert result.tokens == plain.tokens
    assert result.drafted_tokens >= result.accepted_tokens > 0
    check(model, prompt, result.tokens, result.logprobs, 3)


def test_only_the_rows_that_ask_have_them_and_no_token_changes(chat):
    model, tokenizer = chat
    prompts = [tokenizer.encode(text) for text in ("hello", "a longer prompt", "the third")]
    asked = [2, None, 0]
    alone = [generate(model, tokenizer, prompt, sampling=HOT, max_tokens=9).tokens for prompt in prompts]
    with Engine(model, tokenizer) as engine:
        options = [ReplyOptions(HOT, 9, logprobs=count) for count in asked]
        replies = [engine.submit(engine.prepare(*pair)) for pair in zip(prompts, options, strict=True)]
        chunks = [list(reply) for reply in replies]
    assert [[chunk.token for chunk in reply] for reply in chunks] == alone
    assert {chunk.logprobs for chunk in chunks[1]} == {None}
    for index, count in ((0, 2), (2, 0)):
        check(model, prompts[index], alone[index], [chunk.logprobs for chunk in chunks[index]], count)


def test_a_token_that_was_put_in_has_its_own():
    logits = mx.array(np.random.default_rng(0).normal(0, 3, (2, 50)).astype(np.float32))
    scores = Scores(logits, mx.array([3, 4]), [None, 1], 50)
    other = scores.of(1, 9).logprob
    assert other == pytest.approx((logits[1, 9] - mx.logsumexp(logits[1])).item(), abs=1e-5)
    assert scores.of(1, 4).logprob != other


@pytest.mark.parametrize("count", [-1, 21, True, 2.0])
def test_a_wrong_count(count):
    with pytest.raises(UsageError, match=r"logprobs is .*; expected how many alternatives to list, 0 to 20"):
        ReplyOptions(logprobs=count)
