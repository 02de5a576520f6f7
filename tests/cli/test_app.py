"""The commands as a user runs them: in a process, with a terminal, interrupted, with bad input."""

import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import VOCABULARY, write_checkpoint, write_tokenizer
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).parents[2]
GENERATE = [sys.executable, str(ROOT / "generate.py")]
QUIET = {**os.environ, "MLX_QWEN3_BLAS": "none"}  # or a line of advice joins stderr on some machines
CONVERT = [sys.executable, str(ROOT / "convert.py")]
VERIFY = [sys.executable, "-m", "mlx_qwen3", "verify"]


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("chat"), vocab_size=VOCABULARY, eos_token_id=258)
    return write_tokenizer(folder)


def run(*command, **options):
    options = {"capture_output": True, "timeout": 60, "env": QUIET, **options}
    return subprocess.run([str(part) for part in command], **options)


def test_text_goes_to_stdout_and_the_rest_to_stderr(chat):
    result = run(*GENERATE, "--prompt", "hi", "--model", chat, "--max-tokens", "8", "--seed", "1")
    assert result.returncode == 0
    assert result.stdout.endswith(b"\n")
    assert b"8 generated" in result.stderr
    assert result.stderr.count(b"\n") == 1


def test_json_is_one_object(chat):
    result = run(*GENERATE, "--prompt", "hi", "--model", chat, "--max-tokens", "8", "--temp", "0", "--json")
    reply = json.loads(result.stdout)
    assert list(reply) == (
        "text thinking tokens finish_reason prompt_tokens generation_tokens drafted_tokens accepted_tokens "
        "ttft_s prefill_tps decode_tps "
        "peak_memory_gb dtype sampling model".split()
    )
    assert (reply["finish_reason"], reply["generation_tokens"], reply["model"]) == ("length", 8, str(chat))
    assert reply["sampling"]["temperature"] == 0
    assert result.stderr == b""


def test_options_reach_the_sampler(chat):
    options = "--temp 0.5 --top-k 7 --top-p 0.9 --min-p 0.1 --seed 3 --max-tokens 2 --json".split()
    options += "--repetition-penalty 1.1 --presence-penalty 1.5 --frequency-penalty -0.5".split()
    reply = json.loads(run(*GENERATE, "--prompt", "hi", "--model", chat, *options).stdout)
    wanted = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1, "seed": 3}
    wanted |= {"presence_penalty": 1.5, "frequency_penalty": -0.5}
    assert reply["sampling"] == wanted


def test_drafts_change_no_text_and_are_counted(chat):
    command = [*GENERATE, "--prompt", "abcabcabc", "--model", chat, "--max-tokens", "30", "--temp", "0"]
    plain, lookup, draft = (run(*command, *options) for options in (["--no-lookup"], ["--lookup"], ["--draft", chat]))
    assert plain.stdout == lookup.stdout == draft.stdout != b""
    assert re.search(rb"drafts [1-9]\d* of \d+ right", lookup.stderr)
    assert b"drafts" not in plain.stderr
    reply = json.loads(run(*command, "--lookup", "--json").stdout)
    assert 0 < reply["accepted_tokens"] <= reply["drafted_tokens"]


