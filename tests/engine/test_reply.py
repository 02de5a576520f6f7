"""Replies as text: scripted tokens, if the text must be known."""

import inspect
import json
import shutil
from types import SimpleNamespace

import pytest
from checkpoints import TINY, VOCABULARY, random_weights, write_checkpoint, write_tokenizer

from mlx_qwen3.engine import reply as generation
from mlx_qwen3.engine.decode import generate_batch
from mlx_qwen3.engine.reply import generate, stream
from mlx_qwen3.engine.request import ReplyOptions, prepare
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.engine.specs import JsonObject
from mlx_qwen3.files.hub import DEMO
from mlx_qwen3.model.load import load_model
from mlx_qwen3.text.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0)


def test_prompt_ids_of_padding_rows_do_no_harm(chat):
    """They are in the vocabulary of the model, not in that of the tokenizer."""
    reply = generate(*chat, [300, 306, 5], max_tokens=5, sampling=SamplingParams(0, repetition_penalty=1.2))
    assert reply.generation_tokens == 5


def test_padding_rows_of_the_embedding_are_never_chosen(tmp_path):
    config = {**TINY, "vocab_size": VOCABULARY}
    weights = random_weights(config)
    weights["model.embed_tokens.weight"][261:] *= 100  # they would win almost always
    folder = write_tokenizer(write_checkpoint(tmp_path, config, weights))
    model, tokenizer = load_model(folder), Tokenizer(folder)
    assert tokenizer.size == 261
    assert max(generate_batch(model, [[7, 9, 2, 4, 1]], max_tokens=20)[0]) >= 261
    for sampling in (GREEDY, SamplingParams(1.0, 0, 1.0), SamplingParams(1.0, 50, 0.9, 0.01, 1.2)):
        tokens = generate(model, tokenizer, "hi", sampling=sampling, max_tokens=30).tokens
        assert max(tokens) < 261


@pytest.mark.parametrize(
    "sampling", [SamplingParams(1.0, 0, 1.0, seed=7), SamplingParams(0.8, 20, 0.9, 0.01, 1.1, seed=7)]
)
def test_a_seed_repeats_a_reply_and_another_changes_it(chat, sampling):
    from dataclasses import replace

    first, again = (generate(*chat, "hello", sampling=sampling, max_tokens=30).tokens for _ in range(2))
    other = generate(*chat, "hello", sampling=replace(sampling, seed=8), max_tokens=30).tokens
    assert first == again != other


# Replies


def say(monkeypatch, tokens):
    """Let the model say these tokens."""
    events = SimpleNamespace(add=lambda row: None, run=lambda: ((None, token) for token in tokens))
    monkeypatch.setattr(generation, "Scheduler", lambda *_, **__: events)


def scripted(monkeypatch, tokenizer, text, end=True):
    """Let the model say `text`, then its end token."""
    tokens = tokenizer.encode(text) + ([258] if end else [])
    say(monkeypatch, tokens)
    return tokens


def test_text_and_thinking_are_told_apart(chat, monkeypatch):
    tokens = scripted(monkeypatch, chat[1], "<think>\nA carry.\n</think>\n\nIt is 42 <think>.\n")
    result = generate(*chat, "17 + 25?")
    assert (result.thinking, result.text) == ("A carry.", "It is 42 <think>.\n")
    assert (result.tokens, result.finish_reason) == (tokens, "stop")
    assert result.generation_tokens == len(tokens)
    assert result.prompt_tokens == len(
        chat[1].encode(chat[1].apply_chat_template([{"role": "user", "content": "17 + 25?"}]))
    )


def test_thinking_that_the_prompt_opens(chat, monkeypatch, tmp_path):
    folder = write_checkpoint(tmp_path, vocab_size=VOCABULARY)
    tokenizer = Tokenizer(write_tokenizer(folder, "{{ messages[0].content }}<think>\n"))
    scripted(monkeypatch, tokenizer, "hm\n</think>\n\nyes")
    result = generate(chat[0], tokenizer, "?")
    assert (result.thinking, result.text) == ("hm", "yes")


def test_a_user_who_writes_about_tags_opens_nothing(chat, monkeypatch):
    scripted(monkeypatch, chat[1], "It opens a block.")
    assert generate(*chat, "What does <think> do?").text == "It opens a block."


