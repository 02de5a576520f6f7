"""Starting and ending servers. A whole run of both is in test_serving.py."""

import pytest

from mlx_qwen3.bench import servers
from mlx_qwen3.bench.options import KINDS, OURS, Contestant
from mlx_qwen3.errors import BenchError, UsageError


def test_a_server_that_does_not_start_is_quoted(tmp_path):
    with pytest.raises(BenchError, match=r"the server of mlx-qwen3 ended with code \d: .*nowhere"):
        servers.Server(Contestant(OURS, KINDS[OURS], None), tmp_path / "nowhere", 1)


def test_a_contestant_without_a_server():
    with pytest.raises(UsageError, match="--serve measures the servers of mlx-qwen3 and mlx-lm"):
        servers.check([Contestant("transformers:fp32", KINDS["transformers"], "fp32")])


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setattr(servers, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--serve needs the package starlette .*pip install 'mlx-qwen3\[server\]'"):
        servers.check([Contestant(OURS, KINDS[OURS], None)])


def test_command_lines():
    ours, theirs = (servers.SERVERS[name] for name in (OURS, "mlx-lm"))
    plain, single = (Contestant(OURS, KINDS[OURS], dtype) for dtype in (None, "fp32"))
    assert ours.arguments(plain, 8) == ["serve", "--rows", "8", "--queue", "32"]
    assert ours.arguments(single, 8)[-2:] == ["--dtype", "fp32"]
    assert theirs.arguments(single, 8)[0] == "float32"
    assert theirs.arguments(plain, 8)[0] == ""
