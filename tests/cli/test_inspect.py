"""`mlx-qwen3 inspect` as a user runs it: text, JSON, picture, page, exit codes."""

import json
import subprocess
import sys

import pytest
from checkpoints import random_weights, write_checkpoint, write_tokenizer
from commands import QUIET, ROOT, here
from inspecting import FOUR


def run(*arguments, input=None):
    result = here("inspect", *arguments, input=input)
    return subprocess.CompletedProcess(result.args, result.returncode, result.stdout.decode(), result.stderr.decode())


@pytest.fixture
def chat(four_layers):
    return four_layers


def test_everything_is_on_stdout(chat):
    command = [sys.executable, "-m", "mlx_qwen3", "inspect", chat, "--prompt", "hello", "--layer", "3"]
    result = subprocess.run(command, capture_output=True, cwd=ROOT, text=True, env=QUIET)
    assert (result.returncode, result.stderr) == (0, "")
    for text in (
        "the prompt in the chat template, [1, 24] tokens, in float32",
        "model.layers.{0-3}.self_attn.q_proj.weight",
        f"total: 46 tensors, {sum(w.size for w in random_weights(FOUR).values()):,} parameters",
        "Shape flow of layer 3",
        "query heads 0-2 read kv head 0, 3-5 read kv head 1",
        "Numbers of layer 3",
        "Numbers after the last layer",
        "All layers",
        "RMS(q_norm.weight)",  # why QK-norm scales q and k
        "no fault",
        "fp16: fits",
    ):
        assert text in result.stdout


def rows(text, title):
    """The lines of a table by their first word."""
    lines = text.split(title, 1)[1].splitlines()[1:]
    body = lines[: lines.index("")] if "" in lines else lines
    return {line[2:].split()[0]: line[2:] for line in body}


def test_the_shape_flow_at_a_batch_and_length(chat):
    result = run(chat, "--batch", "2", "--length", "9")
    flow = rows(result.stdout, "Shape flow of layer 0")
    assert "random tokens [2, 9], seed 0" in result.stdout
    assert "[2, 9, 200]" in flow["qkv"]
    assert "[2, 6, 9, 20]" in flow["q_heads_transposed"]
    assert "[2, 2, 9, 20]" in flow["k_heads_transposed"]
    assert "[2, 6, 9, 9]" in flow["scores"]
    assert "[2, 9, 307]" in flow["logits"]


def test_json_is_strict_and_whole(sick):
    result = run(sick, "--prompt", "hello", "--heads", "--json", "--against", "transformers")

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    report = json.loads(result.stdout, parse_constant=refuse)
    assert result.stdout.count("\n") == 1
    first = report["first_fault"]
    assert (first["layer"], first["step"]) == (2, "gate_up")
    assert {entry["layer"] for entry in report["numbers"]} == {0, 1, 2, 3, None}
    assert {entry["head"] for entry in report["heads"] if entry["step"] == "scores"} == set(range(6))
    assert report["comparison"]["first_outside"] is None  # transformers computes the same NaN
    assert len(report["weights"]["tensors"]) == 46
    assert {"step": "qkv", "layer": 0, "shape": [1, 24, 200], "dtype": "float32"} in report["flow"]
    entry = next(n for n in report["numbers"] if (n["layer"], n["step"]) == (1, "q_rope"))
    assert entry.keys() >= set("mean std rms min max nan inf zeros abs_max verdict reasons".split())


def test_strict_is_exit_code_1_and_one_line(sick, chat):
    result = run(sick, "--strict")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: first fault in layer 2, gate_up: ")
    assert "FAULT: first in layer 2, gate_up" in result.stdout
    assert run(sick).returncode == 0
    assert run(chat, "--strict").returncode == 0


def test_strict_comparison(chat, tmp_path):
    weights = random_weights(FOUR)
    names = [f"model.layers.1.self_attn.{name}_norm.weight" for name in "qk"]
    weights |= {names[0]: weights[names[1]], names[1]: weights[names[0]]}
    swapped = write_checkpoint(tmp_path / "swapped", FOUR, weights)
    result = run(swapped, "--against", chat, "--strict", "--batch", "2", "--length", "11")
    assert result.returncode == 1
    assert f"first difference from {chat} in layer 1, q_norm" in result.stderr
    assert f"first difference from {chat} in layer 1, q_norm" in result.stdout


