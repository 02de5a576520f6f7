"""A conversation: what a turn asks for, what is kept, undone, saved and refused."""

import json

import pytest
from checkpoints import VOCABULARY, write_checkpoint, write_tokenizer

from mlx_qwen3.engine.reply import Result
from mlx_qwen3.engine.session import Session, Settings
from mlx_qwen3.errors import OutputError, PromptError, Qwen3Error, UsageError
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.text.tokenizer import Tokenizer

CONTEXT = 200


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = write_checkpoint(
        tmp_path_factory.mktemp("chat"), vocab_size=VOCABULARY, eos_token_id=258, max_position_embeddings=CONTEXT
    )
    checkpoint = Checkpoint(write_tokenizer(folder))
    return checkpoint.config, Tokenizer(checkpoint)


@pytest.fixture
def session(parts):
    return Session(*parts)


def say(session, text, answer, thinking=""):
    request = session.request(text)
    result = Result(answer, thinking, prompt_tokens=len(request.ids), generation_tokens=len(answer))
    session.keep(text, result)


def test_a_turn_holds_all_that_was_said(session, parts):
    session.change("system", "Be brief.")
    say(session, "a", "b", "hm")
    ids = session.request("c").ids
    assert parts[1].decode(ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )
    assert session.messages[1] == {"role": "assistant", "content": "b", "reasoning_content": "hm"}
    assert session.turns == 1


def test_settings_reach_the_request(session):
    for name, value in {"temperature": 0.3, "top_k": 5, "seed": 9, "max_tokens": 12, "thinking_budget": 4}.items():
        session.change(name, value)
    request = session.request("a")
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.seed) == (0.3, 5, 9)
    assert (request.max_tokens, request.thinking_budget) == (12, 4)
    session.change("thinking", False)
    assert session.request("a").thinking_budget is None
    session.change("temperature", None)
    assert session.request("a").sampling.temperature == 0.7  # Qwen's value without thinking
    assert session.request("a").sampling.top_k == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1), ("top_k", 1.5), ("max_tokens", 0), ("thinking_budget", -1), ("system", 5), ("thinking", 1)],
)
def test_a_wrong_setting_is_refused_and_nothing_changes(session, name, value):
    before = session.settings
    with pytest.raises(UsageError, match=name):
        session.change(name, value)
    assert session.settings is before


def test_undo_drops_a_turn(session):
    assert session.undo() is None
    say(session, "a", "b")
    used = session.used
    say(session, "c", "d")
    assert session.undo() == "c"
    assert [message["content"] for message in session.messages] == ["a", "b"]
    assert abs(session.used - used) <= 40  # with the tags of the template
    assert session.undo() == "a"
    assert (session.messages, session.used) == ([], 0)


def test_the_end_of_the_context_is_announced_and_a_turn_that_does_not_fit_is_refused(session):
    assert session.warning(session.request("a")) is None
    say(session, "a" * 120, "b")
    request = session.request("c")
    assert 160 <= len(request.ids) < CONTEXT
    assert request.max_tokens == CONTEXT - len(request.ids)
    warning = session.warning(request)
    assert f"takes {len(request.ids)} of 200 tokens" in warning
    assert f"is cut after {request.max_tokens}" in warning
    before = list(session.messages)
    with pytest.raises(PromptError, match="fill the context of 200"):
        session.request("c" * 100)
    assert session.messages == before


def test_a_limit_larger_than_the_room_is_cut(session):
    session.change("max_tokens", 5000)
    request = session.request("a")
    assert len(request.ids) + request.max_tokens == CONTEXT


def test_saved_and_loaded(session, parts, tmp_path):
    session.change("system", "Kurz, 简短.")
    session.change("temperature", 0.5)
    say(session, "a", "b", "hm")
    file = tmp_path / "talk.json"
    session.save(file, "demo")
    session.save(file, "demo")  # a saved conversation may be replaced
    assert json.loads(file.read_text())["model"] == "demo"
    assert [path.name for path in tmp_path.iterdir()] == ["talk.json"]
    other = Session(*parts)
    other.load(file)
    assert (other.messages, other.settings) == (session.messages, session.settings)
    assert other.used > 0
    assert other.request("c").ids == session.request("c").ids


def test_save_replaces_no_other_file(session, tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(OutputError, match="exists and is not a saved conversation"):
        session.save(notes, "demo")
    assert notes.read_text() == "mine"
    with pytest.raises(OutputError):
        session.save(tmp_path / "nowhere" / "x.json", "demo")


GOOD = {"format": "mlx-qwen3 chat 1", "settings": {}, "messages": []}
BAD = {
    "no JSON": "{",
    "deep": "[" * 100_000,
    "bytes": b"\xff\xfe",
    "a list": "[]",
    "another format": json.dumps({**GOOD, "format": "x"}),
    "no settings": json.dumps({**GOOD, "settings": None}),
    "unknown setting": json.dumps({**GOOD, "settings": {"x": 1}}),
    "unknown sampling": json.dumps({**GOOD, "settings": {"sampling": {"x": 1}}}),
    "wrong sampling": json.dumps({**GOOD, "settings": {"sampling": {"top_p": 7}}}),
    "sampling list": json.dumps({**GOOD, "settings": {"sampling": [1]}}),
    "no messages": json.dumps({**GOOD, "messages": {}}),
    "no role": json.dumps({**GOOD, "messages": [{"content": "x"}]}),
    "a system message": json.dumps({**GOOD, "messages": [{"role": "system", "content": "x"}]}),
    "no text": json.dumps({**GOOD, "messages": [{"role": "user", "content": 5}]}),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_and_nothing_changes(session, tmp_path, content):
    say(session, "a", "b")
    before = list(session.messages), session.settings, session.used
    file = tmp_path / "bad.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Qwen3Error, match=r"bad\.json"):
        session.load(file)
    assert (session.messages, session.settings, session.used) == before


def test_a_file_that_is_not_there(session, tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(PromptError, match="is not a file"):
            session.load(path)


def test_settings_of_the_command_line_are_checked(parts):
    with pytest.raises(UsageError, match="top_p is 3"):
        Session(*parts, Settings(sampling={"top_p": 3}))
