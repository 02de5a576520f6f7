"""Grammars that bind a reply, compiled by llguidance.

llguidance is an extra, and is imported when the first grammar is compiled.
"""

import json
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from ..errors import UsageError
from ..files.reading import short
from ..text.tokenizer import Tokenizer
from .json_schema import rewritten
from .specs import JSON_OPTIONS, SPECS, JsonObject, JsonSchema, Lark, Regex, Spec, ToolChoice
from .tool_grammar import lark

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

COMPILE_SECONDS = 5.0  # llguidance has limits of its own, but a few schemas take far longer before they meet one
INSTALL = "structured output needs llguidance; install it with: pip install 'mlx-qwen3[server]'"
TOO_COMPLEX = re.compile("too (large|big|complex)|fuel|limit exceeded|level exceeded|Unable to determine|^panic")


class Grammar:
    """A compiled grammar, for any number of replies."""

    def __init__(self, tokenizer: Tokenizer, tokens: "LLTokenizer", matcher: "LLMatcher"):
        self.tokenizer = tokenizer
        self._tokens, self._matcher = tokens, matcher

    def accepts(self, text: str) -> bool:
        """Whether the grammar allows a complete text. Special tokens in it count as text."""
        matcher = self._matcher.deep_copy()
        tokens = self._tokens.greedy_tokenize(text)  # the other ways would read special tokens
        return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())

    def begin(self) -> "Match":
        """A new reply."""
        return Match(self._matcher.deep_copy(), self._tokens, self.tokenizer.size)


