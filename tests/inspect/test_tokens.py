"""Random tokens, prompts, and the replies before a decode step: the tokens that `generate` prints."""

import mlx.core as mx
import pytest
from arrays import as_numpy
from checkpoints import VOCABULARY, write_checkpoint, write_tokenizer
from inspecting import FOUR

from mlx_qwen3.engine.reply import generate
from mlx_qwen3.engine.request import default_sampling
from mlx_qwen3.errors import UsageError
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.inspect import Options, inspect
from mlx_qwen3.inspect import tokens as tokens_module
from mlx_qwen3.inspect.tokens import prompts_for, reply_to
from mlx_qwen3.model.load import load_model
from mlx_qwen3.text.tokenizer import Tokenizer

PROMPT = "Say something new."


@pytest.fixture(scope="module")
def lively(tmp_path_factory):
    """(folder, model, tokenizer) of a model that seldom says a token twice."""
    folder = tmp_path_factory.mktemp("lively")
    write_tokenizer(write_checkpoint(folder, FOUR, tie_word_embeddings=False, max_position_embeddings=128))
    return folder, load_model(folder), Tokenizer(folder)


def replies(lively, **options):
    folder, model, _ = lively
    options = Options(**options)
    return reply_to(model, prompts_for(Checkpoint(folder), options), options)


def test_random_tokens_are_of_the_tokenizer(four_layers):
    """Ids from 261 up are padding rows of the embedding."""
    assert prompts_for(Checkpoint(four_layers), Options(batch=4, length=500)).ids.max().item() == 260


@pytest.mark.parametrize("count", [1, 3, 9])
@pytest.mark.parametrize("changes", [{"temperature": 0.0}, {"seed": 7}, {"temperature": 2.0, "seed": 1}, {}], ids=str)
def test_the_tokens_of_generate(changes, count, lively):
    _, model, tokenizer = lively
    sampling = default_sampling(tokenizer, **{"seed": 0, **changes})
    expected = generate(model, tokenizer, PROMPT, sampling=sampling, max_tokens=count + 1).tokens
    assert len(set(expected)) > count // 2
    reply = replies(lively, prompt=PROMPT, decode=count, **changes)
    assert (reply.tokens, reply.following) == ([expected[:-1]], expected[-1:])


def test_the_step_that_is_shown_gives_the_next_token(lively):
    """Greedy, so that the token is the one with the largest logit; logits are those of a pass over all tokens."""
    folder, model, tokenizer = lively
    for options in (Options(PROMPT, decode=5, temperature=0.0), Options(batch=3, length=4, decode=2)):
        report = inspect(folder, options)
        prompts = prompts_for(Checkpoint(folder), options)
        tokens = mx.array(report.reply.tokens)
        last = as_numpy(model(mx.concatenate([prompts.ids, tokens], axis=1)))[:, -1]
        assert last[:, : tokenizer.size].argmax(-1).tolist() == report.reply.following
        logits = report.numbers.overall[(None, "logits")]
        assert (logits.mean, logits.std, logits.max) == pytest.approx((last.mean(), last.std(), last.max()), abs=1e-4)
        assert report.numbers.shapes[(None, "logits")] == (len(last), 1, VOCABULARY)


def test_words_say_which_step(lively):
    folder, _, _ = lively
    words = inspect(folder, Options(length=3, decode=1)).tokens
    assert words == "the decode step after 1 token of the reply to random tokens [1, 3], seed 0"
    words = inspect(folder, Options(PROMPT, decode=2, temperature=0.0)).tokens
    assert words == "the decode step after 2 tokens of the reply to the prompt in the chat template, [1, 37] tokens"


def test_the_chat_template_may_be_chosen(lively):
    folder, _, tokenizer = lively
    options = Options(PROMPT, chat_template="{{ messages[0].content }}!")
    assert prompts_for(Checkpoint(folder), options).ids.tolist() == [tokenizer.encode(PROMPT + "!")]
    with pytest.raises(UsageError, match="there is no chat template 'rag'"):
        prompts_for(Checkpoint(folder), Options(PROMPT, chat_template="rag"))


@pytest.mark.parametrize("end", [0, 1, 4])
def test_a_reply_that_ends_before_the_step(end, lively, monkeypatch):
    """The end token is never fed, so the last step comes after the token before it."""
    _, _, tokenizer = lively
    [tokens] = replies(lively, prompt=PROMPT, decode=6, seed=7).tokens
    monkeypatch.setattr(tokenizer, "stop_ids", frozenset({tokens[end]}))
    monkeypatch.setattr(tokens_module, "Tokenizer", lambda _: tokenizer)
    length = tokens.index(tokens[end]) + 1
    remedy = f"give at most {length - 1}" if length > 1 else "leave it out"
    with pytest.raises(UsageError, match=f"^--decode is 6, but the reply ends with its token {length}; {remedy}$"):
        replies(lively, prompt=PROMPT, decode=6, seed=7)
    if length > 1:
        assert replies(lively, prompt=PROMPT, decode=length - 1, seed=7).following == [tokens[end]]


def test_a_reply_that_the_context_cuts(lively):
    assert len(replies(lively, length=100, decode=27).tokens[0]) == 27
    message = "--decode is 28, but after 100 prompt tokens the context of 128 has room for 27 steps"
    with pytest.raises(UsageError, match=message):
        prompts_for(Checkpoint(lively[0]), Options(length=100, decode=28))


def test_rows_of_random_tokens_have_replies_of_their_own(lively):
    together = replies(lively, batch=3, length=5, decode=4)
    ids = prompts_for(Checkpoint(lively[0]), Options(batch=3, length=5)).ids
    assert len({tuple(row) for row in together.tokens}) == 3
    for row, tokens in zip(ids.tolist(), together.tokens, strict=True):
        logits = as_numpy(lively[1](mx.array([[*row, *tokens[:-1]]])))[0, len(row) - 1 :, : lively[2].size]
        assert logits.argmax(-1).tolist() == tokens
