"""The clients of `bench --serve`, beside a server that says what a test tells it."""

import http.client
import threading

import pytest
from stub_server import chunk, echo, stub, usage

from mlx_qwen3.bench import clients as client_module
from mlx_qwen3.bench.clients import ask, crowd, disturbed, events, percentile
from mlx_qwen3.bench.mixes import MIXES, body, clients
from mlx_qwen3.errors import BenchError

ASKED = body([{"role": "user", "content": "hello"}], 3)


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_events_in_any_chunking(size):
    text = b": comment\n\ndata: one\n\ndata: two\n\n"
    pieces = [(at, text[at : at + size]) for at in range(0, len(text), size)]
    assert [data for _, data in events(pieces)] == ["one", "two"]
    ends = [at for at, _ in events(pieces)]
    assert ends == [size * ((text.index(b"one") + 4) // size), size * ((len(text) - 1) // size)]


def test_an_answer():
    def reply(request):
        yield chunk("", role="assistant")
        yield chunk(None, reasoning="\nthink\n", reasoning_content="\nthink\n")
        yield chunk("\n\nsaid")
        yield usage(3, 9, 4)
        yield "[DONE]"

    with stub(reply) as server:
        answer = ask(server.port, ASKED)
    assert (answer.thought, answer.content, len(answer.pieces)) == ("think", "said", 2)
    assert (answer.tokens, answer.prompt_tokens, answer.cached_tokens) == (3, 9, 4)
    assert 0 < answer.first_s <= answer.ended - answer.sent
    assert server.requests == [ASKED]


@pytest.mark.parametrize(
    ("said", "status", "message"),
    [
        (["no such model"], 404, r"(?s)the server answered 404: .*no such model"),
        ([chunk("half")], 200, r"a stream ended without \[DONE\]; its last event: .*half"),
        ([], 200, r"without \[DONE\]; its last event: none"),
        (['{"error": {"message": "out of memory"}}', "[DONE]"], 200, "the server sent an error: .*out of memory"),
        ([chunk(""), usage(1, 1), "[DONE]"], 200, "a reply has no text"),
    ],
)
def test_what_is_no_answer(said, status, message):
    with stub(lambda request: iter(said), status) as server, pytest.raises(BenchError, match=message):
        ask(server.port, ASKED)


def test_a_server_that_is_gone(monkeypatch):
    monkeypatch.setattr(client_module, "PAUSE", 0)
    with stub() as server:
        pass
    with pytest.raises(BenchError, match="the server broke the connection"):
        ask(server.port, ASKED)


def test_a_connection_that_is_reset_is_tried_again(monkeypatch):
    getresponse, failures = http.client.HTTPConnection.getresponse, [ConnectionResetError(), ConnectionResetError()]

    def first_fails(self):
        if failures:
            raise failures.pop()
        return getresponse(self)

    monkeypatch.setattr(http.client.HTTPConnection, "getresponse", first_fails)
    monkeypatch.setattr(client_module, "PAUSE", 0)
    with stub() as server:
        answer = ask(server.port, ASKED)
    assert (answer.retries, answer.tokens) == (2, 3)


def test_a_crowd_asks_at_once():
    """The server answers nobody until all clients of the first turn are there."""
    together = threading.Barrier(4)

    def reply(request):
        if len(request["messages"]) == 2:
            together.wait(60)
        yield from echo(request)

    agents = MIXES[1]
    with stub(reply) as server:
        found = crowd(server.port, clients(agents, "test", 4, lambda text: 100), 4)
    assert [len(answers) for answers in found] == [3] * 4
    assert sorted({answer.tokens for answers in found for answer in answers}) == [2, 3, 4]
    last = [request["messages"] for request in server.requests if len(request["messages"]) == 6]
    assert len(last) == 4
    assert all(
        messages[2] == {"role": "assistant", "content": " ".join(map(str, range(len(messages[2]["content"].split()))))}
        for messages in last
    )


def test_gaps_of_a_running_reply():
    """The running reply waits for the other prompt, makes two pieces before its first token, then goes on."""
    arrived, answered, left = threading.Event(), threading.Event(), threading.Event()

    def running(request):
        yield from map(chunk, "abcd")
        arrived.wait(60)
        yield from map(chunk, "ef")
        answered.set()
        while not left.is_set():
            yield chunk("g")

    def reply(request):
        if request["max_tokens"] == 600:
            yield from running(request)
        else:
            arrived.set()
            answered.wait(60)
            yield from echo(request)

    with stub(reply) as server:
        gaps, other = disturbed(server.port, body([], 600), body([], 2), 1)
        left.set()
    assert other.tokens == 2
    assert gaps  # from d to e at least: its reader may be late for the next
    assert min(gaps) >= 0
    assert max(gaps) > 0


def test_a_running_reply_that_ends_too_early(monkeypatch):
    over = threading.Event()

    def reply(request):
        if request["max_tokens"] == 600:
            yield from map(chunk, "abc")
            yield "[DONE]"
        else:
            over.wait(60)
            yield from echo(request)

    def asked(port, request, *arguments):  # the times are those of the client, who may read late what was sent
        answer = ask(port, request, *arguments)
        if request["max_tokens"] == 600:
            over.set()
        return answer

    monkeypatch.setattr(client_module, "ask", asked)
    with stub(reply) as server, pytest.raises(BenchError, match="the running reply ended before the first token"):
        disturbed(server.port, body([], 600), body([], 2), 1)


def test_a_running_reply_that_fails():
    def reply(request):
        yield "no"

    with stub(reply, 500) as server, pytest.raises(BenchError, match="the server answered 500"):
        disturbed(server.port, body([], 600), body([], 2), 1)


@pytest.mark.parametrize(("share", "value"), [(0.5, 10), (0.95, 19), (1.0, 20), (0.01, 1)])
def test_percentile(share, value):
    assert percentile(list(range(20, 0, -1)), share) == value
