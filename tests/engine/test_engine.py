"""The engine: requests from any thread, errors of one request, cancelling, closing."""

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlx_qwen3 import load
from mlx_qwen3.engine import batch
from mlx_qwen3.engine.engine import Engine
from mlx_qwen3.engine.reply import Chunk, generate
from mlx_qwen3.engine.request import ReplyOptions, prepare
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.errors import EngineError, UsageError
from mlx_qwen3.model.load import load_model

TEXTS = ("What is 17 + 25?", "What is the capital of France?", "Reverse: a b c d e", "hello")


@pytest.fixture(scope="module")
def demo():
    return load("demo", dtype="fp32")


def request(demo, text, **options):
    options.setdefault("sampling", SamplingParams(temperature=0))
    return prepare(demo[0].config, demo[1], text, ReplyOptions(**options))


def said(reply):
    return [chunk.token for chunk in reply]


def test_drafts_of_the_engine_change_no_token(demo):
    alone = generate(*demo, TEXTS[1], sampling=SamplingParams(seed=3), lookup=False).tokens
    for options in ({"lookup": False}, {"lookup": True}, {"draft": demo[0]}):
        with Engine(*demo, **options) as engine:
            chunks = list(engine.submit(request(demo, TEXTS[1], sampling=SamplingParams(seed=3))))
        assert [chunk.token for chunk in chunks] == alone
        assert (chunks[-1].drafted > 0) is (options == {"lookup": True})  # such a draft model would cost too much


def test_a_draft_model_of_fewer_ids_is_refused(demo, tiny):
    with pytest.raises(UsageError, match="the draft model has a vocabulary of 151"):
        Engine(*demo, draft=load_model(tiny))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_rows", 0),
        ("max_rows", 1.5),
        ("max_gap", float("nan")),
        ("max_gap", float("inf")),
        ("prefix_bytes", -1),
        ("prefix_bytes", "1GB"),
        ("cache_dir_bytes", True),
    ],
)
def test_an_option_that_no_engine_can_honour_is_refused(demo, name, value):
    with pytest.raises(UsageError, match=f"{name} is .*; expected a"):
        Engine(*demo, **{name: value})


def test_what_is_not_a_request_is_refused(demo):
    with Engine(*demo) as engine, pytest.raises(UsageError, match="submit takes what `prepare` returns"):
        engine.submit("hello")


def test_replies_together_are_those_of_generate(demo):
    options = [{"sampling": SamplingParams(seed=seed), "max_tokens": 60} for seed in range(4)]
    alone = [generate(*demo, text, **given) for text, given in zip(TEXTS, options, strict=True)]
    with Engine(*demo) as engine:
        replies = [engine.submit(request(demo, text, **given)) for text, given in zip(TEXTS, options, strict=True)]
        chunks = [list(reply) for reply in replies]
    for expected, found in zip(alone, chunks, strict=True):
        assert [chunk.token for chunk in found] == expected.tokens
        assert "".join(chunk.text for chunk in found) == expected.text
        assert found[-1].finish_reason == expected.finish_reason


def test_requests_from_many_threads(demo):
    expected = generate(*demo, TEXTS[0], sampling=SamplingParams(temperature=0)).tokens
    found = {}
    with Engine(*demo, max_rows=4) as engine:

        def ask(index):
            found[index] = said(engine.submit(request(demo, TEXTS[0])))

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == dict.fromkeys(range(6), expected)


def test_a_cancelled_reply_ends_and_the_others_go_on(demo):
    with Engine(*demo) as engine:
        endless = SamplingParams(temperature=0, logit_bias=dict.fromkeys(demo[1].stop_ids, -100))
        first = engine.submit(request(demo, TEXTS[0], sampling=endless, max_tokens=3000))
        second = engine.submit(request(demo, TEXTS[0]))
        next(first)
        first.cancel()
        assert len(list(first)) < 2000
        assert said(second) == generate(*demo, TEXTS[0], sampling=SamplingParams(temperature=0)).tokens


def test_tokens_of_a_cancelled_reply_that_come_late_disturb_nobody(demo, monkeypatch):
    """On a GPU a step is under way when a row joins or leaves, so its tokens are told one step later."""
    monkeypatch.setattr(batch, "kernels", SimpleNamespace(on_gpu=lambda: True))
    expected = generate(*demo, TEXTS[0], sampling=SamplingParams(temperature=0)).tokens
    with Engine(*demo) as engine:
        kept = engine.submit(request(demo, TEXTS[0]))
        for _ in range(6):
            gone = engine.submit(request(demo, TEXTS[1]))
            next(gone)
            gone.cancel()
        assert said(kept) == expected


def test_a_reply_that_nobody_reads_holds_back_nobody(demo):
    with Engine(*demo) as engine:
        unread = engine.submit(request(demo, TEXTS[0]))
        assert said(engine.submit(request(demo, TEXTS[3])))
        assert said(unread)