def test_a_checkpoint_without_tokenizer_or_template(chat, tmp_path):
    plain = write_checkpoint(tmp_path / "plain", FOUR)
    assert run(plain, "--strict").returncode == 0
    result = run(plain, "--prompt", "hi")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "tokenizer.json does not exist" in result.stderr
    write_tokenizer(plain)
    settings = json.loads((plain / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (plain / "tokenizer_config.json").write_text(json.dumps(settings))
    assert (
        "the prompt as it is: this checkpoint has no default chat template, [1, 2] tokens"
        in run(plain, "--prompt", "hi").stdout
    )


def test_the_decode_step_of_a_reply_that_generate_prints(chat):
    report = json.loads(run(chat, "--prompt", "hello", "--decode", "3", "--seed", "5", "--json").stdout)
    printed = here("generate", "--model", chat, *"--prompt hello --json --seed 5 --max-tokens 4".split())
    tokens = json.loads(printed.stdout)["tokens"]
    assert report["decode"] == {"tokens": [tokens[:3]], "next": tokens[3:]}
    assert (report["batch"], report["length"]) == (1, 1)
    shapes = {entry["step"]: entry["shape"] for entry in report["flow"]}
    assert (shapes["q_rope"], shapes["k_cache"]) == ([1, 6, 1, 20], [1, 2, 27, 20])
    assert (shapes["scores"], shapes["logits"]) == ([1, 6, 1, 27], [1, 1, 307])


def test_a_prompt_from_standard_input(chat):
    assert "[1, 24] tokens" in run(chat, "--prompt", "-", input=b"hello").stdout


ERRORS = {
    "layer": (["--layer", "4"], 2, "--layer is 4; this model has layers 0 to 3"),
    "negative layer": (["--layer", "-1"], 2, "--layer is -1"),
    "head": (["--head", "6"], 2, "--head is 6; this model has heads 0 to 5"),
    "batch": (["--batch", "0"], 2, "--batch is 0; expected 1 or more"),
    "length": (["--length", "-3"], 2, "--length is -3"),
    "long": (["--length", "50000"], 2, "the context of this model has 40960 tokens"),
    "length of a prompt": (["--prompt", "x", "--length", "3"], 2, "--length is for random tokens"),
    "batch of a prompt": (["--prompt", "x", "--batch", "3"], 2, "--batch is for random tokens"),
    "decode": (["--decode", "0"], 2, "--decode is 0; expected 1 or more"),
    "decode past the context": (["--decode", "40950"], 2, "has room for 40943 steps"),
    "seed alone": (
        ["--prompt", "x", "--seed", "3"],
        2,
        "--seed is for the reply to a prompt; give --prompt and --decode",
    ),
    "temp of random tokens": (["--decode", "1", "--temp", "0"], 2, "--temp is for the reply to a prompt"),
    "temp": (["--prompt", "x", "--decode", "1", "--temp", "-1"], 2, "--temp is -1.0"),
    "rules": (["--rules", "/nowhere.json"], 2, "rules /nowhere.json cannot be read"),
    "against": (["--against", "/nowhere"], 1, "there is no folder '/nowhere'"),
    "plot name": (["--plot", "picture.jpg"], 2, "--plot is picture.jpg; expected a name that ends in .png"),
    "plot folder": (["--plot", "/nowhere/p.png"], 1, "/nowhere is not a folder"),
    "html folder": (["--html", "/"], 1, "/ is a folder; give a file name"),
    "long prompt": (["--prompt", "x" * 50_000], 1, "which fill the context of 40960"),
}


@pytest.mark.parametrize(("arguments", "code", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_an_error_is_one_line_with_its_exit_code(arguments, code, message, chat):
    result = run(chat, *arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_without_matplotlib_one_line_says_what_to_install(chat, tmp_path):
    program = "import sys; sys.modules['matplotlib'] = None; from mlx_qwen3.cli.app import cli; cli(sys.argv[1:])"
    for option in ("--plot", "--html"):
        command = [sys.executable, "-c", program, "inspect", str(chat), option, str(tmp_path / "x.png")]
        result = subprocess.run(command, capture_output=True, cwd=ROOT, text=True)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert "pip install 'mlx-qwen3[plot]'" in result.stderr


def test_plain_inspect_needs_neither_matplotlib_nor_torch(chat):
    program = (
        "import sys; sys.modules['matplotlib'] = sys.modules['torch'] = None\n"
        "from mlx_qwen3.cli.app import cli; cli(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, "inspect", str(chat), "--heads"]
    assert subprocess.run(command, capture_output=True, cwd=ROOT).returncode == 0


def test_picture_and_page(sick, tmp_path):
    result = run(sick, "--prompt", "hello", "--plot", tmp_path / "p.png", "--html", tmp_path / "p.html", "--head", "3")
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG\r\n")
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "a <b>sick</b> one" not in page  # all text is escaped
    assert "a &lt;b&gt;sick&lt;/b&gt; one" in page
    assert page.count("<svg ") == 6
    for title in ("Weights, as stored", "Shape flow of layer 0", "Numbers of layer 0", "All layers", "FAULT: first in"):
        assert title in page
