"""Reports as text, JSON, picture and page, also of unusual models."""

import json
import math

import pytest
from checkpoints import AFFINE_4, TINY, TINY_MOE, random_weights, write_checkpoint, write_packed
from screens import on_screen

from mlx_qwen3.inspect import Options, as_json, inspect, render, shown, write_files


@pytest.mark.parametrize("odd", ["packed", "one layer, one head", "all NaN", "infinite"])
def test_odd_models_have_reports_and_pictures_too(odd, tmp_path):
    if odd == "packed":
        folder = write_packed(tmp_path / "odd", AFFINE_4)
    elif odd == "one layer, one head":
        heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
        folder = write_checkpoint(tmp_path / "odd", num_hidden_layers=1, **heads)
    else:
        weights = random_weights(TINY)
        weights["model.embed_tokens.weight"][:] = math.nan if odd == "all NaN" else math.inf
        folder = write_checkpoint(tmp_path / "odd", weights=weights)
    report = inspect(folder, Options(length=1, heads=True, against=str(folder)))
    json.dumps(as_json(report), allow_nan=False)
    assert "Verdict" in render(report, full=True)
    write_files(report, tmp_path / "p.png", tmp_path / "p.html", True)
    assert (report.first_fault is not None) == (odd in ("all NaN", "infinite"))


def test_the_verdict_comes_first_and_everything_fits_80_columns(monkeypatch):
    lines = on_screen(shown(inspect("demo", Options())), monkeypatch)
    assert lines[:7] == [
        "emphasis: demo: 5 layers, hidden 256, 4 query heads on 2 key/value heads of 96, MLP 768,",
        "emphasis:   vocabulary 2560",
        "ran random tokens [1, 16], seed 0, in float32 on the cpu",
        "",
        "emphasis: Verdict",
        "good:   no fault: every number is within its limit",
        lines[6],
    ]
    assert lines[6].startswith("  fp16: fits; ")
    assert not any("unusual," in line for line in lines)  # a healthy trained model
    titles = [line for line in lines if line.startswith("emphasis: ")][3:]
    assert titles[:2] == ["emphasis: All layers", "emphasis: Numbers of layer 0"]
    assert titles[-1] == "emphasis: Weights, as stored"


def test_a_fault_comes_first_and_in_red(sick, monkeypatch):
    lines = on_screen(shown(inspect(sick, Options())), monkeypatch)
    start = lines.index("emphasis: Verdict")
    assert lines[start + 1].startswith("bad:   FAULT: first in layer 2, gate_up")
    assert any(line.startswith("bad: ! ") for line in lines)


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_no_table_is_wider_than_the_terminal(columns, monkeypatch):
    report = inspect("demo", Options(heads=True, against="demo", kv_bits=4))
    on_screen(shown(report, full=True), monkeypatch, columns)


def test_the_routers_in_json(tiny_moe):
    report = inspect(tiny_moe, Options(length=50))
    assert [entry["layer"] for entry in as_json(report)["routers"]] == [0, 2]
    entry, router = as_json(report)["routers"][1], report.numbers.routers[2]
    assert sum(entry["load"]) == entry["tokens"] * entry["experts_per_token"] == 150
    assert entry["busiest"] == {"expert": router.busiest, "share": max(entry["load"]) / 50}
    assert (entry["unused"], entry["unused_share"]) == (router.unused, len(router.unused) / 7)
    assert sum(entry["histogram"].values()) == 7
    assert entry["closest"]["margin"] == router.margins.min()
    assert (entry["verdict"], entry["choices"]) == ("normal", None)
    step = as_json(inspect(tiny_moe, Options(length=5, decode=2, batch=2)))["routers"][0]
    assert [sorted(choice["experts"]) == choice["experts"] for choice in step["choices"]] == [True, True]
    assert all(choice["next"] not in choice["experts"] for choice in step["choices"])
    assert sum(step["choices"][0]["weights"]) == pytest.approx(1, abs=1e-6)


def test_a_dense_model_has_no_routers_in_json(tiny):
    assert as_json(inspect(tiny, Options()))["routers"] == []


def test_odd_routers_have_reports_and_pictures_too(tmp_path):
    weights = random_weights(TINY_MOE)
    weights["model.layers.0.mlp.gate.weight"][:] = math.nan
    folder = write_checkpoint(tmp_path / "odd", TINY_MOE, weights)
    report = inspect(folder, Options(length=1, against=str(folder)))
    json.dumps(as_json(report), allow_nan=False)
    assert "Router" in render(report, full=True)
    write_files(report, tmp_path / "p.png", tmp_path / "p.html", True)
    assert report.first_fault.step == "router_logits"
