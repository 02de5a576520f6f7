"""The benchmark with real contestants on a tiny model, and what it refuses. Nothing here depends on a speed."""

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import AFFINE_4, TINY, VOCABULARY, random_weights, write_checkpoint, write_packed, write_tokenizer

from mlx_qwen3 import bench
from mlx_qwen3.bench import options, outputs, process, roofline, session
from mlx_qwen3.bench.options import KINDS, Contestant
from mlx_qwen3.bench.process import Worker
from mlx_qwen3.bench.report import PER_PROCESS, ratio
from mlx_qwen3.bench.session import prompt
from mlx_qwen3.cli.app import cli
from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.errors import BenchError, OutputError, UsageError
from mlx_qwen3.files.config import Qwen3Config

UNTIED = {"vocab_size": VOCABULARY, "tie_word_embeddings": False}  # tied, it would repeat the prompt
TWICE = "mlx-qwen3:bf16"  # this package again: the contestant that starts fastest
QUICK = {"against": (TWICE,), "prompt_tokens": (5,), "generate": 4, "repeat": 2}


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(session, "SETTLE", 0)
    monkeypatch.setattr(session, "DRAWS", 3)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "chat"
    return write_tokenizer(write_checkpoint(folder, vocab_size=VOCABULARY, eos_token_id=None))


def main(*arguments):
    """The exit code of the command line."""
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", *map(str, arguments)])
    return end.value.code


# Everything once, as a user runs it


@pytest.fixture(scope="module")
def everything(chat, tmp_path_factory):
    """(stdout, JSON, PNG) of a run with all contestants."""
    folder = tmp_path_factory.mktemp("files")
    files = "--json", folder / "all.json", "--plot", folder / "all.png"
    measured = "--prompt-tokens", "70,5", "--generate", 12, "--repeat", 1, "--roofline"
    out = sys.stdout
    with pytest.MonkeyPatch.context() as patch, open(folder / "out", "w") as sys.stdout:
        patch.setattr(session, "SETTLE", 0)
        code = main(chat, "--against", "transformers,mlx-lm", *measured, *files)
    sys.stdout = out
    assert (code, sorted(path.name for path in folder.iterdir())) == (0, ["all.json", "all.png", "out"])

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    content = json.loads((folder / "all.json").read_text(), parse_constant=refuse)
    return (folder / "out").read_text(), content, (folder / "all.png").read_bytes()


def test_all_contestants_say_the_same(everything):
    _, content, _ = everything
    rows = {row["name"]: row for row in content["contestants"]}
    assert list(rows) == ["mlx-qwen3", "transformers", "reference", "mlx-lm"]
    for row in rows.values():
        assert all(found["agree"] and found["parting"] is None for found in row["outputs"])
        assert all(0 < found["relative"] < 1e-5 for found in row["outputs"])  # measured 3e-7
        assert row["dtype"] == "float32"
    compared = {name: [found["compared"] for found in row["outputs"]] for name, row in rows.items()}
    assert compared == {"mlx-qwen3": [], "transformers": [12, 12], "mlx-lm": [12, 12], "reference": [8, 1]}


def test_the_json_has_every_repeat_and_what_follows(everything):
    _, content, _ = everything
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


def test_all_read_the_same_bytes(everything):
    """float32: every weight but the norms' is a matrix, the embedding is tied; two layers of cache, 2 heads of 20."""
    _, content, _ = everything
    elements = sum(w.size for w in random_weights({**TINY, "vocab_size": VOCABULARY}).values())
    for row in content["contestants"]:
        assert row["weight_bytes"] == 4 * elements
        assert row["cache_bytes"] == (0 if row["name"] == "reference" else 4 * 2 * 2 * 2 * 20)


def test_the_tables_are_markdown(everything):
    text, _, _ = everything
    assert text.index("### Limits") < text.index("### Prompt of 5 tokens") < text.index("### Prompt of 70 tokens")
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    table = text.split("### Prompt of 5 tokens")[1].split("###")[0]
    assert [line.split("|")[1].strip() for line in table.split("---")[-1].splitlines()[1:] if line] == [
        "mlx-qwen3",
        "transformers",
        "reference",
        "mlx-lm",
    ]
    assert re.search(r"\| mlx-lm \| float32 \| [\d.,]+ x[\d.]+ \|", table)
    assert "- mlx-lm, 70 prompt tokens: the first 12 greedy tokens are equal; relative norm of the difference" in text
    assert "reference has no cache, every token is a pass over all before it: it makes only 8 of 12 tokens at 5" in text
    assert "it makes only 1 of 12 tokens at 70" in text


def test_the_plot_is_a_picture(everything):
    assert everything[2].startswith(b"\x89PNG")


