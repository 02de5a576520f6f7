"""What each command shows on a terminal of 80 columns: text and styles, beside the files in tests/snapshots.

After a change that is meant: RENEW_SNAPSHOTS=1 pytest tests/test_snapshots.py, and look at the difference in git.
Numbers are N, since most differ by machine, and the spaces before them are two, since their widths differ too.
"""

import http.client
import json
import os
import re
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
from benching import server_report
from screens import CODES, Grid, Screen, on_screen
from terminals import Terminal as Pty

from mlx_qwen3.bench import page, serving_page
from mlx_qwen3.bench.report import BatchRun
from mlx_qwen3.cli import app
from mlx_qwen3.cli.app import cli
from mlx_qwen3.conversion.convert import convert

FOLDER = Path(__file__).parent / "snapshots"
QUESTION = "What is 17 + 25?"
GREEDY = ("--model", "demo", "--temp", "0")
HELP = {f"{name}-help": (name, "--help") for name in app.COMMANDS}
COMMANDS = {
    "help": (),
    "generate": ("generate", "--prompt", QUESTION, *GREEDY),
    "generate-cut": ("generate", "--prompt", QUESTION, *GREEDY, "--max-tokens", "5"),
    "generate-prompts": ("generate", "--prompts", "prompts.txt", *GREEDY),
    "generate-refused": ("generate", "--prompt", "hi", "--max-tokens", "0"),
    "chat-refused": ("chat", "--temp", "-1"),
    "convert": ("convert", "demo", "OUT", "--quantize", "affine4"),
    "convert-dry-run": ("convert", "demo", "OUT", "--quantize", "affine4", "--dry-run"),
    "convert-full": ("convert", "demo", "OUT", "--quantize", "affine4", "--full", "--no-progress"),
    "convert-gate": ("convert", "demo", "OUT", "--quantize", "affine2", "--max-kl", "0"),
    "convert-refused": ("convert", "demo", "OUT", "--quantize", "int4"),
    "verify-refused": ("verify", "OUT"),
    "inspect": ("inspect", "demo"),
    "inspect-experts": ("inspect", "demo-moe", "--layer", "1"),
    "inspect-refused": ("inspect", "demo", "--layer", "5"),
    "serve-refused": ("serve", "--host", "0.0.0.0"),
    "bench-refused": ("bench", "demo", "--against", "vllm"),
}
OF_CONVERTED = {
    "verify": ("verify", "OUT"),
    "verify-source": ("verify", "OUT", "--source", "demo"),
    "inspect-against": ("inspect", "demo", "--against", "OUT"),
}
OTHERS = ("bench", "bench-rows", "bench-serve", "bench-stopped", "chat", "serve")
FIRST = 30  # lines of each


class Terminal(Screen):
    def fileno(self) -> int:
        return 2


def masked(line: str) -> str:
    """Figures are N, but not in names such as affine4; bars have no length."""
    line = re.sub(r"\[#+-*\]", "[bar]", line)
    line = re.sub(r"(?<![A-Za-z\d])\d[\d,.]*(?<=\d)", "N", line)
    return re.sub(r"(?<=\S) {2,}", "  ", line).rstrip()


def lines_of(text: str, mask: Callable[[str], str] = masked) -> list[str]:
    shown = []
    for line in text.rstrip("\n").split("\n"):
        last = line.split("\r")[-1]
        for code, name in CODES.items():
            last = last.replace(code, f"<{name}>")
        last = last.replace("\x1b[0m", "<>")
        assert len(re.sub(r"<\w*>", "", last)) <= 80 or last.startswith("{"), last  # JSON is for programs
        shown.append(mask(last))
    return shown


def check(name: str, lines: list[str], first: int = FIRST) -> None:
    file = FOLDER / f"{name}.txt"
    text = "\n".join(lines[:first]) + "\n"
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


