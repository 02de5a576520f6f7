"""What each command shows on a terminal of 80 columns: text and styles, beside the files in tests/snapshots.

After a change that is meant: RENEW_SNAPSHOTS=1 pytest tests/test_snapshots.py, and look at the difference in git.
Numbers are N, since most differ by machine, and the spaces before them are two, since their widths differ too.
"""

import os
import re
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
from screens import CODES, Screen, on_screen

from mlx_qwen3.bench import page
from mlx_qwen3.cli.app import cli

FOLDER = Path(__file__).parent / "snapshots"
GREEDY = ("--model", "demo", "--temp", "0")
COMMANDS = {
    "help": (),
    "generate": ("generate", "--prompt", "What is 17 + 25?", *GREEDY),
    "generate-cut": ("generate", "--prompt", "What is 17 + 25?", *GREEDY, "--max-tokens", "5"),
    "generate-refused": ("generate", "--prompt", "hi", "--max-tokens", "0"),
    "chat-refused": ("chat", "--temp", "-1"),
    "convert": ("convert", "demo", "OUT", "--quantize", "affine4"),
    "convert-dry-run": ("convert", "demo", "OUT", "--quantize", "affine4", "--dry-run"),
    "convert-gate": ("convert", "demo", "OUT", "--quantize", "affine2", "--max-kl", "0"),
    "convert-refused": ("convert", "demo", "OUT", "--quantize", "int4"),
    "verify-refused": ("verify", "OUT"),
    "inspect": ("inspect", "demo"),
    "serve-refused": ("serve", "--host", "0.0.0.0"),
    "bench-refused": ("bench", "demo", "--against", "vllm"),
}
MESSAGES = ("<bad>error:", "<dim>note:")  # one line, which the terminal folds
FIRST = 30  # lines of each


class Terminal(Screen):
    def fileno(self) -> int:
        return 2


def masked(line: str) -> str:
    """Figures are N, but not in names such as affine4; bars have no length."""
    line = re.sub(r"\[#+-*\]", "[bar]", line)
    line = re.sub(r"(?<![A-Za-z\d])\d[\d,.]*(?<=\d)", "N", line)
    return re.sub(r"(?<=\S) {2,}", "  ", line).rstrip()


def lines_of(text: str) -> list[str]:
    shown = []
    for line in text.rstrip("\n").split("\n"):
        last = line.split("\r")[-1]
        for code, name in CODES.items():
            last = last.replace(code, f"<{name}>")
        last = last.replace("\x1b[0m", "<>")
        assert len(re.sub(r"<\w*>", "", last)) <= 80 or last.startswith(MESSAGES), last
        shown.append(masked(last))
    return shown


def check(name: str, lines: list[str]) -> None:
    file = FOLDER / f"{name}.txt"
    text = "\n".join(lines[:FIRST]) + "\n"
    if os.environ.get("RENEW_SNAPSHOTS"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), "if the change is meant, see the top of this file"


@pytest.fixture
def terminal(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, value in {"COLUMNS": "80", "TERM": "xterm", "MLX_QWEN3_BLAS": "none"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((80, 24)))


def run(*words: str) -> list[str]:
    """The exit code, then the lines of stderr, then those of stdout."""
    streams = {"stderr": Terminal(), "stdout": Terminal()}
    with pytest.MonkeyPatch.context() as patch:
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        with pytest.raises(SystemExit) as end:
            cli.main(list(words), prog_name="mlx-qwen3")
    texts = [f"{name}:\n{stream.getvalue()}" for name, stream in streams.items() if stream.getvalue()]
    return [f"exit code {end.value.code}", *(line for text in texts for line in lines_of(text))]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_output_is_as_it_was(name, terminal):
    check(name, run(*COMMANDS[name]))


def test_of_a_converted_folder(terminal):
    run("convert", "demo", "OUT", "--quantize", "affine8", "--no-divergence")
    check("verify", run("verify", "OUT"))


def test_of_bench(bench_report, monkeypatch):
    """With given figures, because columns are dropped by their widths."""
    report = deepcopy(bench_report)
    for row in report.rows:
        run = replace(row.runs[0], seconds=[0.1, 0.15, 0.2], host_s=0.001, peak_bytes=10**8, framework_peak_bytes=10**7)
        row.runs[:] = [run, run]
        row.startup_s[:], row.load_s[:], row.process_s[:], row.sampling_s[:] = [0.5], [0.1], [1.0], [0.001]
        row.outputs.clear()
        row.notes[:] = ["a note"]
    lines = on_screen(page(report, brief=True).shown(), monkeypatch)
    title = next(index for index, line in enumerate(lines) if "Prompt of" in line)
    check("bench", [masked(line) for line in lines[title:]])


def test_every_snapshot_is_of_a_command():
    assert {path.stem for path in FOLDER.iterdir()} == {*COMMANDS, "verify", "bench"}
