"""The measurement of servers: as a whole beside stubs, and once with the real ones."""

import json
import re

import pytest
from benching import main
from stub_server import Stub, chunk, echo, usage

from mlx_qwen3 import blas
from mlx_qwen3.bench import serving, serving_tables
from mlx_qwen3.bench.mixes import Mix

SMALL = (Mix("chat", turns=2), Mix("agents", turns=2, prefix=60, remembers=True))


@pytest.fixture
def small(monkeypatch):
    for module in (serving, serving_tables):
        monkeypatch.setattr(module, "MIXES", SMALL)
        monkeypatch.setattr(module, "ARRIVAL", 100)


def stubs(monkeypatch, *replies):
    """Servers that stream these replies instead of real ones."""
    made = iter(replies)
    monkeypatch.setattr(serving, "Server", lambda entry, folder, rows: Stub(next(made), name=entry.name))


def measured(capsys, *options):
    given = "--against", "mlx-qwen3:fp32", "--dtype", "fp32", "--repeat", 2, "--generate", 4, "--clients", "1,3"
    code = main("demo", "--serve", "--markdown", *given, *options)
    return code, capsys.readouterr()


def table(out, title):
    [found] = re.findall(rf"### {title}[^\n]*\n\n((?:\|.*\n)+)", out)
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in found.splitlines()[2:]]


def test_the_tables(monkeypatch, capsys, tmp_path, small):
    stubs(monkeypatch, echo, echo)
    code, (out, _) = measured(capsys, "--json", tmp_path / "s.json")
    assert code == 0
    for title in ("Chat: 2 requests", "Agents: 2 requests of each client, 60 tokens"):
        rows = table(out, title)
        assert [row[:2] for row in rows] == [[name, n] for n in "13" for name in ("mlx-qwen3", "mlx-qwen3:fp32")]
        assert all(re.fullmatch(r"[\d.,]+ x[\d.]+", cell) for row in rows[1::2] for cell in row[2:5])
    assert len(table(out, "A running reply while a prompt of 100 tokens")) == 2
    assert "- mlx-qwen3:fp32, chat, 3 clients: 12 of 12 replies equal, 36 tokens, 36 here" in out
    content = json.loads((tmp_path / "s.json").read_text())
    assert (content["rounds"], content["complete"], content["settings"]["options"]["repeat"]) == (2, True, 2)
    assert [len(server["loads"]) for server in content["servers"]] == [8, 8]  # 2 mixes, 2 numbers, 2 repeats
    assert [len(server["arrivals"]) for server in content["servers"]] == [2, 2]
    summary = content["servers"][1]["summary"]
    assert [(entry["mix"], entry.get("clients")) for entry in summary] == [
        ("chat", 1),
        ("chat", 3),
        ("agents", 1),
        ("agents", 3),
        ("arrival", None),
    ]
    assert all(entry["tps"]["ratio"] > 0 for entry in summary[:4])


def test_no_figures_of_a_server_that_says_something_else(monkeypatch, capsys, small):
    def other(request):
        yield chunk("something else")
        yield from echo(request)

    stubs(monkeypatch, echo, other)
    code, (out, _) = measured(capsys)
    assert code == 0
    assert [row[2:5] for row in table(out, "Chat")[1::2]] == [["replies differ", "-", "-"]] * 2
    assert "0 of 4 replies equal" in out


def test_complete_rounds_are_kept_if_a_server_fails_later(monkeypatch, capsys, tmp_path, small):
    """The third round begins with the 45th request of each server; a terminal's tables are shown."""
    asked = []

    def fails(request):
        asked.append(request)
        yield from echo(request) if len(asked) < 50 else ['{"error": {"message": "out of memory"}}']

    stubs(monkeypatch, echo, fails)
    given = "--against", "mlx-qwen3:fp32", "--dtype", "fp32", "--repeat", 3, "--generate", 4, "--clients", "1,3"
    assert main("demo", "--serve", *given, "--json", tmp_path / "s.json") == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[:2] == ["Servers: demo", "stopped: 2 of 3 rounds are complete"]
    assert "A running reply while a prompt of 100 tokens arrives" in lines
    assert err.splitlines()[-1].startswith("error: mlx-qwen3:fp32: a stream ended without [DONE]")
    content = json.loads((tmp_path / "s.json").read_text())
    assert (content["rounds"], content["complete"], content["settings"]["options"]["repeat"]) == (2, False, 3)
    assert [len(server["arrivals"]) for server in content["servers"]] == [2, 2]


