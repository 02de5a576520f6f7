"""Load and manners: the queue, timeouts, clients that leave, errors within a stream."""

import http.client
import json
from contextlib import contextmanager

import pytest
from serving import serving, wait_until

from mlx_qwen3.engine.threads import shared_stream

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
ENDLESS = {**HELLO, "logit_bias": {"2500": -100, "2502": -100}, "max_tokens": 3500}  # without the end tokens


@contextmanager
def streaming(served, body):
    """A reply under way: its first tokens have come."""
    response = served.open("POST", CHAT, {**body, "stream": True})
    assert response.status == 200
    while b'"content":"' not in (line := response.readline()) or b'"content":""' in line:
        assert line, "the stream has ended"
    try:
        yield response
    finally:
        response.connection.close()
        response.close()


@pytest.fixture(scope="module")
def narrow():
    with serving(rows=1, queue=1, keep_alive=0.001) as served:
        yield served


def test_a_client_that_leaves_frees_its_row(narrow):
    with streaming(narrow, ENDLESS):
        pass
    wait_until(lambda: not narrow.busy and not narrow.loaded.replies and not narrow.loaded.users)
    assert narrow.chat()["choices"][0]["finish_reason"] == "stop"


def test_a_client_that_leaves_before_an_answer_frees_its_row(narrow):
    connection = http.client.HTTPConnection("127.0.0.1", narrow.port)
    connection.request("POST", CHAT, json.dumps(ENDLESS))
    wait_until(lambda: narrow.busy)
    connection.close()
    wait_until(lambda: not narrow.busy and not narrow.loaded.users)


def test_a_full_queue_is_429_with_the_time_to_wait(narrow):
    with streaming(narrow, ENDLESS):
        waiting = narrow.open("POST", CHAT, {**HELLO, "stream": True})
        assert waiting.status == 200
        refused = narrow.open("POST", CHAT, HELLO)
        error = json.loads(refused.read())["error"]
        refused.connection.close()
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert (error["code"], error["type"]) == ("queue_full", "rate_limit_error")
        assert "2 replies run or wait, and 2 is the limit" in error["message"]
        assert "queue_replies 1\n" in narrow.ask("/metrics")[1]
    assert waiting.read().endswith(b"data: [DONE]\n\n")
    waiting.connection.close()
    wait_until(lambda: not narrow.busy and not narrow.loaded.replies)


def test_a_stream_that_is_silent_is_kept_open_by_comments(narrow):
    with shared_stream():  # the engine waits, so there is no token
        response = narrow.open("POST", CHAT, {**HELLO, "stream": True})
        while b": still working" not in (line := response.readline()):
            assert line, "the stream has ended"
    assert response.read().endswith(b"data: [DONE]\n\n")
    response.connection.close()


def test_a_reply_that_takes_too_long():
    with serving(timeout=0.2) as served:
        status, answer = served.ask(CHAT, ENDLESS)
        assert (status, answer["error"]["code"]) == (504, "timeout")
        assert "after 0.2 seconds (--timeout)" in answer["error"]["message"]
        *_, last = served.events(CHAT, ENDLESS)
        assert last["error"]["code"] == "timeout"
        wait_until(lambda: not served.busy)


def test_an_engine_that_ends_within_a_stream_is_an_error_in_it():
    with serving() as served, streaming(served, ENDLESS) as response:
        served.loaded.engine.close("the power is off")
        events = response.read().decode().strip().split("\n\n")
        assert events[-1] == "data: [DONE]"
        error = json.loads(events[-2].removeprefix("data: "))["error"]
        assert error == {
            "message": "the power is off",
            "type": "service_unavailable_error",
            "param": None,
            "code": "engine_unavailable",
        }


def test_a_request_that_can_never_fit_is_400_with_both_numbers():
    with serving(memory="45MB") as served:
        status, answer = served.ask(CHAT, {**HELLO, "max_tokens": 4000})
        assert (status, answer["error"]["code"]) == (400, "memory_budget_exceeded")
        assert "and the memory budget is 45.00 MB" in answer["error"]["message"]
        assert served.loaded.replies == 0
        assert served.chat("hello", max_tokens=5)
