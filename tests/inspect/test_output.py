"""Reports as text, JSON, picture and page, also of unusual models."""

import json
import math

import pytest
from checkpoints import AFFINE_4, TINY, random_weights, write_checkpoint, write_packed

from mlx_qwen3.inspect import Options, as_json, inspect, render, write_files


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
