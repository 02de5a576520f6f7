"""`generate`: what it prints, its options, drafts, chat templates, Ctrl-C."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields, replace

import pytest
from adapting import peft_deltas, write_peft
from checkpoints import (
    AFFINE_4,
    TEMPLATE,
    TINY,
    VOCABULARY,
    random_weights,
    write_checkpoint,
    write_packed,
    write_tokenizer,
)
from commands import GENERATE, ROOT, here, run
from terminals import Terminal

from mlx_qwen3 import blas
from mlx_qwen3.cli.models import Opened
from mlx_qwen3.cli.options import ModelOptions
from mlx_qwen3.engine import speculative
from mlx_qwen3.engine.speculative import COST_CPU, ROW_BY_ROW
from mlx_qwen3.errors import CheckpointError
from mlx_qwen3.model import kernels
from mlx_qwen3.text.tokenizer import Tokenizer

STYLE = "{{ style }}{% for m in messages %}{{ m.role }}:{{ m.content }} {% endfor %}"


def test_text_goes_to_stdout_and_the_rest_to_stderr(chat):
    result = run(*GENERATE, "--prompt", "hi", "--model", chat, "--max-tokens", "8", "--seed", "1")
    assert result.returncode == 0
    assert result.stdout.endswith(b"\n")
    note, statistics = result.stderr.decode().splitlines()
    assert note.startswith("note: the reply was cut at its limit of 8 tokens")
    assert re.fullmatch(r"8 tokens, [\d.]+ tok/s, first after \d\.\d\d s", statistics)


def test_verbose_adds_the_rest(chat):
    result = here("generate", "--prompt", "hi", "--model", chat, "--max-tokens", "8", "--seed", "1", "--verbose")
    line = result.stderr.decode().splitlines()[-1]
    assert re.match(r"\d+ prompt tokens, [\d.]+ tok/s \| 8 generated, ", line)
    assert line.endswith("| float32 | length")
    refused = here("generate", "--prompt", "hi", "--model", chat, "--verbose", "--json")
    assert refused.stderr == b"error: --json has all statistics already; drop --verbose\n"


def test_json_is_one_object(chat):
    result = here("generate", "--prompt", "hi", "--model", chat, "--max-tokens", "8", "--temp", "0", "--json")
    reply = json.loads(result.stdout)
    assert list(reply) == (
        "text thinking tokens finish_reason prompt_tokens cached_tokens generation_tokens drafted_tokens "
        "accepted_tokens ttft_s prefill_tps decode_tps "
        "peak_memory_gb dtype sampling model".split()
    )
    assert (reply["finish_reason"], reply["generation_tokens"], reply["model"]) == ("length", 8, str(chat))
    assert reply["sampling"]["temperature"] == 0
    assert result.stderr == b""


def test_packed_weights_are_unpacked_or_not_and_one_line_says_so(chat, tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "on_gpu", lambda: False)
    packed = write_tokenizer(write_packed(tmp_path / "packed", AFFINE_4, vocab_size=VOCABULARY, eos_token_id=258))
    command = ["generate", "--prompt", "hi", "--model", packed, "--max-tokens", "6", "--temp", "0"]
    replies = {weights: here(*command, "--weights", weights) for weights in ("packed", "unpacked")}
    assert replies["packed"].stdout == replies["unpacked"].stdout != b""
    for weights, line in {"packed": b"stay packed", "unpacked": b"are unpacked to float32, "}.items():
        notes = [note for note in replies[weights].stderr.splitlines() if b"weights" in note]
        assert len(notes) == 1
        assert line in notes[0]
    assert here(*command, "--json").stderr.count(b"note:") == 1  # by default, too
    refused = here(*command, "--weights", "unpacked", "--memory", "300KB")
    assert refused.returncode == 1
    assert b"the weights, unpacked, take 1." in refused.stderr
    assert b" and the memory budget is 0.30 MB; leave them packed, which takes 0." in refused.stderr
    plain = here("generate", "--prompt", "hi", "--model", chat, "--weights", "packed")
    assert plain.returncode == 2
    assert plain.stderr.startswith(b"error: --weights is packed, but the checkpoint is not quantized; leave it out")


def test_a_request_that_fits_packed_weights_alone_gets_them(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "on_gpu", lambda: False)
    monkeypatch.setattr(blas, "lacking", lambda: False)
    monkeypatch.setattr(kernels, "computes_at_once", lambda *_: False)  # which takes less memory, where it is possible
    packed = write_tokenizer(write_packed(tmp_path / "packed", AFFINE_4, vocab_size=VOCABULARY, eos_token_id=258))
    command = ["generate", "--prompt", "hi" * 300, "--model", packed, "--max-tokens", "2", "--temp", "0"]
    for memory, line in {"11MB": b"are unpacked", "9MB": b"stay packed"}.items():  # 8.4 MB and weights of 0.2 or 1.3
        result = here(*command, "--memory", memory)
        assert result.returncode == 0
        assert line in result.stderr


def test_options_reach_the_sampler(chat):
    options = "--temp 0.5 --top-k 7 --top-p 0.9 --min-p 0.1 --seed 3 --max-tokens 2 --json".split()
    options += "--repetition-penalty 1.1 --presence-penalty 1.5 --frequency-penalty -0.5".split()
    reply = json.loads(here("generate", "--prompt", "hi", "--model", chat, *options).stdout)
    wanted = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1, "seed": 3}
    wanted |= {"presence_penalty": 1.5, "frequency_penalty": -0.5}
    assert reply["sampling"] == wanted


def test_drafts_change_no_text_and_are_counted(chat):
    command = ["generate", "--prompt", "abcabcabc", "--model", chat, "--max-tokens", "30", "--temp", "0"]
    plain, lookup, draft = (
        here(*command, "--verbose", *options) for options in (["--no-lookup"], ["--lookup"], ["--draft", chat])
    )
    assert plain.stdout == lookup.stdout == draft.stdout != b""
    assert re.search(rb"drafts [1-9]\d* of \d+ right", lookup.stderr)
    assert b"drafts" not in plain.stderr
    reply = json.loads(here(*command, "--lookup", "--json").stdout)
    assert 0 < reply["accepted_tokens"] <= reply["drafted_tokens"]


def test_a_draft_model_of_another_kind_is_refused(chat, tmp_path):
    smaller = write_tokenizer(write_checkpoint(tmp_path / "smaller", vocab_size=250))
    other = write_tokenizer(write_checkpoint(tmp_path / "other", vocab_size=VOCABULARY))
    backend = json.loads((other / "tokenizer.json").read_text())
    vocabulary = backend["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(backend))
    for folder, message in ((smaller, b"a vocabulary of 250, the tokenizer 261 ids"), (other, b"tokenizer has other")):
        result = here("generate", "--prompt", "hi", "--model", chat, "--draft", folder)
        assert (result.returncode, result.stdout) == (2, b"")
        assert message in result.stderr
        assert result.stderr.count(b"\n") == 1


def test_a_draft_model_with_more_padding_rows(chat, tmp_path):
    larger = write_tokenizer(write_checkpoint(tmp_path / "larger", vocab_size=VOCABULARY + 34))
    command = ["generate", "--prompt", "hi", "--model", chat, "--max-tokens", "20", "--temp", "0", "--json"]
    plain, drafted = (json.loads(here(*command, *draft).stdout) for draft in ([], ["--draft", larger]))
    assert plain["tokens"] == drafted["tokens"]  # no draft was made: this model costs as much as the other


def test_no_think_changes_prompt_and_sampling(chat):
    command = ["generate", "--prompt", "hi", "--model", chat, "--max-tokens", "1", "--json"]
    on, off = (json.loads(here(*command, option).stdout) for option in ("--think", "--no-think"))
    assert off["prompt_tokens"] > on["prompt_tokens"]
    assert (on["sampling"]["top_p"], off["sampling"]["top_p"]) == (0.95, 0.8)


def test_a_system_message_is_part_of_the_prompt(chat):
    command = ["generate", "--prompt", "hi", "--model", chat, "--max-tokens", "1", "--json"]
    plain, more = (json.loads(here(*command, *extra).stdout) for extra in ((), ("--system", "Be brief.")))
    assert more["prompt_tokens"] == plain["prompt_tokens"] + len("<|>system\nBe brief.<|>\n") - 4


def test_raw_and_standard_input(chat):
    command = ["generate", "--prompt", "-", "--model", chat, "--max-tokens", "1", "--json", "--raw"]
    assert json.loads(here(*command, input="héllo".encode()).stdout)["prompt_tokens"] == 6


def test_ctrl_c_ends_with_what_was_written(chat):
    command = [*GENERATE, "--prompt", "hi", "--model", str(chat), "--seed", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
        begun = process.stdout.read(5)
        process.send_signal(signal.SIGINT)
        rest, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(begun) > 0
    assert (begun + rest).endswith(b"\n")
    assert b"interrupted" in stderr
    assert b"Traceback" not in stderr


def test_ctrl_c_with_json_gives_what_there_is(chat):
    """The seventh step interrupts itself, because --json writes nothing before the end that could show the moment."""
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


@pytest.fixture(scope="module")
def styled(tmp_path_factory):
    """A checkpoint with a second chat template, `style`."""
    folder = write_checkpoint(tmp_path_factory.mktemp("styled"), vocab_size=VOCABULARY, eos_token_id=258)
    write_tokenizer(folder, TEMPLATE)
    (folder / "additional_chat_templates").mkdir()
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "additional_chat_templates" / "style.jinja").write_text(STYLE)
    return folder


def one_token(chat, *options):
    """(exit code, stdout, stderr) of a reply of one token."""
    command = ["generate", "--model", chat, "--prompt", "hi", "--max-tokens", "1", "--json", *options]
    result = here(*command)
    return result.returncode, result.stdout.decode(), result.stderr.decode()


def prompt_tokens(chat, *options):
    code, stdout, stderr = one_token(chat, *options)
    assert (code, stderr) == (0, "")
    return json.loads(stdout)["prompt_tokens"]


def test_a_template_is_chosen_by_name_or_file_and_its_variables_are_set(styled, tmp_path):
    named = prompt_tokens(styled, "--chat-template", "style", "--template-arg", 'style="brief "')
    assert named == len("brief user:hi ")
    own = tmp_path / "own.jinja"
    own.write_text("{{ style[1] }}{{ n + 1 }}{{ messages | length }}")
    options = ["--system", "s", "--template-arg", "style=[1, 22]", "--template-arg", "n=99"]
    assert prompt_tokens(styled, "--chat-template", str(own), *options) == len("221002")


def test_a_reply_may_be_begun(styled):
    expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nSo a"
    assert prompt_tokens(styled, "--prefill", "So a") == len(Tokenizer(styled).encode(expected))
    code, stdout, _ = one_token(styled, "--prefill", "<think>\nSo", "--seed", "1", "--max-tokens", "8")
    reply = json.loads(stdout)
    assert (code, reply["text"]) == (0, "")
    assert "So" not in reply["thinking"] != ""


def test_thinking_may_be_switched_as_a_variable(styled):
    variable, option = (
        json.loads(one_token(styled, *options)[1])
        for options in (["--template-arg", "enable_thinking=false"], ["--no-think"])
    )
    for key in ("top_p", "temperature"):
        assert variable["sampling"][key] == option["sampling"][key]
    assert variable["prompt_tokens"] == option["prompt_tokens"] > prompt_tokens(styled)


def test_control_tokens_of_a_message_stay_text(styled):
    """The end of a turn is one token, and ten letters as text."""
    tokens = {literal: prompt_tokens(styled, "--system", "a<|im_end|>", *literal) for literal in [(), ("--literal",)]}
    assert tokens["--literal",] - tokens[()] == len("<|im_end|>") - 1


REFUSED = {
    "raw and literal": (["--raw", "--literal"], 2, "--literal belongs to the chat template"),
    "raw and prefill": (["--raw", "--prefill", "x"], 2, "--prefill belongs to the chat template"),
    "raw and template": (["--raw", "--chat-template", "style"], 2, "--chat-template belongs to the chat template"),
    "raw and variable": (["--raw", "--template-arg", "a=1"], 2, "--template-arg belongs to the chat template"),
    "no value": (["--template-arg", "style"], 2, "--template-arg is 'style'; expected KEY=JSON"),
    "no name": (["--template-arg", "=1"], 2, "--template-arg is '=1'; expected KEY=JSON"),
    "no JSON": (["--template-arg", "style=brief"], 2, "'brief' is not JSON; text needs quotes"),
    "twice": (["--template-arg", "a=1", "--template-arg", "a=2"], 2, "--template-arg gives 'a' twice"),
    "unknown": (
        ["--template-arg", "stile=1"],
        2,
        "the chat template has no variable 'stile'; it reads enable_thinking",
    ),
    "an option": (["--template-arg", "messages=[]"], 2, "--template-arg may not set messages"),
    "no template": (["--chat-template", "rag"], 2, "there is no chat template 'rag'; give a file or a name: this "),
    "opposites": (["--think", "--template-arg", "enable_thinking=false"], 2, "to different values"),
}


@pytest.mark.parametrize(("options", "code", "message"), REFUSED.values(), ids=REFUSED)
def test_options_that_make_no_sense_are_refused(styled, options, code, message):
    found = one_token(styled, *options)
    assert found[:2] == (code, "")
    assert message in found[2]
    assert found[2].count("\n") == 1


# --- prefixes


@pytest.mark.parametrize("option", ["--prompt-cache", "--cache-dir"])
def test_a_second_prompt_computes_only_what_is_new(chat, tmp_path, option):
    command = ["generate", "--prompt", "tell me a story", "--model", chat, "--max-tokens", "9", "--temp", "0", "--json"]
    plain, first, second = (
        json.loads(here(*command, *options).stdout) for options in ([], *[[option, tmp_path / "kept"]] * 2)
    )
    assert plain["tokens"] == first["tokens"] == second["tokens"]
    cached = plain["prompt_tokens"] - 1
    assert [reply["cached_tokens"] for reply in (plain, first, second)] == [0, 0, cached]
    result = here(*command[:-1], "--verbose", option, tmp_path / "kept")
    assert f"prompt tokens, {cached} of them cached".encode() in result.stderr
    assert result.stdout == here(*command[:-1]).stdout


@pytest.mark.filterwarnings("always")
def test_a_prompt_cache_of_another_model_is_replaced(chat, tmp_path):
    command = ["generate", "--prompt", "hi", "--model", chat, "--max-tokens", "2", "--prompt-cache", tmp_path / "kept"]
    for dtype, notes, cached in (("fp32", 0, b""), ("bf16", 1, b""), ("bf16", 0, b"of them cached")):
        result = here(*command, "--verbose", "--dtype", dtype)
        assert result.returncode == 0
        assert result.stderr.count(b"is not used: it is of another model") == notes
        assert cached in result.stderr


def test_a_file_of_something_else_is_left_alone(chat, tmp_path):
    (tmp_path / "notes.txt").write_text("eggs, flour, butter")
    result = here("generate", "--prompt", "hi", "--model", chat, "--prompt-cache", tmp_path / "notes.txt")
    assert result.returncode == 2
    assert b"notes.txt is not a prompt cache" in result.stderr
    assert (tmp_path / "notes.txt").read_text() == "eggs, flour, butter"


def test_bits_of_the_cache():
    command = ["generate", "--prompt", "hi", "--model", "demo", "--max-tokens", "9", "--temp", "0"]
    assert here(*command, "--kv-bits", "8").stdout == here(*command).stdout
    refused = here(*command, "--kv-bits", "3")
    assert refused.returncode == 2
    assert refused.stderr == b"error: --kv-bits is 3; expected 8 or 4, or leave it out for an unquantized cache\n"


# --- memory


def test_a_model_that_does_not_fit_the_budget_is_refused(chat):
    result = here("generate", "--prompt", "hi", "--model", chat, "--memory", "100KB")
    assert result.returncode == 1
    assert b"the memory budget is 0.10 MB" in result.stderr


def test_a_reply_that_does_not_fit_the_budget_is_refused(chat):
    result = here("generate", "--prompt", "hi", "--model", chat, "--memory", "2MB", "--max-tokens", "9000")
    assert result.returncode == 1
    assert b"a reply of 9000 need" in result.stderr


def test_an_answer_bound_to_a_schema_or_a_pattern(tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["yes", "no"]}')
    ask = ["generate", "--model", "demo", "--no-think", "--temp", "0", "--max-tokens", "20"]
    assert here(*ask, "--prompt", "hi", "--json-schema", schema).stdout in (b'"yes"\n', b'"no"\n')
    assert re.fullmatch(rb"4[0-9]\n", here(*ask, "--prompt", "hi", "--regex", "4[0-9]").stdout)
    for line in ({"json_schema": {"const": None}}, {"regex": "null"}):
        result = here(*ask, "--prompts", "-", input=json.dumps({"prompt": "hi", **line}).encode())
        assert json.loads(result.stdout)["text"] == "null"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json-schema", "{folder}/none"], rb"--json-schema .*none cannot be read \(No such file"),
        (["--json-schema", "{folder}/bad"], rb"--json-schema .*bad is not JSON"),
        (["--json-schema", "{folder}/odd"], rb'has "uniqueItems", which a grammar cannot enforce'),
        (["--json-schema", "{folder}/odd", "--regex", "a"], rb"--json-schema and --regex both bind the answer"),
        (["--regex", "a", "--stop", "b"], rb"a stop string would end the reply before its grammar is complete"),
        (["--regex", "a", "--prefill", "b"], rb"a grammar binds a whole answer"),
        (["--regex", ""], rb"--regex is empty"),
    ],
)
def test_a_grammar_that_cannot_be_is_an_error_of_one_line(tmp_path, options, message):
    (tmp_path / "bad").write_text("{")
    (tmp_path / "odd").write_text('{"uniqueItems": true}')
    words = [word.format(folder=tmp_path) for word in options]
    result = here("generate", "--model", "demo", "--prompt", "hi", *words)
    assert result.returncode == 2
    assert re.search(message, result.stderr)
    assert result.stderr.count(b"\n") == 1


# --- how a reply ended


def cut(*options):
    """stdout and stderr of the demo, which thinks first."""
    result = here("generate", "--prompt", "What is 17 + 25?", "--model", "demo", "--temp", "0", *options)
    return result.stdout.decode(), result.stderr.decode().splitlines()


def test_a_reply_that_was_cut_in_its_thinking_does_not_look_finished():
    stdout, (note, _) = cut("--max-tokens", "5")
    assert stdout.startswith("<think>\n")
    assert "</think>" not in stdout
    assert note == (
        "note: the reply was cut at its limit of 5 tokens, inside its thinking; "
        "raise --max-tokens, or give --think-budget or --no-think"
    )


def test_a_reply_that_was_cut_later_says_so():
    stdout, (note, _) = cut("--max-tokens", "4", "--no-think")
    assert "<think>" not in stdout
    assert note == "note: the reply was cut at its limit of 4 tokens; raise --max-tokens"


def test_a_whole_reply_has_both_tags_and_no_note():
    stdout, (statistics,) = cut()
    assert stdout.startswith("<think>\n")
    assert "\n</think>\n\n17 + 25 = 42." in stdout
    assert "tok/s" in statistics


@pytest.mark.parametrize(
    ("costs", "reason"),
    [
        (COST_CPU, "a guess would cost 100% of the model's own token"),
        (ROW_BY_ROW, "here a pass over several tokens takes as long as several passes"),
    ],
    ids=["a draft as large as the model", "no fast BLAS"],
)
def test_a_draft_that_saves_no_time_says_why(costs, reason, chat, monkeypatch):
    monkeypatch.setattr(speculative, "pass_costs", lambda model: costs)
    result = here("generate", "--prompt", "hi", "--model", chat, "--max-tokens", "2", "--draft", chat)
    assert f"note: --draft makes no guesses: {reason}".encode() in result.stderr


def test_the_notes_fit_a_terminal():
    with Terminal("generate", "--prompt", "hi", "--model", "demo", "--temp", "0", COLUMNS="80") as terminal:
        assert terminal.end() == 0
    _, empty, statistics, end = terminal.shown.split("\r\n")[-4:]
    assert (empty, end) == ("", "")
    assert re.fullmatch(r"\x1b\[2m\d+ tokens, [\d.]+ tok/s, first after \d\.\d\d s\x1b\[0m", statistics)
    assert len(statistics) < 80


def test_ctrl_z_leaves_the_terminal_clean():
    """Stopped in dimmed text, the shell's prompt must not be dimmed; after `fg` the text is dimmed again."""
    words = ["generate", "--prompt", "What is 17 + 25?", "--model", "demo", "--temp", "0"]
    with Terminal(*words) as terminal:
        terminal.expect("17 + ")
        terminal.type("\x1a")
        _, status = os.waitpid(terminal.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        terminal.expect("^Z")
        terminal.expect("\n")
        shown = terminal.shown
        os.kill(terminal.process.pid, signal.SIGCONT)
        assert terminal.end() == 0
    assert styles(shown)[-1] == "\x1b[0m"
    assert styles(terminal.shown[len(shown) :])[0] == "\x1b[2m"


def styles(shown):
    return re.findall(r"\x1b\[[02]m", shown)


# Adapters


def test_an_adapter_changes_the_reply_and_is_named(chat, tmp_path):
    adapter = write_peft(tmp_path / "adapter")
    weights = random_weights({**TINY, "vocab_size": VOCABULARY})
    for name, delta in peft_deltas(adapter).items():
        weights[name] += 1.5 * delta
    merged = write_tokenizer(
        write_checkpoint(tmp_path / "merged", weights=weights, vocab_size=VOCABULARY, eos_token_id=258)
    )
    options = ("generate", "--prompt", "hi", "--temp", "0", "--max-tokens", "12", "--json")
    plain, expected = (json.loads(here(*options, "--model", model).stdout) for model in (chat, merged))
    given = ("--adapter", adapter, "--adapter", f"{adapter}=0.5")
    reply = json.loads(here(*options, "--model", chat, *given).stdout)
    assert reply["tokens"] == expected["tokens"] != plain["tokens"]
    assert reply["adapters"] == [str(adapter), f"{adapter}=0.5"]


def test_keys_and_values_of_the_base_are_not_used_with_an_adapter(chat, tmp_path):
    options = (
        "generate",
        "--prompt",
        "hi" * 200,
        "--model",
        chat,
        "--max-tokens",
        "4",
        "--json",
        "--cache-dir",
        tmp_path,
    )
    with_adapter = (*options, "--adapter", write_peft(tmp_path / "adapter"))
    cached = [json.loads(here(*words).stdout)["cached_tokens"] for words in (options, with_adapter, with_adapter)]
    assert cached[:2] == [0, 0]
    assert cached[2] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: f"{folder}=x", "expected a number"),
        (lambda folder: "", "--adapter is empty"),
        (lambda folder: folder.parent, "has no adapter_config.json"),
        (lambda folder: folder / "none", "there is no folder"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_refused_before_the_weights_are_read(change, message, chat, tmp_path):
    given = change(write_peft(tmp_path / "adapter"))
    result = here("generate", "--prompt", "hi", "--model", chat, "--adapter", given)
    assert result.returncode in (1, 2)
    assert message in result.stderr.decode()
    assert len(result.stderr.splitlines()) == 1


def test_an_adapter_as_the_model_says_what_to_run(tmp_path):
    folder = write_peft(tmp_path / "adapter")
    result = here("generate", "--prompt", "hi", "--model", folder)
    assert result.stderr.decode() == (
        f"error: {folder} is a PEFT LoRA adapter of rank 4 for Qwen/Qwen3-0.6B, not a model; give its base as the "
        f"model and this as the adapter: mlx-qwen3 chat Qwen/Qwen3-0.6B --adapter {folder}\n"
    )


def test_the_budget_counts_an_adapter(chat, tmp_path):
    adapter = write_peft(tmp_path / "adapter", rank=400)  # 2.9 MB, and the weights have 0.28 MB
    options = ("generate", "--prompt", "hi", "--model", chat, "--max-tokens", "1", "--memory", "2.5M")
    assert here(*options).returncode == 0
    assert here(*options, "--adapter", adapter).stderr.startswith(b"error: the weights take 3.")


def opened(folder, **changes):
    """What generate opens, before it loads the weights."""
    options = {field.name: None for field in fields(ModelOptions)} | {"source": str(folder), "adapters": ()}
    return Opened(ModelOptions(**options | changes))


def test_weights_are_begun_and_their_errors_left_for_later(chat, tmp_path):
    assert opened(chat)._loading is not None
    broken = shutil.copytree(chat, tmp_path / "broken")
    os.truncate(broken / "model.safetensors", 100)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        opened(broken).load()
    (broken / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json does not exist"):  # first, as if weights came later
        opened(broken)


@pytest.mark.parametrize("begun", [True, False])
def test_weights_that_were_begun_in_another_form_are_read_again(tmp_path, begun):
    """A long request can leave no room for unpacked weights, which is known only after they were begun."""
    folder = write_tokenizer(write_packed(tmp_path, AFFINE_4, vocab_size=VOCABULARY))
    model = opened(folder)
    model._loading.unpack = begun
    model.options = replace(model.options, weights="packed" if begun else "unpacked")
    loaded, _ = model.load()
    assert loaded.unpacked != begun
