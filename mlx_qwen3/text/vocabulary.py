"""The vocabulary of a folder, built from its files as transformers 5 builds it, so that every id is the same.

A tokenizer keeps its tokens in up to six files: tokenizer.json, or vocab.json with merges.txt; added_tokens.json,
special_tokens_map.json and tokenizer_config.json. transformers reads them by one of two classes:

Qwen2Tokenizer      takes vocabulary and merges from the files, and the rest from its own code: NFC, the pattern that
                    cuts words, and the special tokens that tokenizer_config.json does not name.
TokenizersBackend   takes tokenizer.json as it is. It also stands for the classes that this package does not know.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from ..errors import CheckpointError
from ..files.reading import exists, read_file, read_json, short
from .panic import panics_as_errors

QWEN = "Qwen2Tokenizer"
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_DEFAULTS = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

Token = str | AddedToken


@dataclass
class Declared:
    """The tokens that the files declare apart from vocabulary and merges. The order decides the ids of new ones."""

    added: dict[int, AddedToken] = field(default_factory=dict)  # by the id that a file states
    named: dict[str, Token | None] = field(default_factory=dict)  # eos_token and the like
    extra: list[Token] = field(default_factory=list)  # special tokens without a name

    @property
    def texts(self) -> set[str]:
        return {str(token) for token in [*self.added.values(), *self.special]}

    @property
    def special(self) -> list[Token]:
        return [token for token in self.named.values() if token is not None] + self.extra


@dataclass(frozen=True)
class Vocabulary:
    """`backend` encodes and decodes; `special_tokens` are the named ones, which templates may ask for.

    `invented` are tokens with an id that the model was not trained on: defaults of Qwen2Tokenizer that are in no file,
    and special tokens without a stated id whose id is past the last row of the model's embedding.
    """

    backend: tokenizers.Tokenizer
    special_tokens: dict[str, str]
    invented: frozenset[str]


def read_vocabulary(folder: Path, settings: Mapping[str, Any], model_config: Mapping[str, Any]) -> Vocabulary:
    """Build the vocabulary of a folder. `settings` is its tokenizer_config.json, `model_config` its config.json.

    Raises CheckpointError that names the file and the remedy.
    """
    path = folder / "tokenizer.json"
    content = read_file(path)[0] if exists(path) else None
    backend, is_qwen = _backend(path, content, settings.get("tokenizer_class") or model_config.get("tokenizer_class"))
    if is_qwen:
        _be_qwen(backend, add_prefix_space=bool(settings.get("add_prefix_space")))
    try:
        declared = _declared(folder, settings, content)
    except (TypeError, ValueError, AttributeError) as error:
        reason = f"{folder} declares a special token that cannot be read ({error})"
        raise CheckpointError(f"{reason}; save the tokenizer again with transformers") from None
    defaults = QWEN_DEFAULTS if is_qwen else _padding_token(backend)
    new = [text for text in defaults.values() if text not in declared.texts and backend.token_to_id(text) is None]
    declared.named = {name: declared.named.get(name, defaults.get(name)) for name in NAMED} | declared.named
    backend.add_tokens(_to_add(backend, declared))
    if is_qwen:
        texts = dict.fromkeys(str(token) for token in declared.special)
        backend.add_tokens([AddedToken(text, special=True) for text in texts])
    backend.encode_special_tokens = bool(settings.get("split_special_tokens"))
    named = {name: str(token) for name, token in declared.named.items() if token is not None}
    return Vocabulary(backend, named, frozenset(new) | _past(model_config.get("vocab_size"), backend, declared))


def _past(rows: Any, backend: tokenizers.Tokenizer, declared: Declared) -> set[str]:
    """The special tokens without a stated id whose id is past the last row of the model's embedding."""
    stated = {token.content for token in declared.added.values()}
    texts = {str(token) for token in declared.special} - stated
    return {text for text in texts if isinstance(rows, int) and (backend.token_to_id(text) or 0) >= rows}


def _backend(path: Path, content: bytes | None, class_name: Any) -> tuple[tokenizers.Tokenizer, bool]:
    """(the tokenizer before tokens are added, whether it is a Qwen2Tokenizer, which has its own settings)"""
    if content is None:
        return tokenizers.Tokenizer(_read_merges(path.parent)), True
    try:
        with panics_as_errors(report=False):
            backend = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises Exception itself
        raise CheckpointError(f"{path} is not a tokenizer ({short(error)}); download it again") from None
    if str(class_name or QWEN).removesuffix("Fast") != QWEN:
        backend.no_truncation()
        return backend, False
    if not isinstance(backend.model, models.BPE):
        kind = type(backend.model).__name__
        raise CheckpointError(f"{path} holds a {kind} model, but {QWEN} reads BPE; download the file again")
    return tokenizers.Tokenizer(backend.model), True


def _be_qwen(backend: tokenizers.Tokenizer, add_prefix_space: bool) -> None:
    """Give a tokenizer the settings of transformers' Qwen2Tokenizer."""
    model = backend.model
    model.dropout = model.unk_token = None
    model.fuse_unk = model.byte_fallback = model.ignore_merges = False
    backend.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN_PATTERN), behavior="isolated", invert=False)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    backend.decoder = decoders.ByteLevel()


def _read_merges(folder: Path) -> models.BPE:
    """The model of the older form, in two files."""
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if missing := [path.name for path in (vocabulary, merges) if not path.is_file()]:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} does not exist, and its older form lacks {' and '.join(missing)}; "
            "copy the model's tokenizer files into the folder"
        )
    try:
        return models.BPE.from_file(str(vocabulary), str(merges))
    except Exception as error:  # the library raises Exception itself
        raise CheckpointError(f"{vocabulary} and {merges} are not a tokenizer ({error}); download them again") from None