def test_a_draft_model_of_another_kind_is_refused(chat, tmp_path):
    smaller = write_tokenizer(write_checkpoint(tmp_path / "smaller", vocab_size=250))
    other = write_tokenizer(write_checkpoint(tmp_path / "other", vocab_size=VOCABULARY))
    backend = json.loads((other / "tokenizer.json").read_text())
    vocabulary = backend["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(backend))
    for folder, message in ((smaller, b"a vocabulary of 250, the tokenizer 261 ids"), (other, b"tokenizer has other")):
        result = run(*GENERATE, "--prompt", "hi", "--model", chat, "--draft", folder)
        assert (result.returncode, result.stdout) == (2, b"")
        assert message in result.stderr
        assert result.stderr.count(b"\n") == 1


def test_a_draft_model_with_more_padding_rows(chat, tmp_path):
    larger = write_tokenizer(write_checkpoint(tmp_path / "larger", vocab_size=VOCABULARY + 34))
    command = [*GENERATE, "--prompt", "hi", "--model", chat, "--max-tokens", "20", "--temp", "0", "--json"]
    plain, drafted = (json.loads(run(*command, *draft).stdout) for draft in ([], ["--draft", larger]))
    assert plain["tokens"] == drafted["tokens"]  # no draft was made: this model costs as much as the other


def test_no_think_changes_prompt_and_sampling(chat):
    command = [*GENERATE, "--prompt", "hi", "--model", chat, "--max-tokens", "1", "--json"]
    on, off = (json.loads(run(*command, option).stdout) for option in ("--think", "--no-think"))
    assert off["prompt_tokens"] > on["prompt_tokens"]
    assert (on["sampling"]["top_p"], off["sampling"]["top_p"]) == (0.95, 0.8)


def test_a_system_message_is_part_of_the_prompt(chat):
    command = [*GENERATE, "--prompt", "hi", "--model", chat, "--max-tokens", "1", "--json"]
    plain, more = (json.loads(run(*command, *extra).stdout) for extra in ((), ("--system", "Be brief.")))
    assert more["prompt_tokens"] == plain["prompt_tokens"] + len("<|>system\nBe brief.<|>\n") - 4


def test_raw_and_standard_input(chat):
    command = [*GENERATE, "--prompt", "-", "--model", chat, "--max-tokens", "1", "--json", "--raw"]
    assert json.loads(run(*command, input="héllo".encode()).stdout)["prompt_tokens"] == 6


def test_module_and_script_are_one_command(chat):
    arguments = ["--prompt", "hi", "--model", chat, "--max-tokens", "8", "--seed", "1"]
    script = run(*GENERATE, *arguments).stdout
    assert run(sys.executable, "-m", "mlx_qwen3", "generate", *arguments, cwd=ROOT).stdout == script


def test_thinking_stands_in_tags_in_a_pipe_and_is_dimmed_on_a_terminal(chat, tmp_path):
    """The prompt ends in an open think block, so all that random weights say is thinking."""
    template = "{{ messages[0].content }}<think>\n"
    folder = write_tokenizer(write_checkpoint(tmp_path, vocab_size=VOCABULARY), template)
    command = [*GENERATE, "--prompt", "hi", "--model", str(folder), "--max-tokens", "8", "--seed", "1"]
    piped = run(*command).stdout
    assert piped.startswith(b"<think>\n")
    assert piped.endswith(b"</think>\n\n")
    ours, theirs = pty.openpty()
    assert run(*command, capture_output=False, stdout=theirs, stderr=subprocess.DEVNULL).returncode == 0
    os.close(theirs)
    shown = os.read(ours, 4096)
    os.close(ours)
    assert shown.startswith(b"\x1b[2m")
    assert b"\x1b[0m" in shown


def test_ctrl_c_ends_with_what_was_written(chat):
    command = [*GENERATE, "--prompt", "hi", "--model", str(chat), "--seed", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
        begun = process.stdout.read(5)
        process.send_signal(signal.SIGINT)
        rest, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert len(begun) > 0
    assert (begun + rest).endswith(b"\n")
    assert b"interrupted" in stderr
    assert b"Traceback" not in stderr


def test_ctrl_c_with_json_gives_what_there_is(chat):
    """The seventh step interrupts itself: with --json nothing is written that could tell when to."""
    program = """
import itertools, os, signal, sys
from mlx_qwen3.cli import app
from mlx_qwen3.engine import reply as generation
steps = generation.run
def run(*arguments):
    for count, step in enumerate(steps(*arguments)):
        if count == 6: os.kill(os.getpid(), signal.SIGINT)
        yield step
generation.run = run
app.run(sys.argv[1:])
"""
    command = [sys.executable, "-c", program, "generate", "--prompt", "hi", "--model", chat, "--seed", "1", "--json"]
    result = run(*command, cwd=ROOT)
    reply = json.loads(result.stdout)
    assert (result.returncode, reply["finish_reason"], len(reply["tokens"])) == (130, "interrupted", 7)


def test_a_reader_that_closes_early_is_no_error(chat):
    command = [*GENERATE, "--prompt", "hi", "--model", str(chat), "--seed", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=QUIET) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 1


def test_convert_and_back(chat, tmp_path):
    native, back = tmp_path / "native", tmp_path / "back"
    result = run(*CONVERT, chat, native)
    assert result.returncode == 0
    assert result.stdout == b""
    assert b"native, float32" in result.stderr
    certificate = json.loads(run(*CONVERT, native, back, "--layout", "hf", "--json").stdout)
    assert (certificate["layout"], certificate["dtype"], certificate["tensors"]) == ("hf", "float32", 24)
    before, after = (load_file(folder / "model.safetensors") for folder in (chat, back))
    assert {name: array.tobytes() for name, array in after.items()} == {n: a.tobytes() for n, a in before.items()}


def test_convert_prints_the_certificate_and_verify_reads_it(chat, tmp_path):
    out = tmp_path / "out"
    result = run(*CONVERT, chat, out, "--dtype", "bf16", "--progress")
    lines = result.stderr.decode().splitlines()
    assert any(line.startswith("layers.1.mlp.gate_up_proj.weight ") and "fused, cast" in line for line in lines)
    assert any("KL divergence, mean" in line for line in lines)
    assert any(re.match(r"writing 100%  0\.\d+ of 0\.\d+ GB, \d+ MB/s", line) for line in lines)
    result = run(*VERIFY, out, "--source", chat)
    assert (result.returncode, result.stdout) == (0, b"")
    assert b"are as certified" in result.stderr
    found = json.loads(run(*VERIFY, out, "--json").stdout)
    assert (found["files"], found["tensors"], found["source"]) == (5, 18, None)


def test_no_progress_where_it_was_not_asked_for(chat, tmp_path):
    assert b"%" not in run(*CONVERT, chat, tmp_path / "out").stderr


def test_a_damaged_folder_is_exit_code_1_and_one_line(chat, tmp_path):
    out = tmp_path / "out"
    run(*CONVERT, chat, out, "--no-divergence")
    content = bytearray((out / "model.safetensors").read_bytes())
    content[-5] ^= 4  # of the last tensor
    (out / "model.safetensors").write_bytes(content)
    result = run(*VERIFY, out)
    assert (result.returncode, result.stdout) == (1, b"")
    assert re.fullmatch(rb"error: norm\.weight damaged: .*model\.safetensors has sha256 .*\n", result.stderr)


def test_a_gate_is_exit_code_1_and_publishes_nothing(chat, tmp_path):
    result = run(*CONVERT, chat, tmp_path / "out", "--dtype", "bf16", "--max-kl", "0")
    assert result.returncode == 1
    assert re.fullmatch(
        rb"error: the mean KL divergence .* past the 0 allowed; nothing was published.*\n", result.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_the_plan_and_writes_nothing(chat, tmp_path):
    result = run(*CONVERT, chat, tmp_path / "out", "--dtype", "bf16", "--shard-size", "50KB", "--dry-run")
    lines = result.stderr.decode().splitlines()
    assert (result.returncode, result.stdout) == (0, b"")
    assert re.fullmatch(r"275,264 bytes before, 137,632 after, 16\.000 bits per weight", lines[-2])
    assert lines[-1] == "nothing was written"
    plan = json.loads(run(*CONVERT, chat, tmp_path / "out", "--dtype", "bf16", "--dry-run", "--json").stdout)
    assert list(tmp_path.iterdir()) == []
    made = json.loads(run(*CONVERT, chat, tmp_path / "out", "--dtype", "bf16", "--json").stdout)
    for key in ("bytes", "source_bytes", "bits_per_weight", "dtype", "layout"):
        assert plan[key] == made[key]
    assert len(plan["tensors"]) == made["tensors"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quantize", "int4"], "quantize is 'int4'"),
        (["--shard-size", "5 potatoes"], "size is '5 potatoes'; expected a number with a unit"),
        (["--bits", "4"], "bits is 4, but quantize is None"),
        (["--max-kl", "1", "--no-divergence"], "max_kl is 1"),
        (["--text", "/nowhere"], "--text /nowhere cannot be read"),
    ],
)
def test_convert_options_that_make_no_sense_are_exit_code_2(chat, options, message, tmp_path):
    result = run(*CONVERT, chat, tmp_path / "out", *options)
    assert result.returncode == 2
    assert result.stderr.decode().startswith(f"error: {message}")
    assert result.stderr.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == []


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
    """Until its logits pass float16's 65,504, which no weight does."""
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 200_000
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def emptied(folder):
    for path in folder.iterdir():
        path.unlink()


ERRORS = {
    "no prompt": ([], None, 2, "Missing option '--prompt'"),
    "unknown option": (["--prompt", "x", "--beams", "3"], None, 2, "No such option"),
    "not a number": (["--prompt", "x", "--temp", "hot"], None, 2, "'hot' is not a valid float"),
    "out of range": (["--prompt", "x", "--top-p", "7"], None, 2, "top_p is 7.0; expected a number in (0, 1]"),
    "raw and system": (["--prompt", "x", "--raw", "--system", "y"], None, 2, "--system belongs to the chat template"),
    "raw and thinking": (["--prompt", "x", "--raw", "--no-think"], None, 2, "--no-think belongs to the chat template"),
    "empty stop": (["--prompt", "x", "--stop", ""], None, 2, "a stop string is empty"),
    "no such model": (["--prompt", "x", "--model", "/nowhere"], None, 1, "there is no folder '/nowhere'"),
    "empty prompt": (["--prompt", "", "--raw"], None, 1, "the prompt is empty"),
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
    result = run(*GENERATE, *arguments, *model)
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
    assert len(lines) == 2, "and the statistics"
    assert lines[0].startswith("warning: dry_multiplier in generation_config.json is not a setting that")


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--top-p", "7"], "top_p is 7.0"), (["--max-tokens", "0"], "max_tokens is 0")]
)
def test_bad_options_are_told_before_a_download(arguments, message):
    result = run(*GENERATE, "--prompt", "x", "--model", "Qwen/Nonexistent", *arguments)
    assert (result.returncode, message in result.stderr.decode()) == (2, True)


CLOSED = {
    "stdin": ("--prompt - <&-", 2, "standard input is empty"),
    "stdout": ("--prompt x --max-tokens 2 >&-", 0, "2 generated"),
    "full": ("--prompt x --max-tokens 2 >/dev/full", 1, "No space left on device"),
}


@pytest.mark.parametrize(("redirection", "code", "message"), CLOSED.values(), ids=CLOSED.keys())
def test_streams_that_are_closed_or_full(chat, redirection, code, message):
    if redirection.endswith("/dev/full") and not Path("/dev/full").exists():
        pytest.skip("/dev/full is Linux's")
    command = f"{sys.executable} {ROOT / 'generate.py'} --raw --model '{chat}' {redirection}"
    result = run("sh", "-c", command)
    assert (result.returncode, result.stderr.count(b"\n")) == (code, 1)
    assert message in result.stderr.decode()


def test_a_terminal_without_unicode_gets_question_marks(chat):
    """Random weights write bytes that are no characters, which come out as U+FFFD."""
    environment = {**QUIET, "PYTHONIOENCODING": "ascii"}
    result = run(*GENERATE, "--prompt", "hi", "--model", chat, "--max-tokens", "40", "--seed", "1", env=environment)
    assert result.returncode == 0
    assert b"?" in result.stdout


def test_an_error_in_mid_reply_ends_the_line(chat):
    program = """
import sys
from mlx_qwen3.cli import app
from mlx_qwen3.engine import reply as generation
def run(*_):
    yield generation.Chunk(1, "", "hm")
    raise RuntimeError("out of memory")
generation.run = run
app.run(sys.argv[1:])
"""
    result = run(sys.executable, "-c", program, "generate", "--prompt", "hi", "--model", chat, cwd=ROOT)
    assert (result.returncode, result.stdout) == (1, b"<think>\nhm\n</think>\n\n")
    assert b"out of memory" in result.stderr


def test_input_that_is_no_text(chat):
    result = run(*GENERATE, "--prompt", "-", "--model", chat, input=b"\xff\xfe")
    assert result.returncode == 2
    assert b"standard input is not UTF-8 text" in result.stderr


def test_a_bug_is_one_line_too_unless_asked_otherwise(chat, tmp_path):
    program = (
        "import sys, mlx_qwen3.model.load as w; from mlx_qwen3.cli.app import cli; "
        "w.load_model = None; cli(sys.argv[1:])"
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


def test_a_local_folder_needs_no_slow_imports():
    program = (
        "import sys, mlx_qwen3, mlx_qwen3.cli.app; "
        "print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    assert run(sys.executable, "-c", program, cwd=ROOT).stdout == b"set()\n"