def run(*words: str, mask: Callable[[str], str] = masked) -> list[str]:
    """The exit code, then the lines of stderr, then those of stdout."""
    streams = {"stderr": Terminal(), "stdout": Terminal()}
    with pytest.MonkeyPatch.context() as patch:
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        with pytest.raises(SystemExit) as end:
            cli.main(list(words), prog_name="mlx-qwen3")
    texts = [f"{name}:\n{stream.getvalue()}" for name, stream in streams.items() if stream.getvalue()]
    return [f"exit code {end.value.code}", *(line for text in texts for line in lines_of(text, mask))]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_output_is_as_it_was(name, terminal, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{QUESTION}\nWhat is the capital of France?\n")
    check(name, run(*COMMANDS[name]))


@pytest.mark.parametrize("name", HELP)
def test_the_help_is_as_it_was(name, terminal):
    check(name, run(*HELP[name], mask=str), 200)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A folder with a conversion of the demo, called OUT."""
    folder = tmp_path_factory.mktemp("converted")
    convert("demo", folder / "OUT", quantize="affine8", divergence=False)
    return folder


@pytest.mark.parametrize("name", OF_CONVERTED)
def test_of_a_converted_folder(name, terminal, converted, monkeypatch):
    monkeypatch.chdir(converted)
    lines = run(*OF_CONVERTED[name])
    start = next(
        (index for index, line in enumerate(lines) if "Relative difference" in line), 0
    )  # the rest is inspect's
    check(name, lines[start:])


@pytest.fixture
def given_figures(bench_report):
    """Of a run with given figures, because columns are dropped by their widths."""
    report = deepcopy(bench_report)
    for row in report.rows:
        run = replace(row.runs[0], seconds=[0.1, 0.15, 0.2], host_s=0.001, peak_bytes=10**8, framework_peak_bytes=10**7)
        row.runs[:] = [run, run]
        row.startup_s[:], row.load_s[:], row.process_s[:], row.sampling_s[:] = [0.5], [0.1], [1.0], [0.001]
        row.outputs.clear()
        row.notes[:] = ["a note"]
    return report


def tables(page, monkeypatch, title):
    """The lines from the table of this title on; those above name the machine."""
    lines = on_screen(page.shown(), monkeypatch)
    start = lines.index(next(line for line in lines if line.startswith(f"emphasis: {title}")))
    return [masked(line) for line in lines[start:]]


def test_of_bench(given_figures, monkeypatch):
    check("bench", tables(page(given_figures, brief=True), monkeypatch, "Prompt of"))


def test_of_bench_that_was_stopped(given_figures, monkeypatch):
    given_figures.complete, given_figures.repeat = False, 5
    shown = replace(page(given_figures, brief=True), title="demo", command="mlx-qwen3 bench demo", heading=("machine",))
    check("bench-stopped", [masked(line) for line in on_screen(shown.shown(), monkeypatch)][:5])


def test_of_bench_with_rows(given_figures, monkeypatch):
    report = given_figures
    report.options = replace(report.options, rows=(1, 4))
    for row in report.rows:
        row.batches[:] = [BatchRun(1, 20.0), BatchRun(4, 50.0)]
    check("bench-rows", tables(page(report, brief=True), monkeypatch, "Many requests at once"))


def test_of_bench_with_servers(tmp_path, monkeypatch):
    check("bench-serve", tables(serving_page(server_report(tmp_path, 4)), monkeypatch, "Chat"))


def test_of_a_chat():
    pytest.importorskip("prompt_toolkit")
    with Pty("chat", "demo", "--temp", "0", NO_COLOR="", COLUMNS="") as terminal:
        for typed, shown in (
            (QUESTION, "tok/s]"),
            ("/help", "/think-budget X"),
            (f"/system {'你好，世界！' * 9}", "system: "),
            ("/undo", "left: 0 turns"),
            ("/udno", "message with a space"),
            ("\x03", "ends the chat"),
        ):
            terminal.expect(">")
            terminal.type(typed if typed == "\x03" else f"{typed}\r")
            terminal.expect(shown)
        terminal.expect(">")
        terminal.type("\x03")
        assert terminal.end() == 130
    check("chat", list(map(masked, Grid().feed(terminal.shown).lines())), 100)


def test_of_a_server():
    with Pty("serve", "demo", "--port", "0", "--drain", "5s", NO_COLOR="", COLUMNS="") as terminal:
        terminal.expect("listening on http://127.0.0.1:")
        connection = http.client.HTTPConnection("127.0.0.1", int(terminal.expect("\r\n")), timeout=60)
        terminal.expect("/v1\r\n")
        for path, body in (
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": QUESTION}]}),
            ("/no", {}),
        ):
            connection.request("POST", path, json.dumps(body))
            connection.getresponse().read()
            terminal.expect(f"POST {path}")
            terminal.expect("\r\n")
        connection.close()
        terminal.type("\x03")
        assert terminal.end() == 130
    check("serve", [masked(line) for line in Grid(200).feed(terminal.shown.replace("^C", "^C ")).lines()])


def test_every_snapshot_is_of_a_command():
    assert {path.stem for path in FOLDER.iterdir()} == {*COMMANDS, *HELP, *OF_CONVERTED, *OTHERS}
