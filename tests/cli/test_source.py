"""Which model runs if none is named."""

import pytest

from mlx_qwen3.cli.source import default_source
from mlx_qwen3.files import hub


@pytest.mark.parametrize(("option", "remedy"), [("--model ", "; --model Qwen/"), ("", "; the SOURCE Qwen/")])
def test_the_demo_is_announced_with_what_the_command_takes(option, remedy, monkeypatch, capsys):
    monkeypatch.setattr(hub, "default_source", lambda: "demo")
    assert default_source(option) == "demo"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert len(captured.err) <= 80 + 1
    assert remedy in captured.err


def test_the_real_model_is_not_announced(monkeypatch, capsys):
    monkeypatch.setattr(hub, "default_source", lambda: hub.DEFAULT)
    assert default_source() == hub.DEFAULT
    assert capsys.readouterr().err == ""
