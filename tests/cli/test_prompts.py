"""`generate --prompts`: one JSON line for each prompt, in order."""

import json

import pytest
from checkpoints import VOCABULARY, write_checkpoint, write_tokenizer
from click.testing import CliRunner

from mlx_qwen3.cli.app import cli
from mlx_qwen3.engine import engine as engines
from mlx_qwen3.errors import HealthError


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return write_tokenizer(write_checkpoint(tmp_path_factory.mktemp("chat"), vocab_size=VOCABULARY, eos_token_id=258))


def run(chat, *options, stdin=None):
    result = CliRunner().invoke(cli, ["generate", "--model", str(chat), *options], input=stdin)
    return result.exit_code, result.stdout, result.stderr


def test_one_line_for_each_prompt_in_order(chat, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('hi\n\n{"prompt": "hello", "id": "b", "max_tokens": 3}\n{"prompt": "x", "id": 7}\n')
    code, stdout, stderr = run(chat, "--prompts", str(file), "--max-tokens", "9", "--seed", "1", "--rows", "2")
    found = [json.loads(line) for line in stdout.splitlines()]
    assert code == 0
    assert [(line["index"], line.get("id")) for line in found] == [(0, None), (1, "b"), (2, 7)]
    assert [line["generation_tokens"] for line in found] == [9, 3, 9]
    assert list(found[1]) == "index id text thinking finish_reason prompt_tokens generation_tokens".split()
    assert stderr.startswith("3 prompts | 21 generated")
    alone = json.loads(run(chat, "--prompt", "hi", "--max-tokens", "9", "--seed", "1", "--json")[1])
    assert {key: alone[key] for key in ("text", "thinking", "prompt_tokens")}.items() <= found[0].items()


def test_prompts_from_standard_input(chat):
    code, stdout, _ = run(chat, "--prompts", "-", "--max-tokens", "2", stdin="a\nb\n")
    assert (code, len(stdout.splitlines())) == (0, 2)


def test_a_prompt_that_fails_has_its_error_and_the_code_is_1(chat, monkeypatch):
    submit, seen = engines.Engine.submit, []

    def failing(engine, request):
        seen.append(request)
        if len(seen) == 2:
            raise HealthError("the weights are broken")
        return submit(engine, request)

    monkeypatch.setattr(engines.Engine, "submit", failing)
    code, stdout, stderr = run(chat, "--prompts", "-", "--max-tokens", "2", stdin='a\n{"prompt": "b", "id": 1}\nc\n')
    assert code == 1
    assert json.loads(stdout.splitlines()[1]) == {"index": 1, "id": 1, "error": "the weights are broken"}
    assert json.loads(stdout.splitlines()[2])["generation_tokens"] == 2
    assert "3 prompts, 1 failed" in stderr


REFUSED = {
    "both": (["--prompt", "a", "--prompts", "-"], "--prompt does not go with --prompts; drop one of them"),
    "json": (["--prompts", "-", "--json"], "--json does not go with --prompts, which writes JSON anyway"),
    "prefill": (["--prompts", "-", "--prefill", "x"], "--prefill does not go with --prompts"),
    "raw": (["--prompts", "-", "--raw"], "--raw does not go with --prompts"),
    "rows alone": (["--prompt", "a", "--rows", "2"], "--rows belongs to --prompts"),
    "no rows": (["--prompts", "-", "--rows", "0"], "--rows is 0; expected 1 or more"),
    "no file": (["--prompts", "nowhere.txt"], "nowhere.txt cannot be read (No such file or directory)"),
    "a folder": (["--prompts", "."], ". is a folder; give a file with a prompt on each line"),
    "empty": (["--prompts", "-"], "standard input is empty; write the prompt to it, or give --prompts FILE"),
    "budget": (["--prompt", "a", "--no-think", "--think-budget", "3"], "--think-budget limits the thinking"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_options_that_make_no_sense_are_refused(chat, options, message):
    code, stdout, stderr = run(chat, *options)
    assert (code, stdout) == (2, "")
    assert message in stderr
    assert stderr.count("\n") == 1


def test_a_wrong_line_is_refused_before_the_weights_are_read(chat, monkeypatch):
    monkeypatch.setattr("mlx_qwen3.model.load.load_model", lambda *_: 1 / 0)
    code, stdout, stderr = run(chat, "--prompts", "-", stdin='hi\n{"prompt": 1}\n')
    assert (code, stdout) == (1, "")
    assert stderr == "error: standard input, line 2: prompt is 1; expected a text\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; expected"),
        ({"x": 1}, "known are id, prompt, messages, system, max_tokens, thinking, thinking_budget, stop"),
        ({"max_tokens": 10**9}, "set max_tokens to"),
    ],
)
def test_errors_of_a_line_name_its_keys_and_not_options(chat, line, message):
    code, _, stderr = run(chat, "--prompts", "-", stdin=json.dumps({"prompt": "a", **line}))
    assert code > 0
    assert stderr.startswith("error: standard input, line 1: ")
    assert message in stderr
    assert "--" not in stderr


def test_guesses_for_a_file_change_no_token(chat):
    lines, options = "hello\nhello again\n", ("--prompts", "-", "--temp", "0", "--max-tokens", "20", "--rows", "1")
    plain = run(chat, *options, "--no-lookup", stdin=lines)
    for guesser in (["--lookup"], ["--draft", str(chat)]):
        code, stdout, _ = run(chat, *options, *guesser, stdin=lines)
        assert (code, stdout) == (0, plain[1])


def test_guesses_beside_the_grammar_of_a_line_change_nothing(chat):
    lines = 'a\n{"prompt": "b", "regex": "(xy){9}"}\n'
    options = ("--prompts", "-", "--temp", "0", "--max-tokens", "40")
    said = [run(chat, *options, guesses, stdin=lines) for guesses in ("--lookup", "--no-lookup")]
    assert [code for code, _, _ in said] == [0, 0]
    assert said[0][1] == said[1][1]
    assert "xy" * 9 in said[0][1]


def test_a_thinking_budget(chat):
    """A prompt that opens the block: the first token after the budget begins the closing text."""
    template = "{{ messages[0].content }}<think>\n"
    options = ["--chat-template", template, "--temp", "0", "--max-tokens", "40", "--json"]
    plain, short = (
        json.loads(run(chat, "--prompt", "a", *options, *more)[1]) for more in ([], ["--think-budget", "4"])
    )
    assert short["tokens"][:4] == plain["tokens"][:4]
    assert bytes(short["tokens"][4:17]) == b"\n\nConsidering"