def test_others_get_neither_this_package_nor_its_blas(chat, monkeypatch):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # every import is a line on stderr
    with Worker(Contestant("mlx-lm", KINDS["mlx-lm"], None)) as worker:
        worker._errors.seek(0)
        names = {line.split("|")[-1].strip() for line in worker._errors.read().decode().splitlines()}
        assert "mlx_lm" in names
        assert not any(name.startswith("mlx_qwen3") for name in names)
        if sys.platform == "linux":
            assert "libmkl_rt" not in Path(f"/proc/{worker._process.pid}/maps").read_text()
        assert worker.greeting["blas"] == "of MLX"


# Outputs that differ


def planted(monkeypatch, command, change):
    """Change the second contestant's arguments or answer of a command."""
    ask = Worker.ask

    def asked(self, name, **arguments):
        if (self.name, name) != (TWICE, command):
            return ask(self, name, **arguments)
        return change(lambda **changed: ask(self, name, **{**arguments, **changed}))

    monkeypatch.setattr(Worker, "ask", asked)


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
    text = bench.render(report)
    assert f"| {TWICE} | bfloat16 | outputs differ | - | - |" in text
    assert re.search(rf"- {TWICE}, 5 prompt tokens: the first 4 greedy tokens part at token \d, \d+ here", text)
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


def logits(*rows):
    return np.array(rows, np.float32)


OURS = logits([5, 4.99, 0, 0], [0, 7, 1, 2])


@pytest.mark.parametrize(
    ("theirs", "tokens", "agree"),
    [
        (logits([4.98, 5, 0, 0], [0, 7, 1, 2]), [1, 1], True),  # a near tie, and the same model
        (logits([4.98, 5, 0, 0], [0, 7, 1, 2]), [1, 3], False),  # then a token that neither model wants
        (logits([4, 5, 0, 0], [0, 7, 1, 2]), [1, 1], False),  # further apart than rounding
        (logits([4.98, 5, 0, 0], [0, 7, 1, np.nan]), [1, 1], False),
    ],
)
def test_rounding_is_told_from_a_mistake(theirs, tokens, agree):
    found = outputs.judge(9, [0, 1], tokens, OURS, theirs, allowed=0.05)
    parting = found.parting
    assert (found.agree, parting.position, parting.ours, parting.theirs) == (agree, 0, 0, 1)
    assert parting.gap == pytest.approx(0.01, abs=1e-6)
    assert ("no speed is shown" in outputs.sentence("other", found)) is not agree


# Ratios beside a baseline


def baseline_of(report, metric, value):
    """What --json would have written where one ratio was `value`."""
    content = json.loads(json.dumps(bench.as_json(report)))
    summary = content["contestants"][1]["summary"]["5"]
    summary.setdefault(metric, {})["ratio"] = {"median": value}
    return content


@pytest.fixture(scope="module")
def report(chat):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "SETTLE", 0)
        return bench.bench(bench.Options(str(chat), **QUICK))


@pytest.mark.parametrize(
    ("metric", "worse", "fails"),
    [
        ("decode_tps", 1.2, True),  # the baseline was 1.2 times better than now
        ("decode_tps", 1.05, False),
        ("decode_tps", 0.5, False),
        ("peak_bytes", 0.8, True),
        ("peak_bytes", 0.97, False),
        ("peak_bytes", 2, False),
    ],
)
def test_check_fails_past_the_margin_only(report, metric, worse, fails):
    now = bench.as_json(report)["contestants"][1]["summary"]["5"][metric]["ratio"]["median"]
    baseline = baseline_of(report, metric, now * worse)
    bench.check_settings(report, baseline)
    if not fails:
        return bench.check(report, baseline, margin=0.1)
    with pytest.raises(BenchError, match=rf"^1 ratios are worse by more than 10%: {TWICE}, 5 tokens, \w+, .*ours is"):
        bench.check(report, baseline, margin=0.1)
    return None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c["shape"].update(hidden_size=64), "the shape"),
        (lambda c: c["settings"].update(generate=5), "generate 5, this run 4"),
        (lambda c: c["contestants"][1].update(dtype="float16"), "contestants"),
        (lambda c: c["machine"].update(backend="MLX Metal"), "the back end 'MLX Metal', this run"),
    ],
)
def test_a_baseline_of_other_settings_is_refused(report, change, named):
    baseline = json.loads(json.dumps(bench.as_json(report)))
    bench.check_settings(report, baseline)
    change(baseline)
    with pytest.raises(UsageError, match=named):
        bench.check_settings(report, baseline)


