"""The group of commands: every failure is one line with its exit code, and the start is fast."""

import json
import re
import resource
import shlex
import sys

import numpy as np
import pytest
from checkpoints import VOCABULARY, write_checkpoint, write_tokenizer
from commands import GENERATE, QUIET, ROOT, here, run
from safetensors.numpy import load_file, save_file

from mlx_qwen3.cli.app import COMMANDS, cli
from mlx_qwen3.cli.options import with_names


def test_module_and_script_are_one_command(chat):
    arguments = ["--prompt", "hi", "--model", chat, "--max-tokens", "8", "--seed", "1"]
    script = run(*GENERATE, *arguments).stdout
    assert run(sys.executable, "-m", "mlx_qwen3", "generate", *arguments, cwd=ROOT).stdout == script


def truncated(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def biased(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_bias": True}))


def broken(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][77, 3] = np.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def inflated(folder):
    """So large that its logits pass float16's 65,504, but no weight does."""
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 200_000
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def emptied(folder):
    for path in folder.iterdir():
        path.unlink()


ERRORS = {
    "no prompt": ([], None, 2, "there is no prompt; give --prompt TEXT, or --prompts FILE"),
    "unknown option": (["--prompt", "x", "--beams", "3"], None, 2, "No such option"),
    "not a number": (["--prompt", "x", "--temp", "hot"], None, 2, "--temp is 'hot'; expected a number"),
    "out of range": (["--prompt", "x", "--top-p", "7"], None, 2, "--top-p is 7.0; expected a number in (0, 1]"),
    "raw and system": (["--prompt", "x", "--raw", "--system", "y"], None, 2, "--system belongs to the chat template"),
    "raw and thinking": (["--prompt", "x", "--raw", "--no-think"], None, 2, "--no-think belongs to the chat template"),
    "empty stop": (["--prompt", "x", "--stop", ""], None, 2, "a stop string is empty"),
    "no such model": (["--prompt", "x", "--model", "/nowhere"], None, 1, "there is no folder '/nowhere'"),
    "empty prompt": (["--prompt", "", "--raw"], None, 2, "--prompt is empty; give TEXT, or leave it out"),
    "blank prompt": (["--prompt", " \n"], None, 2, "--prompt is empty; give TEXT, or leave it out"),
    "empty file": (["--prompts", ""], None, 2, "--prompts is empty; give FILE, or leave it out"),
    "empty folder name": (["--prompt", "x", "--cache-dir", ""], None, 2, "--cache-dir is empty; give DIR"),
    "empty cache": (["--prompt", "x", "--prompt-cache", ""], None, 2, "--prompt-cache is empty; give FILE"),
    "empty draft": (["--prompt", "x", "--draft", ""], None, 2, "--draft is empty; give SOURCE"),
    "empty template": (["--prompt", "x", "--chat-template", ""], None, 2, "--chat-template is empty; give NAME|FILE"),
    "empty memory": (["--prompt", "x", "--memory", ""], None, 2, "--memory is empty; give SIZE"),
    "memory without unit": (["--prompt", "x", "--memory", "12"], None, 2, "--memory is '12'; expected a number with"),
    "long prompt": (["--prompt", "x" * 41_000], None, 1, "which fill the context of 40960"),
    "truncated": (["--prompt", "x"], truncated, 1, "model.safetensors is not a whole safetensors file"),
    "pickle": (["--prompt", "x"], pickled, 1, "pytorch_model.bin, a pickle file"),
    "bias": (["--prompt", "x"], biased, 1, "attention_bias is True; only False is supported"),
    "NaN": (["--prompt", "x"], broken, 1, "the model has NaN or infinity in its logits for token 1 of the reply"),
    "overflow": (["--prompt", "x", "--dtype", "fp16"], inflated, 1, "has NaN or infinity in its logits for token 1"),
    "empty folder": (["--prompt", "x"], emptied, 1, "config.json does not exist"),
}


@pytest.mark.parametrize(("arguments", "spoil", "code", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_an_error_is_one_line_with_its_exit_code(arguments, spoil, code, message, tmp_path):
    folder = write_tokenizer(write_checkpoint(tmp_path, vocab_size=VOCABULARY))
    if spoil:
        spoil(folder)
    model = [] if "--model" in arguments else ["--model", folder]
    result = here("generate", *arguments, *model)
    assert result.returncode == code
    assert result.stdout == b""
    error = result.stderr.decode()
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_a_warning_is_one_line_on_stderr(tmp_path):
    folder = write_tokenizer(write_checkpoint(tmp_path, vocab_size=VOCABULARY), dry_multiplier=0.8)
    result = run(*GENERATE, "--prompt", "x", "--model", folder, "--max-tokens", "2")
    assert result.returncode == 0
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 3, "and how the reply ended, and the statistics"
    assert lines[0].startswith("warning: dry_multiplier in generation_config.json is a setting that neither")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("generate --model demo --prompt x --kv-bits 3", "--kv-bits is 3; expected"),
        ("generate --model demo --prompt x --max-tokens 5000", "and --max-tokens 5000 exceed the context of 4096"),
        ("generate --model demo --prompt x --think-budget 5 --no-think", "--think-budget limits the thinking, which"),
        ("convert demo OUT --bits 4", "--bits is 4, but --quantize is not given; a budget needs"),
    ],
)
def test_messages_have_the_names_of_options(arguments, message):
    assert message in here(*arguments.split()).stderr.decode()


def test_only_names_of_arguments_become_options():
    names = {"seed": "--seed", "max_tokens": "--max-tokens"}
    for text in ("the seed is fine", "'max_tokens' in a.max_tokens", "--max_tokens", "no_max_tokens_here"):
        assert with_names(text, names) == text
    assert with_names("seed is -1, but max_tokens is None", names) == "--seed is -1, but --max-tokens is not given"


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--top-p", "7"], "--top-p is 7.0"), (["--max-tokens", "0"], "--max-tokens is 0")]
)
def test_bad_options_are_refused_before_a_download(arguments, message):
    result = here("generate", "--prompt", "x", "--model", "Qwen/Nonexistent", *arguments)
    assert (result.returncode, message in result.stderr.decode()) == (2, True)


def test_a_bug_is_one_line_too_unless_asked_otherwise(chat, tmp_path):
    program = (
        "import sys, mlx_qwen3.model.load as w; from mlx_qwen3.cli.app import cli; "
        "w.Loading.finish = None; cli(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, "generate", "--prompt", "x", "--model", chat]
    result = run(*command, cwd=ROOT)
    assert (result.returncode, result.stderr.count(b"\n")) == (1, 1)
    assert b"unexpected TypeError" in result.stderr
    assert b"Traceback" in run(*command, cwd=ROOT, env={**QUIET, "MLX_QWEN3_TRACEBACK": "1"}).stderr


def test_it_starts_in_well_under_a_second(tmp_path):
    """Processor seconds of a run that fails at the weights, so that a busy machine does not decide."""
    folder = write_tokenizer(write_checkpoint(tmp_path, vocab_size=VOCABULARY))
    truncated(folder)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run(*GENERATE, "--prompt", "x", "--model", folder).returncode == 1
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.7  # measured 0.25


def test_a_local_folder_needs_no_slow_imports(chat):
    """jinja2 is for chat templates, which a raw prompt does not pass."""
    program = (
        "import atexit, sys; from mlx_qwen3.cli.app import run; slow = {'torch', 'transformers', 'huggingface_hub', "
        "'starlette', 'uvicorn', 'msgspec', 'llguidance', 'jinja2', 'matplotlib', 'difflib'}; "
        "atexit.register(lambda: print(slow & set(sys.modules))); run(sys.argv[1:])"
    )
    words = ["generate", "--raw", "--prompt", "hi", "--model", chat, "--max-tokens", "1", "--json"]
    result = run(sys.executable, "-c", program, *words, cwd=ROOT)
    assert (result.returncode, result.stdout.splitlines()[-1], result.stderr) == (0, b"set()", b"")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_goes_to_stdout(words):
    result = here(*words)
    assert (result.returncode, result.stderr) == (0, b"")
    lines = result.stdout.decode().splitlines()
    assert lines[0].startswith("Usage: ")
    assert not any(line.endswith("...") for line in lines[1:])  # no summary is cut
    shown = lines[lines.index("Commands:") + 1 :]
    assert [line.split()[0] for line in shown[::2]] == list(COMMANDS)
    assert [line.strip() for line in shown[1::2]] == list(COMMANDS.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_ends_with_an_example(name):
    lines = here(name, "--help").stdout.decode().splitlines()
    assert lines[-1] == f"  Example: {COMMANDS[name]}"
    assert max(map(len, lines)) <= 80


def test_help_fits_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, here().stdout.decode().splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_has_only_what_its_command_knows(name):
    """Parsed, not run."""
    program, command, *words = shlex.split(COMMANDS[name])
    assert (program, command) == ("mlx-qwen3", name)
    cli.get_command(None, name).make_context(name, words)


def test_an_unknown_command():
    result = here("convrt")
    assert (result.returncode, result.stdout) == (2, b"")
    assert re.fullmatch(rb"error: there is no command 'convrt'; did you mean convert\?\n", result.stderr)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frobnicate"], "there is no command 'frobnicate'; expected one of generate, chat, serve, convert, verify, "),
        (["serve", "--port", "99999"], "--port is 99999; expected 0 to 65535\n"),
        (["serve", "--queue", "-1"], "--queue is -1; expected 0 or more\n"),
        (["generate", "--prompt", "x", "--top-k", "1.5"], "--top-k is '1.5'; expected a whole number\n"),
        (["generate", "--prompt", "x", "--dtype", "int4"], "--dtype is 'int4'; expected one of bf16, fp16, fp32\n"),
        (["generate", "Why is the sky blue?"], "'Why is the sky blue?' belongs to no option; --help lists them\n"),
        (["convert", "demo"], "OUT is missing; --help shows where to write it\n"),
    ],
)
def test_what_click_finds_is_said_as_our_own_checks_say_it(words, message):
    result = here(*words)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.decode().startswith(f"error: {message}")
