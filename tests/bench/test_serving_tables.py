"""Tables and JSON of servers. What a whole run prints is in test_serving.py."""

import pytest
from checkpoints import write_checkpoint

from mlx_qwen3.bench.mixes import MIXES
from mlx_qwen3.bench.options import Options
from mlx_qwen3.bench.serving_report import Arrival, Load, Report, Row, Serving
from mlx_qwen3.bench.serving_tables import serving_json, serving_page
from mlx_qwen3.files.checkpoint import Checkpoint


def report(folder, factor):
    """The second server takes `factor` times as long for everything."""
    rows = []
    for name, times in (("mlx-qwen3", 1), ("mlx-lm", factor)):
        loads = [
            Load(mix.name, 2, 2.0 * times, 100, 60, 20, [0.1 * times, 0.4 * times], ["a"], times - 1) for mix in MIXES
        ]
        rows.append(Row(name, "float32", "libfast", loads, [Arrival([0.05 * times], 1.0 * times, 2000)]))
    machine = dict.fromkeys(("chip", "backend", "os", "mlx", "mlx-lm", "python"), "1.0")
    return Report(Serving(Options("somewhere"), (2,)), Checkpoint(write_checkpoint(folder)).config, machine, rows)


def test_ratios(tmp_path):
    out = serving_page(report(tmp_path / "a", 4)).markdown()
    assert "| mlx-lm | 2 | 12.5 x4.00 | 400 x0.25 | 1,600 x0.25 | 60 | 20 |" in out
    assert "| mlx-lm | 200 x0.25 | 200 x0.25 | 4,000 x0.25 |" in out
    assert "tried again\n\n- mlx-lm, chat, 2 clients: 3\n- mlx-lm, agents, 2 clients: 3" in out
    assert "mlx-lm in float32, BLAS libfast" in out


def test_json(tmp_path):
    chat, agents, arrival = serving_json(report(tmp_path / "a", 2))["servers"][1]["summary"]
    assert chat["tps"] == {"value": 25, "ratio": 2}
    assert agents["replies"]["agree"] is True
    assert arrival["longest_ms"] == {"value": pytest.approx(100), "ratio": pytest.approx(0.5)}
