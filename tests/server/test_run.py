"""The socket and the end: what happens to connections that say nothing, and to replies when the server is stopped."""

import http.client
import json
import logging
import signal
import socket
from contextlib import suppress

import pytest
from serving import serving

from mlx_qwen3.errors import OutputError
from mlx_qwen3.server.run import listen
from mlx_qwen3.server.settings import Settings

ENDLESS = {"messages": [{"role": "user", "content": "hello"}], "logit_bias": {"2500": -100, "2502": -100}}


@pytest.fixture(scope="module")
def impatient():
    with serving(stall=0.3) as served:
        yield served


@pytest.mark.parametrize("begun", [b"", b"GET /health HTTP/1.1\r\nHost: x"])
def test_a_connection_without_a_request_is_closed(impatient, begun):
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=60) as client:
        client.sendall(begun)
        with suppress(ConnectionResetError):
            assert client.recv(100) == b""


def test_a_connection_is_kept_for_the_next_request(demo):
    connection = http.client.HTTPConnection("127.0.0.1", demo.port, timeout=60)
    connection.connect()
    first = connection.sock
    for _ in range(3):
        connection.request("GET", "/health")
        assert connection.getresponse().read()
    assert connection.sock is first
    connection.close()


def test_an_offer_of_another_protocol_is_not_taken_and_no_line_of_the_log(demo, caplog):
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"}
    with caplog.at_level(logging.WARNING):
        response = demo.open("POST", "/tokenize", {"prompt": "hello"}, offer)  # as Java's client makes it
        assert (response.status, b'"count":' in response.read()) == (200, True)
        response.connection.close()
    assert "upgrade" not in caplog.text


def test_replies_under_way_end_when_the_server_is_stopped():
    with serving() as served:
        response = served.open("POST", "/v1/chat/completions", {**ENDLESS, "max_tokens": 200, "stream": True})
        response.readline()
        served.server.should_exit = True
        text = response.read().decode()
        response.connection.close()
    assert '"finish_reason":"length"' in text
    assert text.endswith("data: [DONE]\n\n")


def test_replies_that_take_longer_are_cut_with_a_reason():
    with serving(drain=0.1) as served:
        response = served.open("POST", "/v1/chat/completions", {**ENDLESS, "max_tokens": 3500, "stream": True})
        response.readline()
        served.server.should_exit = True
        *_, error, done = response.read().decode().strip().split("\n\n")
        response.connection.close()
    assert done == "data: [DONE]"
    assert "the server is being stopped" in json.loads(error.removeprefix("data: "))["error"]["message"]


def test_a_second_ctrl_c_ends_replies_at_once_with_a_reason(caplog):
    with caplog.at_level(logging.INFO), serving(drain=60) as served:
        response = served.open("POST", "/v1/chat/completions", {**ENDLESS, "max_tokens": 3500, "stream": True})
        response.readline()
        for _ in range(2):
            served.server.handle_exit(signal.SIGINT, None)
        *_, error, done = response.read().decode().strip().split("\n\n")
        response.connection.close()
    assert done == "data: [DONE]"
    assert json.loads(error.removeprefix("data: "))["error"]["message"] == "the server is being stopped"
    assert "Traceback" not in caplog.text
    assert "finish=error" in caplog.text


def test_a_port_that_is_taken():
    with listen(Settings(port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OutputError, match=f"127.0.0.1:{port} cannot be listened on .*choose another"):
            listen(Settings(port=port))
    with pytest.raises(OutputError, match="cannot be listened on"):
        listen(Settings(host="256.1.1.1", insecure=True))
