"""`mlx-qwen3 serve`: options, signals, and what it needs."""

import http.client
import json
import logging
import re
import signal
import subprocess
import sys

import pytest
from commands import QUIET, ROOT, here

from mlx_qwen3.cli import serve


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["demo", "--host", "0.0.0.0"],
            "lets other machines in and there is no API key; give --api-key",
        ),
        (["demo", "--models", "a=demo"], "SOURCE and --models exclude each other"),
        (["--models", "a=demo,b"], "--models has 'b'; expected NAME=SOURCE"),
        (["--models", "a=demo,a=demo"], "--models gives 'a' twice"),
        (["demo", "--adapter", "/no/where"], "--adapter has '/no/where'; expected NAME=FOLDER"),
        (["demo", "--adapter", "a=/no", "--adapter", "a=/no"], "--adapter gives 'a' twice"),
        (["demo", "--adapter", "a=/no/where"], "there is no folder '/no/where'"),
        (["demo", "--adapter", "demo=/no/where"], "two models would be named 'demo'"),
        (["--models", "a=demo", "--adapter", "b=/no/where"], "--adapter belongs to one SOURCE; leave --models out"),
        (["demo", "--timeout", "soon"], "--timeout is 'soon'; expected a time such as 90s, 15m or 2h"),
        (["demo", "--drain", "0s"], "--drain is '0s'"),
        (["demo", "--max-body", "5"], "--max-body is '5'; expected a number with a unit"),
        (["demo", "--memory", "1MB"], "the weights of demo take"),
        (["demo", "--kv-bits", "3"], "3"),
        (["/no/where"], "there is no folder '/no/where'"),
    ],
)
def test_what_cannot_be_served_is_one_line(words, message):
    result = here("serve", *words, "--port", "0")
    assert result.returncode in (1, 2)
    error = result.stderr.decode()
    assert (error.startswith("error: "), error.count("\n"), message in error) == (True, 1, True), error


def test_a_chat_template_that_is_not_there_is_told_at_the_start():
    result = here("serve", "demo", "--port", "0", "--chat-template", "none.jinja")
    assert result.returncode in (1, 2)
    assert result.stderr.decode().splitlines()[-1].startswith("error: there is no chat template 'none.jinja'")
    assert not logging.getLogger("mlx_qwen3.server").handlers  # nothing stays behind


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "msgspec" else name)
    result = here("serve", "demo")
    assert result.returncode == 2
    assert result.stderr.decode() == "error: serve needs msgspec; install them with: pip install 'mlx-qwen3[server]'\n"


def test_a_folder_is_called_by_its_last_part(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen3-4bit").mkdir()
    assert [serve._name(source) for source in ("./qwen3-4bit", str(tmp_path / "qwen3-4bit"), "Qwen/Qwen3-0.6B")] == [
        "qwen3-4bit",
        "qwen3-4bit",
        "Qwen/Qwen3-0.6B",
    ]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_serves_until_a_signal(sent, code):
    words = [sys.executable, "-m", "mlx_qwen3", "serve", "demo", "--port", "0", "--drain", "60s"]
    process = subprocess.Popen(words, cwd=ROOT, env=QUIET, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not (match := re.search(r"listening on http://127.0.0.1:(\d+)", process.stderr.readline())):
            assert process.poll() is None
        connection = http.client.HTTPConnection("127.0.0.1", int(match[1]), timeout=60)
        asked = {"messages": [{"role": "user", "content": "What is 17 + 25?"}], "stream": True}
        connection.request("POST", "/v1/chat/completions", json.dumps(asked))
        response = connection.getresponse()
        response.readline()
        process.send_signal(sent)
        assert response.read().endswith(b"data: [DONE]\n\n")  # the reply is complete
        connection.close()
        assert process.wait(60) == code
        log = process.stderr.read()
        assert re.search(r"POST /v1/chat/completions 200 model=demo .* finish=stop", log)
        assert "Traceback" not in log
        assert process.stdout.read() == ""
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
