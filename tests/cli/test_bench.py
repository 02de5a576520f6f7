"""`mlx-qwen3 bench` as a user runs it: if something cannot be measured, one line says so before anything runs."""

import json

import pytest
from benching import TWICE, baseline_of, main, planted
from terminals import Terminal

from mlx_qwen3 import bench
from mlx_qwen3.cli.bench import command, command_line
from mlx_qwen3.errors import BenchError

pytestmark = pytest.mark.usefixtures("at_once")


@pytest.fixture
def chat(bench_chat):
    return bench_chat


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "vllm"], "--against has 'vllm'; expected some of mlx-qwen3, transformers, reference, mlx-lm"),
        (["--against", "transformers:int8"], "transformers takes one of bf16, fp16, fp32 after the colon"),
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
        (["--check", __file__], "is not JSON; give what --json wrote"),
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
def test_a_place_that_cannot_be_written_is_refused_first(chat, tmp_path, capsys, option):
    assert main(chat, "--against", TWICE, option, tmp_path / "missing" / "x.png") == 1
    assert "is not a folder; make it first" in capsys.readouterr().err
    (tmp_path / "x.png").mkdir()
    assert main(chat, "--against", TWICE, option, tmp_path / "x.png") == 1
    assert "is a folder; give a file name" in capsys.readouterr().err


@pytest.mark.usefixtures("nothing_runs")
def test_an_unknown_source(capsys):
    assert main("/nowhere", "--against", TWICE) == 1
    assert "there is no folder '/nowhere'" in capsys.readouterr().err


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--generate", 5], "the baseline has --generate 4, this run 5"),
        (["--prompt-tokens", 6], "the baseline has --prompt-tokens 5, this run 6"),
        (["--dtype", "fp32"], "the baseline has --dtype default, this run fp32"),
        (["--against", "mlx-qwen3:fp32"], f"the contestants mlx-qwen3, {TWICE}, this run mlx-qwen3, mlx-qwen3:fp32"),
    ],
)
def test_a_baseline_of_other_settings_is_refused_before_anything_runs(
    chat, tmp_path, bench_report, capsys, options, message
):
    (tmp_path / "b.json").write_text(json.dumps(bench.as_json(bench_report)))
    same = {"--against": TWICE, "--prompt-tokens": 5, "--generate": 4}
    given = {**same, **dict([options])}
    arguments = [word for option in given.items() for word in option]
    assert main(chat, *arguments, "--check", tmp_path / "b.json") == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_ctrl_c_shows_and_writes_complete_rounds(chat, tmp_path):
    """In a terminal, and the signal may come at any moment of the second round."""
    given = "--against", TWICE, "--prompt-tokens", "5", "--generate", "4"
    with Terminal("bench", str(chat), *given, "--json", str(tmp_path / "kept.json")) as terminal:
        terminal.expect("this takes about ")
        terminal.expect("round 1 of 5 is done, about ")
        terminal.type("\x03")
        terminal.expect("stopped: ")
        assert int(terminal.expect(" of 5 rounds are complete").split()[-1]) >= 1
        assert terminal.expect("Prompt of 5 tokens")
        terminal.expect("rounds are complete; ")
        assert terminal.end() == 130
    content = json.loads((tmp_path / "kept.json").read_text())
    assert not content["complete"]
    assert [len(row["runs"]) for row in content["contestants"]] == [content["rounds"]] * 2
    assert content["settings"]["repeat"] == 5


def test_a_contestant_that_fails_later_leaves_complete_rounds(chat, tmp_path, monkeypatch, capsys):
    asked = []

    def fails(ask):
        asked.append(1)
        if len(asked) == 4:  # the first is compared
            raise BenchError("it has no memory")
        return ask()

    planted(monkeypatch, "generate", fails)
    same = "--against", TWICE, "--prompt-tokens", 5, "--generate", 4, "--repeat", 3
    assert main(chat, *same, "--json", tmp_path / "kept.json", "--markdown") == 1
    out, err = capsys.readouterr()
    assert "**stopped: 2 of 3 rounds are complete**" in out
    assert err.splitlines()[-1] == "error: it has no memory"
    assert json.loads((tmp_path / "kept.json").read_text())["rounds"] == 2


def test_check_is_an_exit_code(chat, tmp_path, bench_report, capsys):
    same = "--against", TWICE, "--prompt-tokens", 5, "--generate", 4, "--repeat", 1
    (tmp_path / "better").write_text(json.dumps(baseline_of(bench_report, "decode_tps", 1e9)))
    assert main(chat, *same, "--check", tmp_path / "better", "--margin", 0.9) == 1
    out, err = capsys.readouterr()
    assert "Prompt of 5 tokens\n" in out
    assert "%  " in err  # progress, also in a pipe
    assert err.splitlines()[-1].startswith("error: ")
    assert "5 tokens, decode, tok/s: ours is" in err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["demo"], "mlx-qwen3 bench demo"),
        (
            ["--same-blas", "demo", "--rows", "1,2", "--no-progress"],
            "mlx-qwen3 bench demo --rows 1,2 --same-blas --no-progress",
        ),
        (["my model", "--adapter", "a", "--adapter", "b"], "mlx-qwen3 bench 'my model' --adapter a --adapter b"),
        (["demo", "--markdown", "--repeat", "2"], "mlx-qwen3 bench demo --repeat 2 --markdown"),
    ],
)
def test_the_page_names_the_command_as_it_was_given(arguments, line):
    assert command_line(command.make_context("bench", arguments)) == line
