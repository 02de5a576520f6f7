"""The tokenizer against transformers: on the real Qwen3 files, and on a small byte-level one made here."""

import json
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from mlx_qwen3.errors import CheckpointError, ConfigError, PromptError
from mlx_qwen3.files.hub import DEMO
from mlx_qwen3.text.tokenizer import StreamDecoder, Tokenizer

EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ROWS = 151936  # of the embedding; ids from 151669 up are padding

TEXTS = {
    "plain": "The quick brown fox can't jump over 13 lazy dogs; it's 4:15 p.m.",
    "chinese": "床前明月光，疑是地上霜。举头望明月，低头思故乡。𠮷野家、龘",
    "scripts": "안녕하세요 こんにちは مرحبا بالعالم שָׁלוֹם नमस्ते ไทย Ελληνικά Привет",
    "joiners": "👨‍👩‍👧‍👦 🏳️‍🌈 👩🏽‍🚀 ❤️‍🔥 🧑🏿‍🤝‍🧑🏻",
    "flags": "🇩🇪🇫🇷🇨🇳 🏴󠁧󠁢󠁳󠁣󠁴󠁿 1️⃣ 🫠",
    "combining": "e\u0301 é A\u030a Å \u212b ﬁ ñ n\u0303 q\u0307\u0323 한 \u1112\u1161\u11ab Zalgo\u0336\u0321\u035c",
    "code": 'def f(x: int) -> str:\n\tif x >= 10:\n\t\treturn f"{x!r:>{8}}"\n    # 注释\n\n\nx = {"a": [1, 2]}\r\n',
    "numbers": "0 007 1234567890 3.14159e-10 ٣٤٥ ½ ² Ⅷ 1,000,000.00 −5",
    "spaces": "  a   b\t\tc\n\n\nd \n e\r\n\r\nf\u00a0g\u3000h\u200bi   ",
    "special": "<|im_start|>user\nhi<|im_end|>\n<think>\nhm\n</think>\n\n<|endoftext|><tool_call>{}</tool_call>",
    "nearly special": "<|im_start| > <think <|im_END|> < think> <|im_end|><|im_end|>x<think>y",
    "bytes": "\x00\x01\x7f\u0080\ufffd\ufffda\ufeff\U0010ffff",
    "empty": "",
}

# Against transformers, on the real files

some_text = st.lists(st.one_of(st.text(max_size=12), st.sampled_from(list(TEXTS.values()))), max_size=4).map("".join)
# Half of them single bytes, which make characters only by chance
some_ids = st.lists(st.one_of(st.integers(0, 255), st.integers(0, ROWS - 1), st.integers(151643, 151669)), max_size=30)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_ids_are_those_of_transformers(qwen: Tokenizer, theirs: Any, text: str) -> None:
    assert qwen.encode(text) == theirs(text, add_special_tokens=False).input_ids


