"""Tables and JSON of servers. What a whole run prints is in test_serving.py."""

import pytest
from benching import server_report

from mlx_qwen3.bench.serving_tables import serving_json, serving_page


def test_ratios(tmp_path):
    out = serving_page(server_report(tmp_path / "a", 4)).markdown()
    assert "| mlx-lm | 2 | 12.5 x4.00 | 400 x0.25 | 1,600 x0.25 | 60 | 20 |" in out
    assert "| mlx-lm | 200 x0.25 | 200 x0.25 | 4,000 x0.25 |" in out
    assert "tried again\n\n- mlx-lm, chat, 2 clients: 3\n- mlx-lm, agents, 2 clients: 3" in out
    assert "mlx-lm in float32, BLAS libfast" in out


def test_json(tmp_path):
    chat, agents, arrival = serving_json(server_report(tmp_path / "a", 2))["servers"][1]["summary"]
    assert chat["tps"] == {"value": 25, "ratio": 2}
    assert agents["replies"]["agree"] is True
    assert arrival["longest_ms"] == {"value": pytest.approx(100), "ratio": pytest.approx(0.5)}