def test_a_failure_names_the_server(monkeypatch, capsys, small):
    def fails(request):
        yield '{"error": {"message": "out of memory"}}'
        yield usage(0, 0)
        yield "[DONE]"

    stubs(monkeypatch, echo, fails)
    code, (_, err) = measured(capsys)
    assert code == 1
    assert "mlx-qwen3:fp32: the server sent an error" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--serve", "--adapter", "x"), "--adapter has no meaning with --serve"),
        (("--serve", "--rows", "1,2"), "--rows has no meaning with --serve"),
        (("--serve", "--check", "x.json"), "--check has no meaning with --serve"),
        (("--serve", "--clients", "1,x"), "--clients is '1,x'; expected numbers with commas"),
        (("--serve", "--against", "transformers"), "--serve measures the servers of mlx-qwen3 and mlx-lm"),
        (("--serve", "--generate", "5000"), "--serve needs a context of 17200 tokens, and demo has 4096"),
        (("--clients", "1,2"), "--clients needs --serve"),
    ],
)
def test_options_that_cannot_be_honoured(nothing_runs, capsys, options, message):
    assert main("demo", *options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_real_servers_say_the_same(capsys, small):
    """Both start, take the demo's chat template, and stream the same replies. About 10 s."""
    given = "--dtype", "fp32", "--repeat", 1, "--generate", 12, "--clients", "1,3", "--same-blas"
    code = main("demo", "--serve", "--markdown", *[word for word in given if word != "--same-blas" or blas.in_use])
    out = capsys.readouterr().out
    assert code == 0
    for mix, number, replies in (("chat", 1, 2), ("chat", 3, 6), ("agents", 1, 2), ("agents", 3, 6)):
        [(equal, total, tokens, ours)] = re.findall(
            rf"- mlx-lm, {mix}, {number} clients: (\d+) of (\d+) replies equal, (\d+) tokens, (\d+) here", out
        )
        assert (equal, total, tokens) == (str(replies), str(replies), ours)
    assert len(table(out, "A running reply")) == 2


@pytest.mark.parametrize("silent", ["all", "until the end"])
def test_a_model_that_shows_no_text_is_bound_to_words(monkeypatch, capsys, tmp_path, small, silent):
    """Random weights may repeat a line feed: without a bias there is no piece that tells when the first token came."""
    made = []

    def words(request):
        if not any(value > 0 for value in request.get("logit_bias", {}).values()):
            yield chunk("" if silent == "all" else "\n" * request["max_tokens"])
            yield usage(request["max_tokens"], 1)
            yield "[DONE]"
        else:
            yield from echo(request)

    replies = iter([words, echo])
    monkeypatch.setattr(
        serving, "Server", lambda entry, folder, rows: made.append(Stub(next(replies), name=entry.name)) or made[-1]
    )
    code, (out, _) = measured(capsys, "--json", tmp_path / "s.json")
    assert code == 0
    assert "bound all replies to some words" in out
    assert json.loads((tmp_path / "s.json").read_text())["words_only"] is True
    for server in made:
        assert all(request["logit_bias"] for request in server.requests[1:])
        assert sum(min(request["logit_bias"].values()) == -100 for request in server.requests[1:]) == 4  # of arrivals


def test_a_model_that_shows_text_is_free(monkeypatch, capsys, tmp_path, small):
    stubs(monkeypatch, echo, echo)
    code, (out, _) = measured(capsys, "--json", tmp_path / "s.json")
    assert code == 0
    assert "bound all replies" not in out
    assert json.loads((tmp_path / "s.json").read_text())["words_only"] is False
