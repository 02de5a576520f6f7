"""The key, web pages of other origins, the limits of a body, and the log."""

import gzip
import json
import logging
import socket

import pytest
from serving import serving, wait_until

HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def guarded():
    with serving(api_key="secret", max_body=2000, stall=0.6, cors=("https://app.example",)) as served:
        yield served


def test_only_the_key_lets_in(guarded):
    for header in (None, "Bearer wrong", "Basic secret", "secret"):
        given = {} if header is None else {"authorization": header}
        status, answer = guarded.ask(CHAT, HELLO, **given)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert guarded.ask("/v1/models", **given)[0] == 401
        assert guarded.ask("/metrics", **given)[0] == 401
    assert guarded.ask(CHAT, HELLO, authorization="Bearer secret")[0] == 200
    assert guarded.ask("/health")[0] == 200


def test_a_key_of_other_letters_is_compared_too(guarded):
    assert guarded.ask("/v1/models", authorization="Bearer \xe9")[0] == 401


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "http://[::", "file://"]
)
def test_pages_of_other_origins_are_refused(demo, origin):
    response = demo.open("POST", CHAT, HELLO, {"origin": origin})
    error = json.loads(response.read())["error"]
    response.connection.close()
    assert (response.status, error["code"], response.headers["access-control-allow-origin"]) == (403, "origin", None)


def test_a_page_whose_name_points_here_is_refused(demo):
    name = f"evil.example:{demo.port}"
    assert demo.ask(CHAT, HELLO, origin=f"http://{name}", host=name)[0] == 403


def test_pages_of_this_machine_are_welcome(demo):
    for origin in (demo.url, "http://localhost:3000", "http://[::1]:5173"):
        assert demo.ask(CHAT, HELLO, origin=origin)[0] == 200
        preflight = {"origin": origin, "access-control-request-method": "POST"}
        for names, method in ((preflight, "OPTIONS"), ({"origin": origin}, "GET")):  # a browser asks whether it may
            response = demo.open(method, "/v1/models", headers=names)
            response.connection.close()
            assert (response.status, response.headers["access-control-allow-origin"]) == (200, origin)


def test_cors(guarded):
    names = {"origin": "https://app.example", "access-control-request-method": "POST"}
    response = guarded.open("OPTIONS", CHAT, headers={**names, "access-control-request-headers": "authorization"})
    response.connection.close()
    assert response.status == 200
    assert response.headers["access-control-allow-origin"] == "https://app.example"
    status, _ = guarded.ask(CHAT, HELLO, authorization="Bearer secret", origin="https://app.example")
    assert status == 200
    assert guarded.ask(CHAT, HELLO, authorization="Bearer secret", origin="https://other.example")[0] == 403


def test_a_body_that_is_too_large(guarded):
    long = {"messages": [{"role": "user", "content": "x" * 3000}]}
    status, answer = guarded.ask(CHAT, long, authorization="Bearer secret")
    assert (status, answer["error"]["code"]) == (413, "request_too_large")
    assert "2,000 bytes" in answer["error"]["message"]


def test_a_large_body_that_does_not_say_so(guarded):
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=60) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.sendall(head.encode() + b"".join(b"3e8\r\n" + b"x" * 1000 + b"\r\n" for _ in range(3)))
        assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_a_compressed_body(demo):
    status, answer = demo.ask(CHAT, gzip.compress(b"{}"), content_encoding="gzip")
    assert (status, answer["error"]["code"]) == (415, "unsupported_encoding")
    assert "'gzip' (Content-Encoding)" in answer["error"]["message"]


def test_a_body_that_does_not_come(guarded):
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=60) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nContent-Length: 100\r\n\r\n{{"
        client.sendall(head.encode())
        assert client.recv(100).startswith(b"HTTP/1.1 408")


def test_a_request_is_one_line_of_the_log_without_its_text(demo, caplog):
    with caplog.at_level(logging.INFO, "mlx_qwen3.server"):
        demo.chat("hello", max_tokens=2)
        demo.ask("/v1/models/a%0Ab%22")
        # A line is written after its answer; one of the tests before may still come.
        wait_until(lambda: any("/v1/models/a" in record.getMessage() for record in caplog.records))
    chat, models = [record.getMessage() for record in caplog.records if " 408 " not in record.getMessage()]
    for part in ("POST /v1/chat/completions 200", "model=demo", "prompt=11", "generated=2", "finish=length"):
        assert part in chat
    assert "hello" not in chat
    assert "\n" not in models
    assert '"/v1/models/a\\nb\\""' in models


def test_prompts_are_logged_if_asked(caplog):
    with serving(log_prompts=True) as served, caplog.at_level(logging.INFO, "mlx_qwen3.server"):
        served.chat("good morning", max_tokens=2)
        served.ask("/v1/completions", {"prompt": "good evening", "max_tokens": 2})
        for prompt in ("good morning", "good evening"):  # a line is written after its answer
            wait_until(lambda prompt=prompt: any(prompt in record.getMessage() for record in caplog.records))
