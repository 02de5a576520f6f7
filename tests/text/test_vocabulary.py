"""Where a tokenizer keeps its tokens: ids and text of generated folders against transformers."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from mlx_qwen3.errors import CheckpointError, PromptError
from mlx_qwen3.text.tokenizer import Tokenizer

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())  # 256
MERGES = [("h", "i"), ("Ġ", "hi"), ("z", "z")]
NEW = ["<new>", "<pad>", "<end>", "<think>", "</think>", "<|endoftext|>", "<a b>", "hi", "é", "[X]", "zz"]
NAMES = ["bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "image_token", "my_token"]
FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")
CLASSES = ["Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", "Unknown", None]
PARTS = [*NEW, " ", "  ", "a", "e\u0301", "\n", "b", "1", "'s", "\u212b", "你", "🧮", "<new", "zzz"]


def vocabulary(count: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(token -> id, merges) of the bytes and the first `count` merges."""
    merges = MERGES[:count]
    return {token: i for i, token in enumerate(LETTERS + ["".join(pair) for pair in merges])}, merges


def write_json(folder: Path, merges: int = 3, prefix: bool = False, regex: bool = True, *added: AddedToken) -> Path:
    backend = tokenizers.Tokenizer(models.BPE(*vocabulary(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)
    backend.decoder = decoders.ByteLevel()
    for token in added:
        backend.add_tokens([token])
    backend.save(str(folder / "tokenizer.json"))
    return folder


def write_two_files(folder: Path, count: int = 3) -> Path:
    """The older form of a tokenizer."""
    tokens, merges = vocabulary(count)
    (folder / "vocab.json").write_text(json.dumps(tokens, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def put(folder: Path, **files: Any) -> Path:
    """Write JSON files by their stem."""
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder


def theirs_of(folder: Path) -> Any:
    if not (folder / "config.json").exists():
        put(folder, config={"model_type": "qwen3"})
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)


class Maker:
    """Makes random folders, and texts for them."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def maybe(self, probability: float) -> bool:
        return self.random.random() < probability

    def flags(self) -> dict[str, bool]:
        return {name: self.maybe(0.3) for name in FLAGS}

    def token(self, marked: bool = True) -> Any:
        """A token as JSON: its text, or an object, which tokenizer_config.json marks as such."""
        text = self.random.choice(NEW)
        if self.maybe(0.6):
            return text
        return {"content": text, **self.flags()} | ({"__type": "AddedToken"} if marked else {})

    def write(self, folder: Path) -> None:
        count = self.random.choice([0, 2, 3, 3])
        is_json = self.maybe(0.75)
        if is_json:
            added = [AddedToken(text, **self.flags()) for text in self.random.sample(NEW, self.random.randint(0, 4))]
            write_json(folder, count, self.maybe(0.2), self.maybe(0.7), *added)
        else:
            write_two_files(folder, count)
        put(folder, config={"model_type": self.random.choice(["qwen3", "qwen3_moe"])})
        if self.maybe(0.85):
            put(folder, tokenizer_config=self.settings(256 + count, CLASSES if is_json else ["Qwen2Tokenizer", None]))
        if self.maybe(0.3):
            names = self.random.sample(NAMES, self.random.randint(0, 3))
            extra = {"additional_special_tokens": [self.random.choice(NEW)]} if self.maybe(0.3) else {}
            put(folder, special_tokens_map={name: self.older_token() for name in names} | extra)
        if self.maybe(0.3):
            texts = self.random.sample(NEW, self.random.randint(1, 3))
            put(folder, added_tokens={text: 256 + count + i for i, text in enumerate(texts)})

    def older_token(self) -> Any:
        token = self.token(marked=False)
        if isinstance(token, dict):
            del token["special"]
        return token

    def settings(self, size: int, classes: list[Any]) -> dict[str, Any]:
        pick = self.random.choice
        names = self.random.sample(NAMES, self.random.randint(0, 4))
        result = {name: pick([None, self.token(), self.token(), self.token()]) for name in names}
        if tokenizer_class := pick(classes):
            result["tokenizer_class"] = tokenizer_class
        if self.maybe(0.4):
            start, texts = size + pick([0, -2, 1]), self.random.sample(NEW, self.random.randint(0, 4))
            added = {str(start + i): {"content": text, **self.flags()} for i, text in enumerate(texts)}
            result["added_tokens_decoder"] = added
        if self.maybe(0.4):
            named = {name: self.token() for name in self.random.sample(["x_token", "y", "eos_token"], 2)}
            result["extra_special_tokens"] = pick([list(named.values()), named, None])
        if self.maybe(0.3):
            result["additional_special_tokens"] = [self.token() for _ in range(self.random.randint(0, 3))]
        if self.maybe(0.2):
            result["split_special_tokens"] = True
        if self.maybe(0.2):
            result["add_prefix_space"] = pick([True, False, None])
        return result

    def text(self) -> str:
        return "".join(self.random.choice(PARTS) for _ in range(self.random.randint(0, 12)))

    def ids(self) -> list[int]:
        return [self.random.choice([*range(256), *(8 * [*range(256, 275)])]) for _ in range(self.random.randint(0, 10))]


@pytest.mark.parametrize("seeds", [range(start, start + 25) for start in range(0, 150, 25)], ids=str)
def test_any_folder_reads_as_in_transformers(tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        maker = Maker(seed)
        (folder := tmp_path / str(seed)).mkdir()
        maker.write(folder)
        theirs, ours = theirs_of(folder), Tokenizer(folder)
        assert ours.special_tokens == theirs.special_tokens_map, seed
        for text in (maker.text() for _ in range(8)):
            ids = ours.encode(text)
            assert ids == theirs(text, add_special_tokens=False).input_ids, (seed, text)
            for sequence in (ids, maker.ids()):
                for skip in (False, True):
                    decoded = ours.decode(sequence, skip_special_tokens=skip)
                    assert decoded == theirs.decode(sequence, skip_special_tokens=skip), (seed, sequence)


PLACES: dict[str, dict[str, Any]] = {
    "added_tokens_decoder": {"tokenizer_config": {"added_tokens_decoder": {"259": {"content": "<scratchpad>"}}}},
    "extra_special_tokens": {"tokenizer_config": {"extra_special_tokens": ["<scratchpad>"]}},
    "extra_special_tokens by name": {"tokenizer_config": {"extra_special_tokens": {"pad": "<scratchpad>"}}},
    "additional_special_tokens": {"tokenizer_config": {"additional_special_tokens": ["<scratchpad>"]}},
    "a named token": {"tokenizer_config": {"pad_token": "<scratchpad>"}},
    "a name of its own": {"tokenizer_config": {"scratch_token": "<scratchpad>"}},
    "added_tokens.json": {"added_tokens": {"<scratchpad>": 259}},
    "special_tokens_map.json": {"special_tokens_map": {"pad_token": {"content": "<scratchpad>", "lstrip": False}}},
}


@pytest.mark.parametrize("write", [write_json, write_two_files])
@pytest.mark.parametrize("files", PLACES.values(), ids=PLACES)
def test_a_new_token_is_one_id_wherever_it_stands(tmp_path: Path, files: dict[str, Any], write: Any) -> None:
    folder = put(write(tmp_path), **files)
    ours = Tokenizer(folder)
    ids = ours.encode("a<scratchpad>b")
    assert len(ids) == 3
    assert ids == theirs_of(folder)("a<scratchpad>b").input_ids
    assert ours.size > ids[1], "the model may say it"


def test_an_end_that_only_the_config_names_ends_a_reply(tmp_path: Path) -> None:
    ours = Tokenizer(put(write_json(tmp_path), tokenizer_config={"eos_token": "<done>"}))
    assert ours.stop_ids == {259} == set(ours.encode("<done>"))


def test_split_special_tokens_keeps_them_text(tmp_path: Path) -> None:
    settings = {"split_special_tokens": True, "extra_special_tokens": ["<x>"]}
    assert len(Tokenizer(put(write_json(tmp_path), tokenizer_config=settings)).encode("<x>")) == 3


def test_the_defaults_of_the_class_are_what_a_template_sees(tmp_path: Path) -> None:
    template = "{{ eos_token }}|{{ pad_token }}|{{ unk_token }}|{{ bos_token }}"
    folder = put(write_json(tmp_path), tokenizer_config={"chat_template": template})
    messages = [{"role": "user", "content": "hi"}]
    expected = theirs_of(folder).apply_chat_template(messages, tokenize=False)
    assert Tokenizer(folder).apply_chat_template(messages) == expected == 3 * "<|endoftext|>|"


def test_a_default_that_no_file_holds_is_never_said(tmp_path: Path) -> None:
    ours = Tokenizer(write_json(tmp_path))
    assert ours.encode("<|endoftext|>") == [259]  # as in transformers
    assert (ours.size, ours.stop_ids) == (259, set())


def test_a_named_token_past_the_rows_of_the_model_is_never_said(tmp_path: Path) -> None:
    settings = {"pad_token": "[PAD]", "tokenizer_class": "TokenizersBackend"}
    folder = put(write_json(tmp_path), tokenizer_config=settings, config={"vocab_size": 259})
    assert Tokenizer(folder).size == 259


@pytest.mark.parametrize(("there", "missing"), [("vocab.json", "merges.txt"), ("merges.txt", "vocab.json")])
def test_half_of_the_older_form_names_the_other_half(tmp_path: Path, there: str, missing: str) -> None:
    (write_two_files(tmp_path) / missing).unlink()
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json does not exist.*form lacks {missing};"):
        Tokenizer(tmp_path)


def test_broken_older_form_is_named(tmp_path: Path) -> None:
    (write_two_files(tmp_path) / "vocab.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"vocab\.json"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"pad_token": 5},
        {"extra_special_tokens": [["x"]]},
        {"added_tokens_decoder": {"x": {"content": "y"}}},
        {"added_tokens_decoder": {"5": {"text": "y"}}},
        {"added_tokens_decoder": ["y"]},
        {"additional_special_tokens": 7},
        {"eos_token": {"content": None}},
        {"eos_token": "\ud800"},
        {"extra_special_tokens": ["\ud800"]},
        {"additional_special_tokens": [{"content": "\ud800"}]},
        {"image_token": "\ud800"},
    ],
)
def test_what_is_not_a_token_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="special token that cannot be read"):
        Tokenizer(put(write_json(tmp_path), tokenizer_config=settings))


@pytest.mark.parametrize("tokenizer_class", ["Qwen2Tokenizer", "TokenizersBackend"])
def test_a_tokenizer_that_is_not_byte_level_is_refused(tmp_path: Path, tokenizer_class: str) -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    backend.normalizer = normalizers.NFC()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"WordLevel|not byte-level"):
        Tokenizer(put(tmp_path, tokenizer_config={"tokenizer_class": tokenizer_class}))


def test_a_pattern_that_backtracks_too_far_is_one_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The library panics: it prints a report of several lines and raises a BaseException of its own."""
    backend = tokenizers.Tokenizer(models.BPE(*vocabulary(3)))
    split = pre_tokenizers.Split(tokenizers.Regex("(a+)+$"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer(put(tmp_path, tokenizer_config={"tokenizer_class": "TokenizersBackend"}))
    with pytest.raises(PromptError, match="cannot cut a text of 41 characters into words"):
        ours.encode(40 * "a" + "b")
    assert capfd.readouterr().err == ""
    assert len(ours.encode("ab")) == 2