@pytest.mark.parametrize("thinking", [True, False])
def test_steps_join_to_the_result(chat, monkeypatch, thinking):
    scripted(monkeypatch, chat[1], "<think>\nab\n</think>\n\n" * thinking + "Grüße, 世界 👩‍👩‍👧!")
    steps = list(stream(*chat, "?"))
    assert "".join(step.text for step in steps) == "Grüße, 世界 👩‍👩‍👧!"
    assert "".join(step.thinking for step in steps).strip() == "ab" * thinking
    assert [step.finish_reason for step in steps[:-1]] == [None] * (len(steps) - 1)
    assert "\ufffd" not in "".join(step.text for step in steps)


def test_an_incomplete_character_is_shown_at_the_end_only(chat, monkeypatch):
    tokens = chat[1].encode("né")[:-1]
    say(monkeypatch, tokens)
    texts = [step.text for step in stream(*chat, "?", max_tokens=len(tokens))]
    assert texts == ["n", "\ufffd"]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "wo"], "one t"),
        ("one two", ["twofold", "z"], "one two"),
        ("<think>\na\n</think>\n\nb END c", ["END"], "b "),
        ("<think>\na\n</think>\n\nb", ["</think>"], ""),
        ("ends with sto", ["stop"], "ends with sto"),
    ],
)
def test_stop_strings_end_before_themselves(chat, monkeypatch, text, stop, expected):
    scripted(monkeypatch, chat[1], text)
    result = generate(*chat, "?", stop=stop)
    assert (result.text, result.finish_reason) == (expected, "stop")


def test_nothing_after_a_stop_string_comes_back_at_the_limit(chat, monkeypatch):
    """`</think>` is one token, so the stop string ends inside it."""
    tokens = scripted(monkeypatch, chat[1], "a</think>", end=False)
    assert generate(*chat, "?", stop="</th", max_tokens=len(tokens)).text == "a"


def test_a_reply_to_literal_content_is_one_to_other_tokens(chat):
    options = {"max_tokens": 1, "sampling": GREEDY}
    typed = "a<|im_end|>b"
    plain, literal = (generate(*chat, typed, literal_content=on, **options).prompt_tokens for on in (False, True))
    assert literal - plain == len("<|im_end|>") - 1
    assert [step.token for step in stream(*chat, typed, literal_content=True, **options)]


def test_a_stop_string_with_a_special_token_ends_where_transformers_ends(tmp_path, transformers_model):
    """On the demo with another end token, so that the end of its turn is a token like others."""
    import torch
    from transformers import AutoTokenizer

    folder = tmp_path / "demo"
    shutil.copytree(DEMO, folder)
    for name, key in (
        ("config", "eos_token_id"),
        ("generation_config", "eos_token_id"),
        ("tokenizer_config", "eos_token"),
    ):
        path = folder / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: 2500 if "id" in key else "<|endoftext|>"}))
    model, tokenizer, reference = load_model(folder, "fp32"), Tokenizer(folder), transformers_model(folder)
    ids = torch.tensor(
        [tokenizer.encode(tokenizer.apply_chat_template([{"role": "user", "content": "What is 17 + 25?"}]))]
    )
    texts = {"<|im_end|>": "17 + 25 = 42.", "42.<|im_end|>": "17 + 25 = ", " 42.": "17 + 25 ="}
    for stop, text in texts.items():
        ours = generate(model, tokenizer, "What is 17 + 25?", stop=stop, max_tokens=80, sampling=GREEDY)
        options = {"stop_strings": [stop], "tokenizer": AutoTokenizer.from_pretrained(folder), "eos_token_id": 2500}
        theirs = reference.generate(ids, max_new_tokens=80, do_sample=False, **options)[0, ids.shape[1] :].tolist()
        assert (ours.text, ours.tokens, ours.finish_reason) == (text, theirs, "stop")


def test_a_stop_string_is_never_shown_in_part(chat, monkeypatch):
    scripted(monkeypatch, chat[1], "keep STOP")
    assert "".join(step.text for step in stream(*chat, "?", stop=["STOP"])) == "keep "


@pytest.mark.parametrize("end", [258, 256])
def test_every_end_token_stops(chat, monkeypatch, end):
    [letter] = chat[1].encode("A")
    say(monkeypatch, [letter, end, letter])
    result = generate(*chat, "?")
    assert (result.text, result.tokens, result.finish_reason) == ("A", [letter, end], "stop")


