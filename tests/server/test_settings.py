"""Who may reach a server, and with what."""

import pytest

from mlx_qwen3.errors import UsageError
from mlx_qwen3.server.settings import Settings, is_local


@pytest.mark.parametrize(("host", "local"), [
    ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("[::1]", True), ("localhost", True),
    ("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("localhost.evil.example", False), ("", False),
])  # fmt: skip
def test_which_hosts_are_of_this_machine(host, local):
    assert is_local(host) is local


def test_another_host_needs_a_key_or_to_be_told_twice():
    with pytest.raises(UsageError, match=r"--host 0.0.0.0 lets other machines in .* give --api-key, or --insecure"):
        Settings(host="0.0.0.0")
    assert Settings(host="0.0.0.0", api_key="x").host == Settings(host="0.0.0.0", insecure=True).host


@pytest.mark.parametrize(
    "origin", ["https://app.example", "http://localhost:3000", "http://[::1]:80", "app://obsidian.md", "*", "null"]
)
def test_origins(origin):
    assert Settings(cors=(origin,)).cors == (origin,)


@pytest.mark.parametrize(
    "text",
    ["https://app.example/", "app.example", "https://", "https://App.example", "https://a b/x", "", "http://[::1"],
)
def test_an_origin_that_no_page_has_is_refused(text):
    with pytest.raises(UsageError, match=r"--cors is .* such as https://app.example"):
        Settings(cors=("https://app.example", text))


def test_an_empty_key_is_none():
    with pytest.raises(UsageError, match="the API key is empty"):
        Settings(api_key=" ")
