"""What clients ask."""

import pytest

from mlx_qwen3.bench.mixes import MIXES, WORDS, body, clients, filler, longest_prompt, words_only

CHAT, AGENTS = MIXES


def told(client, replies=("a", "b", "c")):
    found = []
    for (messages, tokens), reply in zip(client.requests(40), replies, strict=True):
        found.append((messages, tokens))
        client.hear(reply)
    return found


def test_chats_are_single_questions():
    requests = [request for client in clients(CHAT, "x", 4, len) for request in told(client)]
    assert all([message["role"] for message in messages] == ["user"] for messages, _ in requests)
    assert len({messages[0]["content"] for messages, _ in requests}) == 12
    assert {tokens for _, tokens in requests} == {40, 20, 30}


def test_agents_share_a_prefix_and_remember():
    first, second = (told(client) for client in clients(AGENTS, "x", 2, len))
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    assert [message["role"] for message in first[-1][0]] == roles
    assert [message["content"] for message in first[-1][0]][2::2] == ["a", "b"]
    assert first[0][0][0] == second[0][0][0]
    assert first[0][0][1] != second[0][0][1]


def test_runs_differ_and_are_repeatable():
    a, b, again = (told(clients(AGENTS, run, 1, len)[0]) for run in ("x", "y", "x"))
    assert a == again
    assert a[0][0][0] != b[0][0][0]


@pytest.mark.parametrize("tokens", [10, 1000])
def test_filler_is_as_long_as_asked(tokens):
    count = lambda text: len(text.split())  # noqa: E731
    assert tokens <= count(filler("x", tokens, count)) < tokens + 20
    assert longest_prompt() >= 2000


def test_a_request():
    asked = body([], 5, {9: -100, 2: 50})
    assert (asked["temperature"], asked["stream"], asked["max_tokens"]) == (0, True, 5)
    assert asked["logit_bias"] == {"2": 50, "9": -100}
    assert "logit_bias" not in body([], 5)


def test_words_are_tokens_that_show_text():
    class Tokenizer:
        def encode(self, text):
            return [ord(text[1])] if text in (" river", " stone") else [1, 2]

    assert {"river", "stone"} < set(WORDS)
    assert words_only(Tokenizer()) == {ord("r"): 50.0, ord("s"): 50.0}