def test_the_length_limit(chat):
    result = generate(*chat, "?", max_tokens=5, sampling=GREEDY)
    assert (result.finish_reason, result.generation_tokens, len(result.tokens)) == ("length", 5, 5)


def test_without_a_limit_the_context_is_it(tmp_path):
    folder = write_tokenizer(write_checkpoint(tmp_path, vocab_size=VOCABULARY, max_position_embeddings=64))
    model, tokenizer = load_model(folder), Tokenizer(folder)
    result = generate(model, tokenizer, tokenizer.encode("a" * 60), sampling=GREEDY)
    assert result.prompt_tokens + result.generation_tokens == 64


def test_measurements_are_there(chat):
    result = generate(*chat, "hello", max_tokens=5, sampling=GREEDY)
    assert min(result.ttft_s, result.prefill_tps, result.decode_tps, result.peak_memory_gb) > 0
    assert result.dtype == "float32"
    assert result.sampling["temperature"] == 0


def test_drafts_are_counted_and_change_nothing_else(chat):
    """A tied model with random weights says one token again and again."""
    options = {"max_tokens": 40, "sampling": GREEDY}
    plain, lookup = (generate(*chat, "hello", lookup=on, **options) for on in (False, True))
    assert (plain.text, plain.tokens) == (lookup.text, lookup.tokens)
    assert (plain.drafted_tokens, plain.accepted_tokens) == (0, 0)
    assert 20 < lookup.accepted_tokens <= lookup.drafted_tokens
    steps = list(stream(*chat, "hello", draft=chat[0], **options))
    assert [step.token for step in steps] == plain.tokens


def test_stream_and_generate_have_the_same_options():
    """And both hand on every one."""
    names = [list(inspect.signature(function).parameters) for function in (generate, stream)]
    assert names[0] == names[1]
    assert set(names[0]) == {
        "model",
        "tokenizer",
        "prompt",
        "draft",
        "lookup",
        "kv_bits",
        *ReplyOptions.__dataclass_fields__,
    }
    assert not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(generate).parameters.values())


def test_every_option_reaches_the_request(chat, monkeypatch):
    given = {
        "sampling": GREEDY,
        "max_tokens": 7,
        "thinking": True,
        "stop": ("a", "b"),
        "tools": [],
        "chat_template": "default",
        "template_args": {"x": 1},
        "continue_final_message": True,
        "literal_content": True,
        "thinking_budget": 5,
        "logprobs": 2,
    }
    bound = {"grammar": JsonObject()}  # which excludes some of the others
    assert {*given, *bound} == set(ReplyOptions.__dataclass_fields__)
    seen = []
    request = prepare(chat[0].config, chat[1], "?", ReplyOptions(max_tokens=1))
    monkeypatch.setattr(generation, "prepare", lambda *arguments: seen.append(arguments[-1]) or request)
    for options in (given, bound):
        generate(*chat, "?", **options)
        list(stream(*chat, "?", **options))
    assert seen == [ReplyOptions(**given)] * 2 + [ReplyOptions(**bound)] * 2


@pytest.mark.parametrize(
    ("begun", "said", "thinking", "text"),
    [
        ("There", " are two.", "", " are two."),
        ("There\n", "\n\nare two.", "", "\n\nare two."),
        ("The tag", " <think> opens", "", " <think> opens"),
        ("It is", "<think>a</think>", "", "<think>a</think>"),  # no reply begins here
        ("<think>\nSo", " a.\n</think>\n\nTwo.", " a.", "Two."),
        ("<think>\n", "\nSo\n</think>\n\nTwo.", "So", "Two."),
        ("<think>\nSo\n</think>\n\n", "Two.", "", "Two."),
        ("", "<think>\na\n</think>\n\nb", "a", "b"),
    ],
)
def test_a_continued_reply_holds_the_continuation_alone(chat, monkeypatch, begun, said, thinking, text):
    scripted(monkeypatch, chat[1], said)
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": begun}]
    result = generate(*chat, messages, continue_final_message=True)
    assert (result.thinking, result.text) == (thinking, text)
    expected = f"<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n{begun}"
    assert result.prompt_tokens == len(chat[1].encode(expected))
    joined = list(stream(*chat, messages, continue_final_message=True))
    assert "".join(step.text for step in joined) == text
