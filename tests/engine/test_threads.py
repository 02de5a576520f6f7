"""Replies that are read in another thread, or in several at once."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import mlx_qwen3
from mlx_qwen3 import SamplingParams
from mlx_qwen3.engine import threads

PROMPTS = ("What is 17 + 25?", "Hello, who are you?", "Name three fruits.")
OPTIONS = {"max_tokens": 90, "sampling": SamplingParams(temperature=0)}  # past the token from which a CPU replays


@pytest.fixture(scope="module")
def demo():
    return mlx_qwen3.load("demo")


@pytest.fixture(scope="module")
def expected(demo):
    return [mlx_qwen3.generate(*demo, prompt, **OPTIONS).tokens for prompt in PROMPTS]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("guesses", ["none", "lookup", "draft"])
def test_every_step_may_run_in_another_thread(demo, expected, guesses, workers):
    """A web framework reads a synchronous generator in the threads of a pool."""
    chosen = {"lookup": guesses == "lookup", "draft": demo[0] if guesses == "draft" else None}
    chunks = mlx_qwen3.stream(*demo, PROMPTS[0], **OPTIONS, **chosen)
    tokens = [next(chunks).token]
    with ThreadPoolExecutor(workers) as pool:
        while chunk := pool.submit(next, chunks, None).result():
            tokens.append(chunk.token)
    assert tokens == expected[0]


def test_threads_generate_on_one_model_at_once(demo, expected):
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda prompt: mlx_qwen3.generate(*demo, prompt, **OPTIONS), PROMPTS))
    assert [result.tokens for result in results] == expected


def test_threads_generate_on_models_of_their_own(expected):
    def load_and_generate(prompt):
        return mlx_qwen3.generate(*mlx_qwen3.load("demo"), prompt, **OPTIONS).tokens

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(load_and_generate, PROMPTS)) == expected


def test_an_error_in_one_thread_does_not_hold_the_others(demo, expected):
    chunks = mlx_qwen3.stream(*demo, PROMPTS[0], **OPTIONS)
    next(chunks)
    with pytest.raises(ZeroDivisionError):
        chunks.throw(ZeroDivisionError)
    thread = threading.Thread(target=next, args=(mlx_qwen3.stream(*demo, PROMPTS[1], **OPTIONS),))
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


def test_a_thread_is_noted_while_another_one_is(monkeypatch):
    """The threads of several engines begin at once, and each looks at those that are known."""
    known = {threading.Thread() for _ in range(3)}
    monkeypatch.setattr(threads, "_visitors", known)
    monkeypatch.setattr(threads, "_runs", lambda native_id: known.add(threading.Thread()) or True)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(threads.note_thread).result()
    assert len(known) == 7


def test_the_process_ends_well_after_its_threads():
    """MLX alone aborts it nearly every time: Python joins a thread before the system has ended it."""
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from concurrent.futures import ThreadPoolExecutor
import test_threads, mlx_qwen3
demo = mlx_qwen3.load("demo")
with ThreadPoolExecutor(3) as pool:
    list(pool.map(lambda prompt: mlx_qwen3.generate(*demo, prompt, **test_threads.OPTIONS), test_threads.PROMPTS))
"""
    for _ in range(2):
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=Path(__file__).parents[2])
        assert (result.returncode, result.stderr) == (0, b"")
