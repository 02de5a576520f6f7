"""Tokens against transformers' generate; replies by scripted tokens, where the text must be known."""

import inspect
import json
import shutil
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy
from checkpoints import TINY, VOCABULARY, YARN, random_weights, write_checkpoint, write_tokenizer

from mlx_qwen3.engine import batch
from mlx_qwen3.engine import reply as generation
from mlx_qwen3.engine.decode import decode, generate_batch
from mlx_qwen3.engine.reply import generate, stream
from mlx_qwen3.engine.request import ReplyOptions, prepare
from mlx_qwen3.engine.runner import prefill
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.files.hub import DEMO
from mlx_qwen3.model import kernels
from mlx_qwen3.model.load import load_model
from mlx_qwen3.model.rope import RoPE
from mlx_qwen3.text.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """(model, tokenizer) of a checkpoint with random weights."""
    folder = write_checkpoint(tmp_path_factory.mktemp("chat"), vocab_size=VOCABULARY, eos_token_id=258)
    return load_model(write_tokenizer(folder), "fp32"), Tokenizer(folder)


def prompts(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, TINY["vocab_size"], length).tolist() for length in lengths]


def transformers_greedy(model, rows, **options):
    """64 tokens for each row, from one left-padded batch."""
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    settings = {"max_new_tokens": 64, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(ids, attention_mask=mask, **settings, **options)[:, longest:].tolist()


@pytest.fixture(params=[None, YARN], ids=["default", "yarn"])
def lively(request, tmp_path):
    """A checkpoint whose greedy replies wander: untied, since a tied one with random weights repeats one token."""
    return write_checkpoint(
        tmp_path / "model", rope_scaling=request.param, num_hidden_layers=3, tie_word_embeddings=False
    )


LENGTHS = {"short": (12,), "700 tokens": (700,), "batch of 3": (3, 41, 150)}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_greedy_continuation_equals_transformers(lengths, lively, transformers_model):
    rows = prompts(*lengths)
    replies = generate_batch(load_model(lively, "fp32"), rows, max_tokens=64)
    assert min(len(set(reply)) for reply in replies) >= 8, "a reply that repeats itself proves nothing"
    assert replies == transformers_greedy(transformers_model(lively), rows)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("mistake", ["shifted positions", "frozen positions", "forgotten values"])
def test_mistakes_in_decode_change_the_continuation(lengths, mistake, lively, monkeypatch):
    """That the comparison above can fail."""
    rows = prompts(*lengths)
    right = generate_batch(load_model(lively, "fp32"), rows, max_tokens=64)
    turn, attend, prompt = RoPE.__call__, kernels.attend, max(lengths)
    if mistake == "shifted positions":
        monkeypatch.setattr(RoPE, "__call__", lambda r, p: turn(r, p + (7 if p.shape[1] == 1 else 0)))
    elif mistake == "frozen positions":
        monkeypatch.setattr(RoPE, "__call__", lambda r, p: turn(r, mx.minimum(p, prompt)))
    else:
        monkeypatch.setattr(kernels, "attend", lambda q, k, v, *rest: attend(q, k, 0 * v, *rest))
    assert generate_batch(load_model(lively, "fp32"), rows, max_tokens=64) != right


def test_greedy_with_a_repetition_penalty_equals_transformers(lively, transformers_model):
    rows, params = prompts(9, 30), SamplingParams(temperature=0, repetition_penalty=1.3)
    ours = generate_batch(load_model(lively, "fp32"), rows, max_tokens=64, sampling=params)
    for row, reply in zip(rows, ours, strict=True):  # alone: transformers counts the padding as seen
        assert [reply] == transformers_greedy(transformers_model(lively), [row], repetition_penalty=1.3)
        assert len(set(reply)) > 30


def fill(cache, layer, kv):
    """Write keys and values (2, B, K, L, D) of one layer to a cache whose `end` is moved afterwards."""
    view = cache.view(kv.shape[3])
    view.attend(layer, mx.zeros((kv.shape[1], kv.shape[2], 1, kv.shape[4])), kv, 1.0)
    cache.buffers = view.buffers
    mx.eval(cache.buffers)


@pytest.mark.parametrize("past", [1_000, 8_000, 40_000])
def test_far_positions_after_a_long_past_equal_transformers(past, lively, transformers_model):
    torch = pytest.importorskip("torch")
    cache_class = pytest.importorskip("transformers").DynamicCache
    model, reference, ids = load_model(lively, "fp32"), transformers_model(lively), np.array(prompts(12))
    rng = np.random.default_rng(past)
    cache, theirs = model.make_cache(), cache_class(config=reference.config)
    # transformers caches keys that YaRN has scaled; ours puts its factor into the scores.
    factor = model.config.attention_factor
    for layer in range(3):
        keys, values = rng.normal(size=(2, 1, 2, past, 20)).astype(np.float32)
        fill(cache, layer, mx.stack([mx.array(keys / factor), mx.array(values)]))
        theirs.update(torch.tensor(keys), torch.tensor(values), layer)
    cache.end = past
    ours = as_numpy(model(mx.array(ids), cache))
    with torch.no_grad():
        expected = reference(torch.tensor(ids), past_key_values=theirs).logits.numpy()
    assert np.abs(ours - expected).max() < 1e-4  # measured 2e-5 at 40,000: a frequency's last place, 40,000-fold


def test_every_step_draws_anew(chat, monkeypatch):
    model, _ = chat
    monkeypatch.setattr(batch, "decode_step", lambda _: lambda tokens, cache: mx.zeros((1, VOCABULARY)))
    flat = SamplingParams(1.0, 0, 1.0, seed=1)
    [reply] = generate_batch(model, prompts(3), max_tokens=50, sampling=flat, lookup=False)
    assert len(set(reply)) > 30


def test_prompt_ids_of_padding_rows_do_no_harm(chat):
    """They are in the vocabulary of the model, not in that of the tokenizer."""
    reply = generate(*chat, [300, 306, 5], max_tokens=5, sampling=SamplingParams(0, repetition_penalty=1.2))
    assert reply.generation_tokens == 5


@pytest.mark.parametrize("chunk", [1, 5, 36, 37, 100])
def test_prefill_in_chunks_gives_the_logits_of_the_whole(tiny, ids, chunk):
    model = load_model(tiny, "fp32")
    cache = model.make_cache(2)
    last = prefill(model, mx.array(ids), cache, chunk)
    assert cache.end == 37
    assert last.shape == (2, TINY["vocab_size"])
    assert np.abs(as_numpy(last) - as_numpy(model(mx.array(ids)))[:, -1]).max() < 2e-5


def test_a_prompt_is_one_pass_and_asks_for_one_row_of_logits(chat, monkeypatch):
    model, _ = chat
    passes, projected = [], []
    hidden, logits = type(model).hidden, type(model).logits
    monkeypatch.setattr(type(model), "hidden", lambda m, ids, c: passes.append(ids.shape) or hidden(m, ids, c))
    monkeypatch.setattr(type(model), "logits", lambda m, h, *rest: projected.append(h.shape) or logits(m, h, *rest))
    generate_batch(model, prompts(50), max_tokens=3)
    assert passes == [(1, 50)]  # and then steps
    assert projected == [(1, 48)] * 3


def test_rows_of_a_batch_are_the_rows_alone(chat):
    model, _ = chat
    rows = prompts(1, 20, 33)
    assert generate_batch(model, rows, max_tokens=20) == [
        generate_batch(model, [row], max_tokens=20)[0] for row in rows
    ]


@pytest.mark.parametrize("form", [np.array, mx.array, lambda row: [np.int64(token) for token in row], tuple])
def test_rows_may_be_arrays(chat, form):
    rows = prompts(4, 9)
    expected = generate_batch(chat[0], rows, max_tokens=3)
    assert generate_batch(chat[0], [form(row) for row in rows], max_tokens=3) == expected


def test_padding_rows_of_the_embedding_are_never_chosen(tmp_path):
    config = {**TINY, "vocab_size": VOCABULARY}
    weights = random_weights(config)
    weights["model.embed_tokens.weight"][261:] *= 100  # they would win almost always
    folder = write_tokenizer(write_checkpoint(tmp_path, config, weights))
    model, tokenizer = load_model(folder), Tokenizer(folder)
    assert tokenizer.size == 261
    assert max(generate_batch(model, prompts(5), max_tokens=20)[0]) >= 261
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


def test_decode_without_a_limit_goes_on_to_the_end_of_the_context(tmp_path):
    model = load_model(write_checkpoint(tmp_path, max_position_embeddings=20), "fp32")
    assert len(list(decode(model, prompts(6)[0], GREEDY))) == 14


def test_nothing_is_computed_after_an_end_token(chat, monkeypatch):
    """The first token comes with the prompt, each other one by a step."""
    model, [prompt] = chat[0], prompts(9)
    tokens = list(decode(model, prompt, GREEDY, max_tokens=20))
    end = max(i for i in range(20) if tokens[i] not in tokens[:i])
    steps, hand_over = [], mx.async_eval
    monkeypatch.setattr(mx, "async_eval", lambda array: steps.append(array) or hand_over(array))
    assert list(decode(model, prompt, GREEDY, max_tokens=20, stop_ids={tokens[end]})) == tokens[: end + 1]
    assert len(steps) == end


def test_each_row_of_a_batch_ends_by_itself(chat):
    model, rows = chat[0], prompts(9, 30)
    replies = generate_batch(model, rows, max_tokens=20)
    stop = {replies[0][4], replies[1][6]}
    expected = [next(i for i, token in enumerate(reply) if token in stop) for reply in replies]
    assert [len(reply) for reply in generate_batch(model, rows, max_tokens=20, stop_ids=stop)] == expected


def attend(tokens, cache):
    """A step of attention alone: MLX lets a host run ahead by few operations only, and one of Qwen3 has more."""
    view = cache.view(1)
    kv = mx.ones((2, 1, 8, 1, 128)) * tokens.astype(mx.float32)
    out = view.attend(0, kv[0], kv, 1.0)
    cache.commit(view.buffers, 1)
    return out[:, 0, 0]


@pytest.mark.parametrize("replay_after", [0, 64], ids=["compiled", "eager"])
@pytest.mark.parametrize(
    ("make_step", "kv_bits", "size"),
    [(batch.decode_step, None, 8192), (batch.decode_step, 8, 2304), (lambda _: attend, None, 8192)],
    ids=["Qwen3", "Qwen3, 8 bits", "attention"],
)
def test_decode_holds_the_cache_once(make_step, kv_bits, size, replay_after, tmp_path, monkeypatch):
    """A step that is handed over while the one before it is unfinished copies the cache."""
    wide = {"num_hidden_layers": 1, "num_key_value_heads": 8, "num_attention_heads": 8, "head_dim": 128}
    tokens = 131_072 - 16  # of `size` bytes: a cache of 1 GB, or of 0.3 GB
    model = load_model(write_checkpoint(tmp_path, **wide, max_position_embeddings=2 * tokens), "fp32")
    cache = model.make_cache(kv_bits=kv_bits)
    fill(cache, 0, mx.zeros((2, 1, 8, tokens, 128)))
    cache.end = tokens
    monkeypatch.setattr(model, "make_cache", lambda *_: cache)
    monkeypatch.setattr(batch, "decode_step", make_step)
    monkeypatch.setattr(kernels, "replay_after", lambda: replay_after)
    steps = decode(model, [5] * (tokens + 1), GREEDY, max_tokens=6)
    next(steps)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    assert len(list(steps)) == 5
    assert cache.nbytes == pytest.approx(131_072 * size, rel=0.01)
    assert mx.get_peak_memory() - before < 0.05 * cache.nbytes  # measured 0.004, and 0.04 of 8 bits: the scores


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


def test_nothing_behind_a_stop_string_comes_back_at_the_limit(chat, monkeypatch):
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
    assert set(names[0]) == {"model", "tokenizer", "prompt", "draft", "lookup", *ReplyOptions.__dataclass_fields__}
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
    }
    assert set(given) == set(ReplyOptions.__dataclass_fields__)
    seen = []
    request = prepare(chat[0].config, chat[1], "?", ReplyOptions(max_tokens=1))
    monkeypatch.setattr(generation, "prepare", lambda *arguments: seen.append(arguments[-1]) or request)
    generate(*chat, "?", **given)
    list(stream(*chat, "?", **given))
    assert seen == [ReplyOptions(**given)] * 2


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