class Match:
    """The state of one reply in a grammar."""

    def __init__(self, matcher: "LLMatcher", tokens: "LLTokenizer", size: int):
        self._matcher, self._tokens, self._size = matcher, tokens, size

    def allowed(self) -> np.ndarray:
        """The ids that may come next, (V,) bool. End tokens are allowed only if the text is complete.

        Raises UsageError if the grammar fails, at a limit of llguidance.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        mask = np.zeros(self._size, bool)
        found = np.unpackbits(bits, bitorder="little")[: self._size]
        mask[: len(found)] = found
        if np.count_nonzero(mask) == 1 and (token := self._literal(int(mask.argmax()))) is not None:
            mask[:] = False
            mask[token] = True
        return mask

    def take(self, token: int) -> None:
        """Add a token. Raises UsageError if the grammar does not allow it."""
        self._matcher.consume_token(token)
        self._check()

    def _literal(self, only: int) -> int | None:
        """The token for the only one that may come, if that is a control token which stands for its text.

        llguidance splits a text that must come into tokens as a tokenizer does: `<think>` is one, also in a constant.
        """
        if not self._tokens.is_special_token(only):
            return None
        text = self._matcher.compute_ff_bytes()
        if not text or text.startswith(b"\xff"):  # the grammar asks for the control token itself, or for the end
            return None
        return self._tokens.greedy_tokenize(text.decode(errors="ignore"))[0]

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UsageError(f"the grammar of the reply has failed: {_summary(self._matcher.get_error())}")


class GrammarCompiler:
    """Compiles grammars for a tokenizer. The first grammar takes longer, because llguidance reads the vocabulary."""

    def __init__(self, tokenizer: Tokenizer):
        """Raises UsageError if the tokenizer has no end token, because then a bound reply could not end."""
        if not tokenizer.stop_ids:
            raise UsageError("a grammar needs an end token, and this tokenizer has none; correct its eos_token")
        self._tokenizer = tokenizer

    def compile(self, spec: Spec) -> Grammar:
        """Raises UsageError if the grammar has a feature that cannot be enforced, or if compiling takes too long."""
        source = self._source(spec)
        library, tokens = _library(), self._tokens

        def build() -> "LLMatcher":
            matcher = library.LLMatcher(tokens, source, log_level=0)
            if not matcher.is_error():
                matcher.compute_bitmask()  # the first one fills what all replies share
            return matcher

        matcher = _in_time(build)
        if matcher.is_error():
            raise UsageError(explained(_summary(matcher.get_error())))
        return Grammar(self._tokenizer, tokens, matcher)

    @property
    def _tokens(self) -> "LLTokenizer":
        if (found := _vocabularies.get(self._tokenizer)) is None:
            ends = sorted(self._tokenizer.stop_ids)
            found = _library().LLTokenizer(self._tokenizer.to_json(), eos_token=ends)
            _vocabularies[self._tokenizer] = found
        return found

    def _source(self, spec: Spec) -> str:
        """The grammar as llguidance reads it."""
        library = _library().LLMatcher
        match spec:
            case JsonObject():
                return str(library.grammar_from_json_schema({"type": "object"}, overrides=JSON_OPTIONS))
            case JsonSchema():
                schema = json.dumps(rewritten(spec.schema, spec.strict))
                try:
                    return str(library.grammar_from_json_schema(schema, overrides=JSON_OPTIONS))
                except ValueError as error:  # it has more levels than the parser of JSON takes
                    raise UsageError(explained(str(error))) from None
            case Regex(pattern) if isinstance(pattern, str):
                return str(library.grammar_from_regex(pattern))
            case Lark(grammar) if isinstance(grammar, str):
                return str(library.grammar_from_lark(grammar))
            case ToolChoice():
                return str(
                    library.grammar_from_lark(
                        lark(spec, self._marker, lambda schema, strict: self.compile(JsonSchema(schema, strict)))
                    )
                )
        raise UsageError(f"the grammar is {short(repr(spec))}; expected {', '.join(map(str, SPECS))}")

    def _marker(self, text: str) -> str:
        """A tag of the template in a Lark grammar: its token. Raises UsageError if there is none."""
        ids = self._tokenizer.encode(text)
        if len(ids) != 1:
            raise UsageError(f"binding tool calls needs a tokenizer with the token {text}, and this one has none")
        return f"<[{ids[0]}]>" if self._tokens.is_special_token(ids[0]) else json.dumps(text)


_vocabularies: "WeakKeyDictionary[Tokenizer, LLTokenizer]" = WeakKeyDictionary()  # read once, gone with the model
_one_at_a_time = threading.Lock()  # so that grammars which take long never fill more than one core


def compiled(tokenizer: Tokenizer, grammar: Grammar | Spec) -> Grammar:
    """A compiled grammar: the given one, or that of its description."""
    return grammar if isinstance(grammar, Grammar) else GrammarCompiler(tokenizer).compile(grammar)


def explained(error: str) -> str:
    """An error of llguidance as a message that names the feature and the remedy."""
    if names := re.match(r"Unimplemented keys: \[(.*)\]", error):
        return f"the JSON schema has {names[1]}, which a grammar cannot enforce; leave it out, or check the reply"
    if name := re.match(r"Unknown format: (.*)", error):
        return f'the JSON schema has the format "{short(name[1])}", which a grammar cannot enforce; leave it out'
    if error.startswith("oneOf"):
        return "the JSON schema has oneOf with alternatives that may hold together; use anyOf, or tell them apart"
    if name := re.match(r"Resource '(.*)' is not present", error):
        return f"the JSON schema refers to {short(name[1])}, which is not in it; put what it stands for under $defs"
    if "look-around" in error or "lookaround" in error or "backreference" in error:
        return f"a pattern has a look-around or a backreference, which a grammar cannot enforce: {error}"
    if error.startswith("min/maxProperties"):
        return (
            "the JSON schema has minProperties or maxProperties beside optional properties; leave it out, or check it"
        )
    if error.startswith("patternProperty"):
        return f"the JSON schema has patternProperties that match the same names; tell them apart ({error})"
    if nothing := re.match(r"Unsatisfiable schema: (.*)", error):
        return f"the JSON schema has no value that is valid ({short(nothing[1])}); correct it"
    if TOO_COMPLEX.search(error):
        return f"the grammar is too complex to compile ({short(error)}); make it smaller"
    return f"the grammar cannot be compiled: {error}"


def _summary(error: str) -> str:
    """The first line of an error. For a pattern, also the explanation in the lines below."""
    first, *others = error.strip().split("\n")
    wrong = [line.removeprefix("error: ") for line in others if line.startswith("error: ")]
    return f"{first} {others[0].strip()} ({wrong[0]})" if wrong else first


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise UsageError(INSTALL) from None
    return llguidance


def _in_time(work: Callable[[], "LLMatcher"]) -> "LLMatcher":
    """The result of `work`. Raises UsageError after COMPILE_SECONDS; the work then runs on until it ends."""
    found: list[Any] = []

    def run() -> None:
        with _one_at_a_time:
            try:
                found.append(work())
            except BaseException as error:  # a panic of the library is not an Exception
                found.append(error)

    thread = threading.Thread(target=run, name="mlx-qwen3 grammar", daemon=True)
    thread.start()
    thread.join(COMPILE_SECONDS)
    if not found:
        raise UsageError(f"compiling the grammar takes more than {COMPILE_SECONDS:g} seconds; make it smaller")
    if isinstance(found[0], BaseException):
        raise UsageError(f"the grammar cannot be compiled: {_summary(str(found[0]))}")
    return found[0]