def _padding_token(backend: tokenizers.Tokenizer) -> dict[str, str]:
    """The padding token that tokenizer.json names, if it asks for padding."""
    padding = backend.padding
    backend.no_padding()
    return {"pad_token": padding["pad_token"]} if padding else {}


def _to_add(backend: tokenizers.Tokenizer, declared: Declared) -> list[AddedToken]:
    """The tokens to add, in transformers' order, which decides the ids of new ones."""
    tokens: list[Token] = [declared.added[index] for index in sorted(declared.added)]
    texts = {token.content for token in backend.get_added_tokens_decoder().values()} | {str(t) for t in tokens}
    for token in declared.special:
        if str(token) not in texts and token not in tokens:
            tokens.append(token)
    names = {str(token) for token in declared.named.values() if token is not None}
    return [_as_added(token, str(token) in names) for token in tokens]


def _as_added(token: Token, named: bool) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True)
    token.special = token.special or named
    return token


def _declared(folder: Path, config: Mapping[str, Any], tokenizer_json: bytes | None) -> Declared:
    """What the files declare. The order of the steps is that of transformers' `_from_pretrained`.

    tokenizer_config.json stands alone if it has `added_tokens_decoder`; if not, the older files are read too.
    Raises TypeError, ValueError or AttributeError for what is not a token.
    """
    settings = dict(config)
    if "additional_special_tokens" in settings and not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    # Names beside the usual ones, such as image_token
    first = {key: settings.pop(key) for key in list(settings) if _is_own_name(key) and isinstance(settings[key], str)}
    _move_named_extras(settings, first)
    if "added_tokens_decoder" in settings:
        added = {int(index): _added(value) for index, value in (settings["added_tokens_decoder"] or {}).items()}
    else:
        _add_special_tokens_map(folder / "special_tokens_map.json", settings)
        _move_named_extras(settings, first)
        added = _older_added_tokens(folder / "added_tokens.json", settings, tokenizer_json)
    texts = {str(token): token for token in added.values()}
    named: dict[str, Token | None] = {
        name: None if settings[name] is None else texts.get(str(_token(settings[name])), _token(settings[name]))
        for name in NAMED
        if name in settings
    }
    late = {key: _token(settings[key]) for key in settings if _is_own_name(key) and _is_token(settings[key])}
    named |= late | {key: _token(value) for key, value in first.items()}
    extra = settings.get("extra_special_tokens", settings.get("additional_special_tokens"))
    return Declared(added, named, [_token(value) for value in extra or []])


def _move_named_extras(settings: dict[str, Any], names: dict[str, Any]) -> None:
    """`extra_special_tokens` may be an object, which names its tokens."""
    if isinstance(settings.get("extra_special_tokens"), dict):
        names |= settings.pop("extra_special_tokens")


def _add_special_tokens_map(path: Path, settings: dict[str, Any]) -> None:
    """Merge special_tokens_map.json, which overrides tokenizer_config.json."""
    for key, value in _optional(path).items():
        if isinstance(value, dict) and key != "extra_special_tokens":
            value = _token(value | {"special": True})
        elif isinstance(value, list) and key == "extra_special_tokens":
            merged = list(settings.get(key) or [])
            for token in value:
                token = _token(token | {"special": True}) if isinstance(token, dict) else token
                merged += [token] if token not in merged else []
            value = merged
        settings[key] = value


def _older_added_tokens(path: Path, settings: Mapping[str, Any], tokenizer_json: bytes | None) -> dict[int, AddedToken]:
    """added_tokens.json and the added tokens of tokenizer.json, by id; of two tokens with one id the latter."""
    special = {str(settings[name]) for name in NAMED if settings.get(name)}
    special |= {str(token) for token in settings.get("extra_special_tokens") or []}
    added = {}
    for text, index in _optional(path).items():
        added[int(index)] = AddedToken(text, normalized=text not in special, special=text in special)
    for entry in _added_tokens_of(tokenizer_json) if tokenizer_json else []:
        added[int(entry["id"])] = _added(entry)
    return added


def _added_tokens_of(tokenizer_json: bytes) -> list[dict[str, Any]]:
    """The array `added_tokens` of tokenizer.json, found without reading the vocabulary, which is most of the file."""
    text = tokenizer_json.decode("utf-8")
    start = re.search(r'"added_tokens"\s*:\s*(?=\[)', text)  # a token of that name has a number here
    return json.JSONDecoder().raw_decode(text, start.end())[0] if start else []


def _is_own_name(key: str) -> bool:
    return key.endswith("_token") and key not in NAMED


def _is_token(value: Any) -> bool:
    return isinstance(value, str | AddedToken) or (isinstance(value, dict) and value.get("__type") == "AddedToken")


def _token(value: Any) -> Token:
    """A token as JSON holds it: its text, or an object around it."""
    if isinstance(value, dict):
        return _added(value)
    if not isinstance(value, str | AddedToken):
        raise TypeError(f"{short(repr(value))} is not a text")
    str(value).encode()  # raises UnicodeEncodeError, a ValueError, for a lone surrogate
    return value


def _added(entry: Mapping[str, Any]) -> AddedToken:
    fields = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    if not isinstance(entry.get("content"), str):
        raise TypeError(f"{short(repr(dict(entry)))} has no text as its content")
    return AddedToken(**{name: entry[name] for name in fields if name in entry})


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if exists(path) else {}
