"""The JSON of a run: every repeat, what follows from them, whole or absent."""

import json
import os

import pytest

from mlx_qwen3 import bench
from mlx_qwen3.errors import OutputError


def test_the_json_has_every_repeat_and_what_follows(everything):
    content = everything.content
    assert content["settings"]["prompt_tokens"] == [5, 70]
    assert content["shape"]["hidden_size"] == 48
    assert {"chip", "backend", "os", "mlx", "mlx-lm", "torch", "transformers", "python"} <= content["machine"].keys()
    for row in content["contestants"]:
        assert [run["prompt_tokens"] for run in row["runs"]] == [5, 70]
        assert all(run["peak_bytes"] > 10**7 and run["seconds"] == sorted(run["seconds"]) for run in row["runs"])
        assert len(row["startup_s"]) == len(row["load_s"]) == 1
        assert row["summary"]["5"]["ttft_s"]["median"] == row["runs"][0]["seconds"][0]
    ours, transformers, reference, mlx_lm = content["contestants"]
    assert [len(row["process_s"]) for row in content["contestants"]] == [1, 0, 0, 1]
    assert [len(row["sampling_s"]) for row in content["contestants"]] == [1, 1, 0, 1]
    for row in (ours, mlx_lm):
        assert all(run["host_s"] > 0 and run["framework_peak_bytes"] > 0 for run in row["runs"])
    assert all(run["host_s"] is None for row in (transformers, reference) for run in row["runs"])
    ratio = mlx_lm["summary"]["5"]["decode_tps"]["ratio"]["median"]
    speeds = [3 / (s[-1] - s[0]) for s in (row["runs"][0]["seconds"] for row in (ours, mlx_lm))]
    assert ratio == pytest.approx(speeds[0] / speeds[1])
    assert ours["summary"]["5"]["decode_tps"]["ratio"] is None


def test_files_are_whole_or_absent(report, tmp_path, monkeypatch):
    (tmp_path / "x.json").write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OutputError, match=r"x.json cannot be written \(No space left on device\)"):
            bench.write_json(report, tmp_path / "x.json")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert (tmp_path / "x.json").read_text() == "before"
    bench.write_json(report, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text())["format"] == 3