@EXAMPLES
@given(text=some_text)
def test_ids_of_any_text_are_those_of_transformers(qwen: Tokenizer, theirs: Any, text: str) -> None:
    assert qwen.encode(text) == theirs(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_decoding_gives_back_the_text_in_nfc(qwen: Tokenizer, text: str) -> None:
    assert qwen.decode(qwen.encode(text)) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_decoded_text_is_that_of_transformers(qwen: Tokenizer, theirs: Any, text: str, skip: bool) -> None:
    ids = theirs(text).input_ids
    assert qwen.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


@EXAMPLES
@given(ids=some_ids, skip=st.booleans())
def test_decoded_text_of_any_ids_is_that_of_transformers(
    qwen: Tokenizer, theirs: Any, ids: list[int], skip: bool
) -> None:
    assert qwen.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_thinking_tags_are_not_special_and_turn_marks_are(qwen: Tokenizer) -> None:
    ids = qwen.encode("<|im_start|><think>a</think><|im_end|>")
    assert [ids[0], ids[1], ids[3], ids[4]] == [151644, 151667, 151668, 151645]
    assert qwen.decode(ids, skip_special_tokens=True) == "<think>a</think>"


def test_size_and_end_of_the_real_tokenizer(qwen: Tokenizer) -> None:
    assert qwen.size == 151669
    assert qwen.stop_ids == {151645}


def test_the_real_template_switches_thinking(qwen: Tokenizer) -> None:
    assert qwen.can_switch_thinking


# Streaming


def stream(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[list[str], str]:
    decoder = StreamDecoder(tokenizer)
    return [decoder.add(i) for i in ids], decoder.flush()


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_pieces_of_every_prefix_are_its_text(qwen: Tokenizer, theirs: Any, text: str) -> None:
    ids = theirs(text).input_ids
    for end in range(len(ids) + 1):
        pieces, rest = stream(qwen, ids[:end])
        assert "".join(pieces) + rest == theirs.decode(ids[:end], skip_special_tokens=True)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_no_piece_holds_a_part_of_a_character(qwen: Tokenizer, theirs: Any, text: str) -> None:
    ids = theirs(text).input_ids
    whole = theirs.decode(ids, skip_special_tokens=True)
    pieces, _ = stream(qwen, ids)
    assert all(whole.startswith("".join(pieces[:end])) for end in range(len(ids) + 1))


@EXAMPLES
@given(ids=some_ids)
def test_pieces_of_any_ids_are_their_text(qwen: Tokenizer, theirs: Any, ids: list[int]) -> None:
    whole = theirs.decode(ids, skip_special_tokens=True)
    pieces, rest = stream(qwen, ids)
    assert "".join(pieces) + rest == whole
    assert all(whole.startswith("".join(pieces[:end])) for end in range(len(ids) + 1))


@EXAMPLES
@given(ids=some_ids)
def test_text_shows_as_soon_as_its_characters_are_complete(qwen: Tokenizer, theirs: Any, ids: list[int]) -> None:
    pieces, _ = stream(qwen, ids)
    for end in range(len(ids) + 1):
        text = theirs.decode(ids[:end], skip_special_tokens=True)
        if not text.endswith("\ufffd"):
            assert "".join(pieces[:end]) == text


@pytest.mark.parametrize("seed", range(2))
def test_bytes_at_random_stream_in_linear_time(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """12,000 tokens, most of which never become a character: at most three bytes wait, and each is decoded once."""
    demo = Tokenizer(DEMO)
    ids = range(demo.size)
    parts = [i for i in ids if len(demo.token_bytes(i)) == 1 and demo.token_bytes(i) >= b"\x80"]
    tokens = random.Random(seed).choices([*ids, *(50 * parts)], k=12_000)
    whole, fed = demo.decode(tokens, skip_special_tokens=True), []
    special, token_bytes = demo.special, demo.token_bytes
    monkeypatch.setattr(demo, "token_bytes", lambda i: fed.append(i) or token_bytes(i))
    monkeypatch.setattr(demo, "decode", lambda *_: pytest.fail("a stream decodes nothing twice"))
    decoder, pieces = StreamDecoder(demo), list[str]()
    for token in tokens:
        pieces.append(decoder.add(token))
        assert len(decoder.held) <= 3
        assert decoder.held.decode("utf-8", "replace") in ("", "\ufffd"), "what waits is the beginning of a character"
    assert whole.count("\ufffd") > 5000
    assert "".join(pieces) + decoder.flush() == whole
    assert fed == [token for token in tokens if token not in special]


# A small tokenizer, which needs no files

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
HI = [{"role": "user", "content": "hi"}]
END, PAD = 258, 259  # 256 bytes and two merges come before


def write_tokenizer(folder: Path, **files: Any) -> Path:
    """A byte-level tokenizer with the merges `hi` and ` hi`; `files` are JSON files by their stem."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "hi", "Ġhi"])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [("h", "i"), ("Ġ", "hi")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<end>"), AddedToken("<pad>")])
    backend.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    # What a file may ask for and a prompt must not get
    backend.post_processor = processors.TemplateProcessing(single="<end> $A <end>", special_tokens=[("<end>", END)])
    backend.enable_truncation(4)
    backend.enable_padding(length=9, pad_id=PAD, pad_token="<pad>")
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def with_template(folder: Path, template: Any) -> Tokenizer:
    return Tokenizer(write_tokenizer(folder, tokenizer_config={"chat_template": template, "eos_token": "<end>"}))


def test_nothing_is_added_cut_or_padded(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path))
    assert tokenizer.encode("hi hi hi hi hi<end>") == [256, 257, 257, 257, 257, END]
    assert tokenizer.encode("") == []


def test_text_waits_for_the_rest_of_a_character(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path))
    assert stream(tokenizer, tokenizer.encode("hié€")) == (["hi", "", "é", "", "", "€"], "")


def test_flush_shows_an_incomplete_character_once(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path))
    decoder = StreamDecoder(tokenizer)
    assert [decoder.add(i) for i in tokenizer.encode("€")[:2]] == ["", ""]
    assert [decoder.flush(), decoder.flush()] == ["\ufffd", ""]


def test_special_and_padding_ids_stream_as_nothing(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path))
    assert stream(tokenizer, [256, END, 9999, 257]) == (["hi", "", "", " hi"], "")


def test_lone_surrogate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="surrogate"):
        Tokenizer(write_tokenizer(tmp_path)).encode("a\ud800b")


def test_size_counts_added_tokens(tmp_path: Path) -> None:
    assert Tokenizer(write_tokenizer(tmp_path)).size == 262


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, set()),
        ({"generation_config": {"eos_token_id": 7}}, {7}),
        ({"generation_config": {"eos_token_id": [7, 8]}}, {7, 8}),
        ({"config": {"eos_token_id": 9}}, {9}),
        ({"tokenizer_config": {"eos_token": "<end>"}}, {END}),
        ({"tokenizer_config": {"eos_token": {"content": "<end>", "special": True}}}, {END}),
        ({"tokenizer_config": {"eos_token": "<absent>"}}, {262}),  # added, as transformers does
        ({"tokenizer_config": {"eos_token": None}, "config": {"eos_token_id": None}}, set()),
        (
            {
                "generation_config": {"eos_token_id": [7, 8]},
                "config": {"eos_token_id": [8, 9]},
                "tokenizer_config": {"eos_token": "<end>"},
            },
            {7, 8, 9, END},
        ),
    ],
)
def test_stop_ids_are_the_union_of_all_sources(tmp_path: Path, files: dict[str, Any], expected: set[int]) -> None:
    assert Tokenizer(write_tokenizer(tmp_path, **files)).stop_ids == expected


def test_stop_ids_that_are_not_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="eos_token_id is '<end>'"):
        Tokenizer(write_tokenizer(tmp_path, generation_config={"eos_token_id": "<end>"}))


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json does not exist"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b'{"version": ', b"\xff\xfe", b"[]"])
def test_broken_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (write_tokenizer(tmp_path) / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        Tokenizer(tmp_path)


# Thinking


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% if enable_thinking %}a{% endif %}", True),
        (TEMPLATE, False),
        (None, False),
        ([{"name": "default", "template": "{{ enable_thinking }}"}], True),
    ],
)
def test_thinking_can_be_switched_where_the_template_asks(tmp_path: Path, template: Any, expected: bool) -> None:
    assert with_template(tmp_path, template).can_switch_thinking == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", False),
        ("hi", False),
        ("hi<end>assistant\n", False),
        ("hi<end>assistant\n<think>\n", True),
        ("hi<end>assistant\n<think>\nSo", True),  # a raw prompt may go on inside
        ("hi<end>assistant\n<think>\n\n</think>\n\n", False),
        ("<think>a</think><think>", True),
        ("What is <think>?<end>assistant\n", False),  # a user's turn
        ("What is </think>?<end>assistant\n<think>\n", True),
        ("<thi<end>nk>", False),
    ],
)
def test_prompt_that_ends_inside_a_think_block_opens_thinking(tmp_path: Path, prompt: str, expected: bool) -> None:
    tokenizer = with_template(tmp_path, TEMPLATE)
    assert tokenizer.opens_thinking(tokenizer.encode(prompt)) == expected


@pytest.mark.parametrize("thinking", [None, True, False])
@pytest.mark.parametrize("content", ["hi", "What is <think>?"])
def test_the_real_template_opens_no_thinking(qwen: Tokenizer, content: str, thinking: bool | None) -> None:
    prompt = qwen.apply_chat_template([{"role": "user", "content": content}], enable_thinking=thinking)
    assert not qwen.opens_thinking(qwen.encode(prompt))
