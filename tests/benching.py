"""What the tests of `bench` share, here and in cli/: a quick run of this package beside itself."""

import json
from pathlib import Path

import pytest
from checkpoints import VOCABULARY, write_checkpoint, write_tokenizer

from mlx_qwen3 import bench
from mlx_qwen3.bench import options, process, prompts, session
from mlx_qwen3.bench.mixes import MIXES
from mlx_qwen3.bench.process import Worker
from mlx_qwen3.bench.serving_report import Arrival, Load, Serving
from mlx_qwen3.bench.serving_report import Report as ServerReport
from mlx_qwen3.bench.serving_report import Row as ServerRow
from mlx_qwen3.cli.app import cli
from mlx_qwen3.files.checkpoint import Checkpoint

UNTIED = {"vocab_size": VOCABULARY, "tie_word_embeddings": False}  # tied, it would repeat the prompt
TWICE = "mlx-qwen3:bf16"  # this package again: the contestant that starts fastest
QUICK = {"against": (TWICE,), "prompt_tokens": (5,), "generate": 4, "repeat": 2}


def main(*arguments):
    """The exit code of the command line."""
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", *map(str, arguments)])
    return end.value.code


def chosen(folder, **changes):
    return options.contestants(bench.Options(str(folder), **changes), Checkpoint(folder))


def planted(monkeypatch, command, change):
    """Change the second contestant's arguments or answer of a command."""
    ask = Worker.ask

    def asked(self, name, **arguments):
        if (self.name, name) != (TWICE, command):
            return ask(self, name, **arguments)
        return change(lambda **changed: ask(self, name, **{**arguments, **changed}))

    monkeypatch.setattr(Worker, "ask", asked)


def baseline_of(report, metric, value):
    """What --json would have written if one ratio had been `value`."""
    content = json.loads(json.dumps(bench.as_json(report)))
    summary = content["contestants"][1]["summary"]["5"]
    summary.setdefault(metric, {})["ratio"] = {"median": value}
    return content


LIMITS: dict[str, float] = {}


def hurry(monkeypatch):
    """No pauses, few draws, and the limits of the machine are measured once: without a fast BLAS that takes a while."""
    ask = Worker.ask

    def asked(self, name, **arguments):
        if name != "limits":
            return ask(self, name, **arguments)
        if not LIMITS:
            LIMITS.update(ask(self, name, **arguments))
        return dict(LIMITS)

    monkeypatch.setattr(prompts, "SETTLE", 0)
    monkeypatch.setattr(session, "DRAWS", 3)
    monkeypatch.setattr(Worker, "ask", asked)


@pytest.fixture
def at_once(monkeypatch):
    hurry(monkeypatch)


@pytest.fixture(scope="session")
def bench_chat(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "chat"
    return write_tokenizer(write_checkpoint(folder, vocab_size=VOCABULARY, eos_token_id=None))


@pytest.fixture(scope="session")
def bench_report(bench_chat):
    """A quick run, from which tests take figures; none of them changes it."""
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        return bench.bench(bench.Options(str(bench_chat), **QUICK))


def server_report(folder, factor):
    """The second server takes `factor` times as long for everything."""
    rows = []
    for name, times in (("mlx-qwen3", 1), ("mlx-lm", factor)):
        loads = [
            Load(mix.name, 2, 2.0 * times, 100, 60, 20, [0.1 * times, 0.4 * times], ["a"], times - 1) for mix in MIXES
        ]
        rows.append(ServerRow(name, "float32", "libfast", loads, [Arrival([0.05 * times], 1.0 * times, 2000)]))
    machine = dict.fromkeys(("chip", "backend", "os", "mlx", "mlx-lm", "python"), "1.0")
    return ServerReport(
        Serving(bench.Options("somewhere"), (2,)), Checkpoint(write_checkpoint(folder)).config, machine, rows
    )


@pytest.fixture
def nothing_runs(monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("a process was started")

    monkeypatch.setattr(process.subprocess, "Popen", refuse)
