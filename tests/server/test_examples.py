"""The examples of docs/server.md, against a server on another port."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import NoneType
from typing import get_type_hints

import pytest

from mlx_qwen3.server.openapi import ENDPOINTS
from mlx_qwen3.server.requests import ChatRequest, CompletionRequest

PAGE = Path(__file__).parents[2] / "docs" / "server.md"
TEXT = PAGE.read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8080"


def blocks(language):
    return [code for kind, code in re.findall(r"```(\w*)\n(.*?)```", TEXT, re.DOTALL) if kind == language]


def test_python(demo, capsys):
    pytest.importorskip("openai")
    names = {}
    for code in blocks("python"):
        exec(compile(code.replace(ADDRESS, demo.url), str(PAGE), "exec"), names)
    names["client"].close()
    said = capsys.readouterr().out
    for part in ("17 + 25 = 42.", "60 tokens", "The capital of France is Paris."):
        assert part in said


@pytest.mark.parametrize("line", [line for code in blocks("sh") for line in code.replace("\\\n", " ").splitlines()])
def test_curl(demo, line):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    words = ["--fail-with-body" if word == "-s" else word for word in shlex.split(line.replace(ADDRESS, demo.url))]
    done = subprocess.run([*words, "-sS"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "/metrics" in line or json.loads(done.stdout)


def test_every_endpoint_and_parameter_is_named():
    named = set(re.findall(r"`([^`\n]+)`", TEXT))
    words = {word for name in named for word in re.findall(r"[\w/.]+", name)}
    assert {path.replace("/{name}", "") for path, _ in ENDPOINTS} <= words
    for kind in (ChatRequest, CompletionRequest):
        supported = {name for name, values in get_type_hints(kind).items() if values is not NoneType}
        assert supported - {"stream_options"} <= words
