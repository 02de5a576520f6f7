"""The measurement with real contestants on a tiny model. Nothing here depends on a speed."""

import re

import pytest
from adapting import write_mlx_lm, write_peft
from benching import QUICK, TWICE, UNTIED, baseline_of, main, planted
from checkpoints import (
    AFFINE_4,
    PACKABLE,
    TINY,
    TINY_MOE,
    VOCABULARY,
    random_weights,
    write_checkpoint,
    write_packed,
    write_tokenizer,
)
from safetensors.numpy import load_file

from mlx_qwen3 import bench
from mlx_qwen3.bench.process import Worker
from mlx_qwen3.errors import BenchError


def test_all_contestants_say_the_same(everything):
    content = everything.content
    rows = {row["name"]: row for row in content["contestants"]}
    assert list(rows) == ["mlx-qwen3", "transformers", "reference", "mlx-lm"]
    for row in rows.values():
        assert all(found["agree"] and found["parting"] is None for found in row["outputs"])
        assert all(0 < found["relative"] < 1e-5 for found in row["outputs"])  # measured 3e-7
        assert row["dtype"] == "float32"
    compared = {
        name: [found["compared"] for found in row["outputs"] if not found["rows"]] for name, row in rows.items()
    }
    assert compared == {"mlx-qwen3": [], "transformers": [12, 12], "mlx-lm": [12, 12], "reference": [8, 1]}


def test_all_read_the_same_bytes(everything):
    """float32: every weight but the norms' is a matrix, the embedding is tied; two layers of cache, 2 heads of 20."""
    content = everything.content
    elements = sum(w.size for w in random_weights({**TINY, "vocab_size": VOCABULARY}).values())
    for row in content["contestants"]:
        assert row["weight_bytes"] == 4 * elements
        assert row["cache_bytes"] == (0 if row["name"] == "reference" else 4 * 2 * 2 * 2 * 20)


def test_a_mixture_of_experts(tmp_path):
    """Of 7 experts a token reads 3, so that no rate is that of a dense model of the size."""
    shape = {**TINY_MOE, "vocab_size": VOCABULARY}
    weights = random_weights(shape)
    folder = write_checkpoint(tmp_path / "moe", shape, weights)  # without a tokenizer, no whole processes run
    options = bench.Options(str(folder), ("transformers", "mlx-lm"), (9,), generate=4, repeat=1, reference=True)
    report = bench.bench(options)
    experts = sum(w.size for name, w in weights.items() if "experts." in name)
    others = sum(w.size for name, w in weights.items() if "experts." not in name)
    assert [(row.agrees(9), row.weight_bytes) for row in report.rows] == [(True, 4 * (others + experts * 3 // 7))] * 4


@pytest.mark.parametrize("mistake", ["weights", "loop"])
def test_no_speed_of_a_contestant_that_says_something_else(chat, tmp_path, monkeypatch, mistake):
    if mistake == "weights":
        chat = write_checkpoint(tmp_path / "one", **UNTIED)
        weights = random_weights({**TINY, **UNTIED}, seed=7)
        other = write_checkpoint(tmp_path / "other", weights=weights, **UNTIED)
        planted(monkeypatch, "load", lambda ask: ask(folder=str(other)))
    else:  # the right model, and a loop that does not say what it computes

        def next_ids(ask):
            answer = ask()
            return {**answer, "tokens": [*answer["tokens"][:-1], (answer["tokens"][-1] + 1) % VOCABULARY]}

        planted(monkeypatch, "generate", next_ids)
    report = bench.bench(bench.Options(str(chat), **{**QUICK, "repeat": 1}))
    [found] = report.rows[1].outputs
    assert not found.agree
    assert found.parting.position == (3 if mistake == "loop" else 0)
    assert report.rows[1].runs == []
    text = bench.page(report, brief=False).markdown()
    assert f"| {TWICE} | bfloat16 | outputs differ | - | - |" in text
    assert re.search(rf"- {TWICE}, 5 prompt tokens: the first 4 greedy tokens differ from token \d on: \d+ here", text)
    assert "not rounding, so no speed is shown" in text
    with pytest.raises(BenchError, match="decode, tok/s: not measured, was 2"):
        bench.check(report, baseline_of(report, "decode_tps", 2.0), 0.1)


def test_equal_tokens_are_not_enough(chat, tmp_path, monkeypatch):
    """Random tied weights repeat the last token of the prompt, all of them; their logits tell them apart."""
    shape = {"vocab_size": VOCABULARY}
    other = write_checkpoint(tmp_path / "other", shape, random_weights({**TINY, **shape}, seed=7))
    planted(monkeypatch, "load", lambda ask: ask(folder=str(other)))
    report = bench.bench(bench.Options(str(chat), **{**QUICK, "repeat": 1}))
    [found] = report.rows[1].outputs
    assert (found.parting, found.agree, found.relative > 0.5) == (None, False, True)


def test_a_packed_model_beside_mlx_lm_in_bf16(tmp_path):
    """float32 activations here, bfloat16 there: whatever tokens they choose, it is rounding."""
    packed = write_packed(tmp_path / "packed", AFFINE_4, torch_dtype="bfloat16")
    against = ("mlx-lm:bf16", "mlx-qwen3:unpacked")
    report = bench.bench(bench.Options(str(packed), against, (9,), generate=12, repeat=1, weights="packed"))
    dtypes = ["float32", "bfloat16", "float32"]
    assert [(row.dtype, row.agrees(9)) for row in report.rows] == [(dtype, True) for dtype in dtypes]
    plain = 4 * sum(w.size for w in random_weights({**TINY, **PACKABLE}).values())
    assert report.rows[0].weight_bytes < plain / 5
    assert report.rows[2].weight_bytes == plain
    assert report.rows[2].notes[0].startswith("mlx-qwen3:unpacked: the packed weights are unpacked to float32")


def test_ctrl_c_ends_the_workers_and_writes_nothing(chat, tmp_path, monkeypatch):
    started = []
    ask = Worker.ask

    def interrupt(self, command, **arguments):
        started.append(self)
        if command == "generate":
            raise KeyboardInterrupt
        return ask(self, command, **arguments)

    monkeypatch.setattr(Worker, "ask", interrupt)
    assert main(chat, "--against", TWICE, "--repeat", 1, "--json", tmp_path / "x.json") == 130
    assert len({worker._process.pid for worker in started}) == 2
    assert all(worker._process.poll() is not None for worker in started)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "against"), [(write_mlx_lm, ("mlx-lm", "reference")), (write_peft, ("transformers",))]
)
def test_all_have_the_adapter(write, against, tmp_path):
    chat, adapter = write_checkpoint(tmp_path / "model", **UNTIED), write(tmp_path / "adapter")
    if len(against) > 1:  # then also whole processes run, which need a tokenizer
        write_tokenizer(chat)
    options = bench.Options(str(chat), against, (9,), generate=4, repeat=1, reference=False, adapters=(str(adapter),))
    report = bench.bench(options)
    assert [row.agrees(9) for row in report.rows] == [True] * (1 + len(against))
    [file] = adapter.glob("*.safetensors")
    added = sum(tensor.size for tensor in load_file(file).values())
    weights = random_weights({**TINY, **UNTIED})
    plain = sum(w.size for name, w in weights.items() if "embed_tokens" not in name)  # untied: a step reads a row of it
    assert report.rows[1].weight_bytes == 4 * (plain + added)