def test_check_is_an_exit_code(chat, tmp_path, report, capsys):
    same = "--against", TWICE, "--prompt-tokens", 5, "--generate", 4, "--repeat", 1
    (tmp_path / "better").write_text(json.dumps(baseline_of(report, "decode_tps", 1e9)))
    assert main(chat, *same, "--check", tmp_path / "better", "--margin", 0.9) == 1
    out, err = capsys.readouterr()
    assert "### Prompt of 5 tokens" in out
    assert err.count("\n") == 1
    assert "5 tokens, decode, tok/s: ours is" in err


# What cannot be measured is told before anything runs


@pytest.fixture
def nothing_runs(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a process was started")

    monkeypatch.setattr(process.subprocess, "Popen", refuse)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "vllm"], "--against has 'vllm'; expected some of mlx-qwen3, transformers, reference, mlx-lm"),
        (["--against", "transformers:int8"], "transformers takes one of bf16, fp16, fp32 behind it"),
        (["--against", "reference:bf16"], "reference takes no dtype: it is float32"),
        (["--prompt-tokens", "12,x"], "--prompt-tokens is '12,x'; expected numbers with commas"),
        (["--prompt-tokens", "0"], "--prompt-tokens is 0; expected 1 or more"),
        (["--prompt-tokens", "5,5"], "expected different lengths"),
        (["--prompt-tokens", "40900"], "exceed the context of 40960"),
        (["--generate", "0"], "--generate is 0"),
        (["--repeat", "-1"], "--repeat is -1"),
        (["--dtype", "int4"], "--dtype is 'int4'; expected default, bf16, fp16, fp32"),
        (["--plot", "x.pdf"], "expected a name that ends in .png"),
        (["--check", "/nowhere/b.json"], "--check /nowhere/b.json cannot be read (No such file or directory)"),
        (["--check", __file__], "is no JSON; give what --json wrote"),
        (["--check", "BASELINE", "--margin", "1.5"], "--margin is 1.5; expected a share"),
        (["--check", "BASELINE"], "is not what --json of this version writes"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(chat, tmp_path, capsys, arguments, message):
    (tmp_path / "b.json").write_text('{"format": 1}')
    arguments = [str(tmp_path / "b.json") if argument == "BASELINE" else argument for argument in arguments]
    against = [] if "--against" in arguments else ["--against", TWICE]
    assert main(chat, *against, *arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_place_that_cannot_be_written_is_told_first(chat, tmp_path, capsys, option):
    assert main(chat, "--against", TWICE, option, tmp_path / "missing" / "x.png") == 1
    assert "is not a folder; make it first" in capsys.readouterr().err
    (tmp_path / "x.png").mkdir()
    assert main(chat, "--against", TWICE, option, tmp_path / "x.png") == 1
    assert "is a folder; give a file name" in capsys.readouterr().err


@pytest.mark.usefixtures("nothing_runs")
def test_a_source_that_is_none(capsys):
    assert main("/nowhere", "--against", TWICE) == 1
    assert "there is no folder '/nowhere'" in capsys.readouterr().err


def test_a_missing_package_is_named_with_the_remedy(chat, monkeypatch, capsys):
    real = options.find_spec
    monkeypatch.setattr(options, "find_spec", lambda name: None if name == "mlx_lm" else real(name))
    assert main(chat, "--against", "mlx-lm") == 2
    assert "--against mlx-lm needs the package mlx_lm; pip install mlx-lm, or leave it out" in capsys.readouterr().err
    assert [c.name for c in chosen(chat)] == ["mlx-qwen3", "transformers", "reference"]  # unasked, it is left out


def chosen(folder, **changes):
    return options.contestants(bench.Options(str(folder), **changes), folder, Qwen3Config.from_folder(folder))


def test_who_runs_with_which_dtype(chat):
    assert [(c.name, c.dtype) for c in chosen(chat)] == [
        ("mlx-qwen3", None),
        ("transformers", None),
        ("reference", None),
        ("mlx-lm", None),
    ]
    names = "transformers:fp32", "mlx-lm", "mlx-lm:fp32", "transformers"
    found = chosen(chat, against=names, dtype="bf16", reference=False)
    assert [(c.name, c.dtype) for c in found] == [
        ("mlx-qwen3", "bf16"),
        ("transformers:fp32", "fp32"),
        ("mlx-lm", "bf16"),
        ("mlx-lm:fp32", "fp32"),
        ("transformers", "bf16"),
    ]


def test_a_blas_to_share(chat, monkeypatch):
    monkeypatch.setattr(options.blas, "in_use", "/lib/blas.so")
    assert [c.blas for c in chosen(chat, against=("mlx-lm",), same_blas=True)] == ["", "/lib/blas.so"]
    monkeypatch.setattr(options.blas, "in_use", None)
    with pytest.raises(UsageError, match="--same-blas needs a BLAS to share"):
        chosen(chat, same_blas=True)


def test_what_a_contestant_cannot_read(chat, tmp_path):
    packed = write_packed(tmp_path / "packed", AFFINE_4)
    assert [c.name for c in chosen(packed)] == ["mlx-qwen3", "mlx-lm"]
    with pytest.raises(UsageError, match="the checkpoint is quantized, which transformers cannot read; leave it out"):
        chosen(packed, against=("transformers", "mlx-lm"))
    convert(chat, tmp_path / "native", divergence=False)
    assert [c.name for c in chosen(tmp_path / "native")] == ["mlx-qwen3"]
    with pytest.raises(UsageError, match=r"native layout, which mlx-lm cannot read; .* convert with --layout hf"):
        chosen(tmp_path / "native", against=("mlx-lm",))


def test_a_packed_model_beside_mlx_lm_in_bf16(tmp_path):
    """float32 activations here, bfloat16 there: whatever tokens they choose, it is rounding."""
    packed = write_packed(tmp_path / "packed", AFFINE_4, torch_dtype="bfloat16")
    report = bench.bench(bench.Options(str(packed), ("mlx-lm:bf16",), (9,), generate=12, repeat=1))
    assert [(row.dtype, row.agrees(9)) for row in report.rows] == [("float32", True), ("bfloat16", True)]
    assert report.rows[0].weight_bytes < 4 * sum(w.size for w in random_weights({**TINY, "hidden_size": 128}).values())


# Processes end


def test_a_worker_that_dies_is_reported_with_its_last_words(monkeypatch):
    monkeypatch.setattr(process, "BOOT", "import sys; sys.exit('no such luck')")
    with pytest.raises(BenchError, match=r"^mlx-qwen3 ended with code 1 \(starting\); its last words: no such luck$"):
        Worker(Contestant("mlx-qwen3", KINDS["mlx-qwen3"], None))


def test_a_worker_that_fails_or_is_killed_is_reported(chat):
    with Worker(Contestant("mlx-qwen3", KINDS["mlx-qwen3"], None)) as worker:
        with pytest.raises(BenchError, match=r"mlx-qwen3 failed \(load\): SourceError|CheckpointError|ConfigError"):
            worker.ask("load", folder="/nowhere", dtype=None)
        worker._process.kill()
        worker._process.wait()
        with pytest.raises(BenchError, match=r"mlx-qwen3 ended with code -9 \(load\)"):
            worker.ask("load", folder=str(chat), dtype=None)


def test_a_worker_ends_with_its_parent():
    worker = Worker(Contestant("mlx-qwen3", KINDS["mlx-qwen3"], None))
    worker._process.stdin.close()  # as the system does it
    assert worker._process.wait(timeout=30) == 1
    worker.close()


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


# Arithmetic and files


def test_the_limits_of_qwen3_0_6b():
    shape = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
    config = Qwen3Config.from_hf({**TINY, **shape, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936})
    norms, embedding = 28 * (2 * 1024 + 2 * 128) + 1024, 151936 * 1024
    assert roofline.layer_weights(config) == 596_049_920 - norms - embedding
    assert roofline.decode_limit(120e9, 1.19e9) == pytest.approx(101, abs=0.5)  # an M4's bandwidth, 0.6B in bf16
    one, two = (roofline.prefill_operations(config, length) for length in (1000, 2000))
    scores = 28 * 16 * 128 * 2 * 1000**2  # queries by keys, then by values; half of them, at 2 operations each
    assert two - 2 * one == 2 * scores - 2 * embedding
    assert roofline.prefill_limit(1e12, config, 1000) == pytest.approx(1000 / (one / 1e12))


def test_ratios_are_of_neighbours(report):
    """Both drift by a factor of 3 between the repeats; their ratio does not."""
    rows = [replace(row, load_s=[seconds, 3 * seconds]) for row, seconds in zip(report.rows, (1, 2), strict=True)]
    drifting = replace(report, rows=rows)
    load = next(metric for metric in PER_PROCESS if metric.name == "load_s")
    found = ratio(drifting, rows[1], load, None)
    assert (found.median, found.low, found.high) == (0.5, 0.5, 0.5)


def test_files_are_whole_or_absent(report, tmp_path, monkeypatch):
    (tmp_path / "x.json").write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OutputError, match=r"x.json cannot be written \(No space left on device\)"):
            bench.write_files(report, tmp_path / "x.json", None)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert (tmp_path / "x.json").read_text() == "before"
    bench.write_files(report, tmp_path / "x.json", None)
    assert json.loads((tmp_path / "x.json").read_text())["format"] == 2


def test_prompts_are_the_same_for_everyone(chat):
    config = Qwen3Config.from_folder(chat)
    assert prompt(config, 50) == prompt(config, 50)
    assert set(prompt(config, 5000)) <= set(range(VOCABULARY))