def test_an_error_in_the_text_of_one_reply_is_its_own(demo, monkeypatch):
    with Engine(*demo) as engine:
        broken, whole = (engine.submit(request(demo, text)) for text in TEXTS[:2])
        monkeypatch.setattr(broken._speaker, "say", lambda token: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(broken)
        assert said(whole)
        assert engine.alive


def test_an_error_of_the_shared_step_ends_the_rows_and_not_the_engine(demo, monkeypatch):
    with Engine(*demo) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(engine._scheduler, "step", lambda: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                list(engine.submit(request(demo, TEXTS[0])))
        assert engine.alive
        assert said(engine.submit(request(demo, TEXTS[3])))


def test_closing_ends_replies_with_the_reason(demo):
    engine = Engine(*demo)
    reply = engine.submit(request(demo, TEXTS[0]))
    engine.close("the power is off")
    with pytest.raises(EngineError, match="the power is off"):
        list(reply)
    assert not engine.alive
    with pytest.raises(EngineError, match="the power is off"):
        engine.submit(request(demo, TEXTS[0]))
    assert list(reply) == []  # an iterator that has ended stays so


def test_a_process_may_end_while_the_engine_runs():
    program = (
        "import mlx_qwen3; from mlx_qwen3.engine.engine import Engine; from mlx_qwen3.engine.request import prepare\n"
        "model, tokenizer = mlx_qwen3.load('demo'); engine = Engine(model, tokenizer)\n"
        "print(next(engine.submit(prepare(model.config, tokenizer, 'hello'))).token)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_listener_hears_what_the_iteration_gives(demo):
    heard, done = [], threading.Event()

    def listen(event):
        heard.append(event)
        if event is None or event.finish_reason:
            done.set()

    with Engine(*demo) as engine:
        engine.submit(request(demo, TEXTS[0]), listen)
        assert done.wait(60)
        assert [chunk.token for chunk in heard] == said(engine.submit(request(demo, TEXTS[0])))
        heard.clear()
        engine.submit(request(demo, TEXTS[0]), listen).cancel()
        assert heard[-1] is None


def test_a_listener_that_raises_ends_its_own_reply(demo):
    heard = []

    def listen(event):
        heard.append(event)
        raise KeyError(len(heard))

    with Engine(*demo) as engine:
        kept = engine.submit(request(demo, TEXTS[0]))
        engine.submit(request(demo, TEXTS[3]), listen)
        assert said(kept) == generate(*demo, TEXTS[0], sampling=SamplingParams(temperature=0)).tokens
        assert said(engine.submit(request(demo, TEXTS[3])))
        engine.submit(request(demo, TEXTS[0]), listen)
    assert [type(event) for event in heard] in ([Chunk, KeyError] * 2, [Chunk, KeyError, EngineError])


def test_stop_iteration_of_a_reply_is_an_error_and_not_its_end(demo, monkeypatch):
    with Engine(*demo) as engine:
        broken = engine.submit(request(demo, TEXTS[0]))
        monkeypatch.setattr(broken._speaker, "say", lambda token: next(iter(())))
        with pytest.raises(RuntimeError, match="StopIteration"):
            list(broken)


def test_more_rows_than_a_batch_has_slots(demo):
    """Their prompts are so short that one pass could compute them all."""
    prompts = [[first, 6, 7] for first in range(5, 45)]
    options = {"sampling": SamplingParams(temperature=0), "max_tokens": 3}
    with Engine(*demo, max_rows=50) as engine:
        blocker = engine.submit(request(demo, TEXTS[0]))  # so that the others wait together
        replies = [engine.submit(request(demo, prompt, **options)) for prompt in prompts]
        found = [said(reply) for reply in replies]
        assert said(blocker)
    assert found[-3:] == [generate(*demo, prompt, **options).tokens for prompt in prompts[-3:]]
    assert all(found)


def test_an_engine_whose_thread_dies_says_so(demo, monkeypatch):
    class Deadly(BaseException):
        pass

    def die():
        raise Deadly

    engine = Engine(*demo)
    monkeypatch.setattr(threading, "excepthook", lambda error: None)
    monkeypatch.setattr(engine._scheduler, "step", die)
    with pytest.raises(EngineError, match="has ended by an error"):
        list(engine.submit(request(demo, TEXTS[0])))
    assert not engine.alive
    with pytest.raises(EngineError, match="has ended by an error"):
        engine.submit(request(demo, TEXTS[0]))


def test_replies_of_one_prompt_and_seed_are_told_apart_by_their_number(demo):
    hot = request(demo, TEXTS[3], sampling=SamplingParams(4.0, 0, 1.0, seed=1), max_tokens=20)
    with Engine(*demo) as engine:
        replies = [engine.submit(replace(hot, number=number)) for number in (0, 1, 0)]
        first, other, again = map(said, replies)
        assert engine.load.waiting == 0
    assert first == again == generate(*demo, TEXTS[3], sampling=hot.sampling, max_tokens=20).tokens
    assert other != first


def test_a_chunk_says_what_its_token_belongs_to(demo):
    with Engine(*demo) as engine:
        chunks = list(engine.submit(request(demo, TEXTS[0])))
    decode = demo[1].decode
    text = {part: decode([chunk.token for chunk in chunks if chunk.part == part]) for part in ("thinking", "answer")}
    assert text["answer"] == "".join(chunk.text for chunk in chunks) == "17 + 25 = 42."
    assert text["thinking"].strip("\n") == "".join(chunk.thinking for chunk in chunks).strip("\n")
    tags = decode([chunk.token for chunk in chunks if chunk.part == "tag"])
    assert "".join(tags.split()) == "<think></think><|im_end|>"
