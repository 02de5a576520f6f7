"""Which model runs if none is named."""

from mlx_qwen3.cli.source import default_source
from mlx_qwen3.files import hub


def test_the_demo_is_announced(monkeypatch, capsys):
    monkeypatch.setattr(hub, "default_source", lambda: "demo")
    assert default_source() == "demo"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert hub.DEFAULT in captured.err


def test_the_real_model_needs_no_words(monkeypatch, capsys):
    monkeypatch.setattr(hub, "default_source", lambda: hub.DEFAULT)
    assert default_source() == hub.DEFAULT
    assert capsys.readouterr().err == ""
