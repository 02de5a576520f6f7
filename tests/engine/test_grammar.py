"""Grammars: what is accepted, what is refused by name, and that every reply which stops is valid."""

import gc
import json
import os
import random
import sys
import threading
import weakref
from collections import Counter
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from mlx_qwen3 import JsonObject, JsonSchema, Lark, Regex, load
from mlx_qwen3.engine import grammar as grammars
from mlx_qwen3.engine.engine import Engine
from mlx_qwen3.engine.grammar import GrammarCompiler, compiled, explained
from mlx_qwen3.engine.request import ReplyOptions
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.errors import UsageError
from mlx_qwen3.files.hub import resolve
from mlx_qwen3.text.tokenizer import Tokenizer

HERE = Path(__file__).parent
BENCHMARK = HERE.parents[2] / "shared" / "json-schemas" / "schemas.jsonl"
SAMPLE = HERE / "schemas.jsonl"  # a few of the benchmark's, for a clone without it
WILD = SamplingParams(temperature=1.5, top_k=0, top_p=1.0)


@pytest.fixture(scope="module")
def demo():
    return load("demo", dtype="fp32")


@pytest.fixture(scope="module")
def compiler():
    return GrammarCompiler(Tokenizer(resolve("demo")))


def entries(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def validator(schema):
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


def names_of(schema, value, root, depth=0):
    """The properties that a schema lists, in the order of a grammar, its parts with them."""
    found = {}
    for key, content in schema.items() if isinstance(schema, dict) and depth < 9 else ():
        parts = content if key in ("allOf", "anyOf", "oneOf") else []
        if key == "$ref":
            target = root
            for part in content.removeprefix("#").split("/")[1:]:
                target = target[part]
            parts = [target]
        elif key == "properties":
            found |= {**content, **found}
        for part in parts:
            if validator(root).evolve(schema=part).is_valid(value):
                found |= {**names_of(part, value, root, depth + 1), **found}
    return found


def in_order(value, schema, root):
    """An instance with its names in the order of the schema, and multiples without zeros at their end."""
    if isinstance(value, list):
        return [in_order(item, schema.get("items", {}), root) for item in value]
    if isinstance(value, float) and value.is_integer() and "multipleOf" in schema:
        return int(value)
    if not isinstance(value, dict):
        return value
    known = names_of(schema, value, root)
    names = [*(name for name in known if name in value), *(name for name in value if name not in known)]
    return {name: in_order(value[name], known.get(name, {}), root) for name in names}


def counted(compiler, schemas, strict):
    """(refused schemas by message, counts of instances by (valid, accepted))"""
    refused, found = {}, Counter()
    for entry in schemas:
        try:
            grammar = compiler.compile(JsonSchema(entry["schema"], strict))
        except UsageError as error:
            refused[entry["name"]] = str(error)
            continue
        for test in entry["tests"]:
            data = test["data"]
            texts = [
                json.dumps(x, ensure_ascii=False) for x in (data, in_order(data, entry["schema"], entry["schema"]))
            ]
            found[test["valid"], any(map(grammar.accepts, texts))] += 1
    return refused, found


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lax"])
def test_the_sample_of_the_benchmark(compiler, strict):
    refused, found = counted(compiler, entries(SAMPLE), strict)
    assert set(found) == {(True, True), (False, False)}
    assert len(refused) == (7 if strict else 6)


@pytest.mark.skipif(not BENCHMARK.is_file(), reason="the benchmark's schemas are not at hand")
@pytest.mark.parametrize(
    ("strict", "taken", "valid", "invalid"), [(True, 216, 258, 296), (False, 223, 268, 300)], ids=["strict", "lax"]
)
def test_the_benchmark(compiler, strict, taken, valid, invalid):
    """Every valid instance is accepted and every invalid one is not; the counts are those of the documentation."""
    refused, found = counted(compiler, entries(BENCHMARK), strict)
    assert all(message.startswith(("the JSON schema has ", "a pattern has ")) for message in refused.values()), refused
    assert (250 - len(refused), found) == (taken, {(True, True): valid, (False, False): invalid})


def test_spellings(compiler):
    schema = {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "array"}}}
    grammar = compiler.compile(JsonSchema(schema))
    value = {"a": -1.5e-7, "b": ["é\n", {"c": None}, []]}
    for options in ({}, {"indent": 4}, {"indent": "\t"}, {"separators": (",", ":")}):
        assert grammar.accepts(json.dumps(value, ensure_ascii=False, **options))
    assert grammar.accepts('{\r\n"a" : 1E5}')
    for text in (' {"a": 1}', '{"a": 1}\n', '{"a":\n\n1}', '{"b": [], "a": 1}', '{"a": 01}', '{"a": 1, "a": 2}'):
        assert not grammar.accepts(text), text


@pytest.mark.parametrize(
    ("spec", "right", "wrong"),
    [
        (JsonObject(), ["{}", '{"a": [1]}'], ["[]", "", '{"a": 1', '{"a": NaN}']),
        (JsonSchema(True), ["3", "null", '"x"'], ["x"]),
        (Regex(r"[a-z]+@(x|y)\.de|\d{2}"), ["bob@x.de", "42"], ["bob@z.de", "bob@x.de ", "4", ""]),
        (Regex("é+|<think>"), ["éé", "<think>"], ["e"]),
        (Lark('start: NAME ("," NAME)*\nNAME: /[a-z]+/'), ["a,b", "a"], ["a,", ""]),
        (Lark('start: %json {"type": "integer"} "!"'), ["3!"], ["3"]),
    ],
    ids=str,
)
def test_other_grammars(compiler, spec, right, wrong):
    grammar = compiler.compile(spec)
    assert [text for text in right if not grammar.accepts(text)] == []
    assert [text for text in wrong if grammar.accepts(text)] == []


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (JsonSchema({"items": {"uniqueItems": True}}), r'has "uniqueItems", which a grammar cannot enforce; leave'),
        (JsonSchema({"if": {}, "then": False}), 'has "if", "then", which'),
        (JsonSchema({"contains": {"type": "null"}}), 'has "contains", which'),
        (JsonSchema({"propertyNames": {"minLength": 2}}), 'has "propertyNames", which'),
        (JsonSchema({"unevaluatedProperties": False}), 'has "unevaluatedProperties", which'),
        (JsonSchema({"not": {"minimum": 3}}), 'has "not", which'),
        (JsonSchema({"$dynamicRef": "#x"}), r'has "\$dynamicRef", which'),
        (JsonSchema({"type": "string", "format": "url"}), 'has the format "url", which a grammar cannot enforce'),
        (JsonSchema({"format": "iri"}, strict=False), 'has the format "iri", which'),
        (
            JsonSchema({"oneOf": [{"type": "integer"}, {"minimum": 2}]}),
            "oneOf with alternatives that may hold together",
        ),
        (JsonSchema({"$ref": "https://example.org/x"}), r"refers to https://example.org/x, which is not in it"),
        (JsonSchema({"type": "string", "pattern": "^(?=a)b"}), r"has a look-around or a backreference.*\^\(\?=a\)b"),
        (JsonSchema({"type": "string", "pattern": r"(a)\1"}), r"has a look-around or a backreference.*\(a\)\\1"),
        (JsonSchema({"allOf": [{"type": "string"}, {"type": "null"}]}), "incompatible types"),
        (JsonSchema({"type": "object", "properties": {"a": {}}, "maxProperties": 1}), "maxProperties beside optional"),
        (Regex("(a"), "cannot be compiled"),
        (Lark("begin: /a/"), "cannot be compiled"),
        (Regex(3), r"the grammar is Regex\(pattern=3\); expected JsonObject, JsonSchema, Regex, Lark, ToolChoice"),
        ("object", "the grammar is 'object'; expected"),
    ],
    ids=str,
)
def test_what_cannot_be_enforced_is_refused_by_name(compiler, spec, message):
    with pytest.raises(UsageError, match=message):
        compiler.compile(spec)


def exponential(n):
    """A schema of n pairs of alternatives, which are 2^n combinations."""
    return {"allOf": [{"anyOf": [{"required": [f"{x}{i}"]} for x in "ab"]} for i in range(n)], "type": "object"}


def test_a_schema_that_grows_exponentially_is_refused_at_once(compiler):
    assert compiler.compile(JsonSchema(exponential(4))).accepts('{"a0": 1, "b1": 1, "a2": 1, "b3": 1}')
    with pytest.raises(UsageError, match=r"the grammar is too complex to compile \(schema too large\)"):
        compiler.compile(JsonSchema(exponential(40)))
    deep = {"type": "null"}
    for _ in range(300):
        deep = {"type": "array", "items": deep}
    with pytest.raises(UsageError, match=r"too complex|too deeply"):
        compiler.compile(JsonSchema(deep))


def test_compiling_has_a_limit_in_time(compiler, monkeypatch):
    blocked = threading.Event()
    monkeypatch.setattr(grammars, "COMPILE_SECONDS", 0.05)
    with pytest.raises(UsageError, match=r"compiling the grammar takes more than 0\.05 seconds; make it smaller"):
        grammars._in_time(blocked.wait)
    blocked.set()


def test_an_error_of_the_library_is_no_traceback():
    def panics():
        raise BaseException("panicked\nat src/x.rs")

    with pytest.raises(UsageError, match=r"the grammar cannot be compiled: panicked$"):
        grammars._in_time(panics)


def test_what_is_not_known_is_told_as_it_is():
    assert explained("something new") == "the grammar cannot be compiled: something new"


def test_without_llguidance_the_remedy_is_named(compiler, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UsageError, match=r"needs llguidance; install it with: pip install 'mlx-qwen3\[server\]'"):
        compiler.compile(JsonObject())


def test_a_tokenizer_without_an_end_token_is_refused():
    tokenizer = Tokenizer(resolve("demo"))
    tokenizer.stop_ids = frozenset()
    with pytest.raises(UsageError, match="a grammar needs an end token"):
        GrammarCompiler(tokenizer)


def test_a_vocabulary_is_read_once(demo, monkeypatch):
    first = compiled(demo[1], JsonObject())
    monkeypatch.setattr(Tokenizer, "to_json", None)
    second = compiled(demo[1], Regex("a"))
    assert compiled(demo[1], second) is second
    assert first._tokens is second._tokens


def test_a_vocabulary_goes_with_its_tokenizer():
    tokenizer = Tokenizer(resolve("demo"))
    assert compiled(tokenizer, Regex("a")).accepts("a")
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None


def test_the_end_is_allowed_only_where_the_text_is_complete(demo):
    tokenizer = demo[1]
    match = compiled(tokenizer, Regex("ab?")).begin()
    [a], [b] = tokenizer.encode("a"), tokenizer.encode("b")
    ends = sorted(tokenizer.stop_ids)
    assert not match.allowed()[ends].any()
    match.take(a)
    assert np.flatnonzero(match.allowed()).tolist() == sorted([b, *ends])
    match.take(b)
    assert np.flatnonzero(match.allowed()).tolist() == ends
    with pytest.raises(UsageError, match="the grammar of the reply has failed"):
        match.take(b)
    with pytest.raises(UsageError, match="the grammar of the reply has failed"):
        match.allowed()


HARD = [  # where a grammar could allow what the schema does not
    {"type": "object", "minProperties": 1, "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}},
    {"type": "object", "patternProperties": {"^a": {"type": "integer"}}, "properties": {"ab": {"minimum": 3}}},
    {"type": "object", "dependentRequired": {"a": ["b"]}, "properties": {"a": {}, "b": {"type": "null"}}},
    {"type": "object", "not": {"required": ["a", "b"]}, "properties": {"a": {}, "b": {}}},
    {"type": "object", "properties": {'a"b': {"type": "integer"}, "c\u0001": {"type": "integer"}}},
    {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {}, "b": {}}},
    {"type": "array", "items": {"type": "string", "format": "date-time"}, "minItems": 1},
    {"type": "string", "minLength": 3, "maxLength": 4},
    {"type": "number", "multipleOf": 0.25, "exclusiveMinimum": -2},
    {"enum": [1.5, "a\u00e9\n", None, {"x": [1]}]},
]


def wander(grammar, rng, limit=300):
    """A text of a grammar by random tokens, those that close something more often; None if it does not end."""
    tokenizer, match, tokens = grammar.tokenizer, grammar.begin(), []
    ends, closing = sorted(tokenizer.stop_ids), [tokenizer.encode(letter)[0] for letter in '"}]0,1']
    while len(tokens) < limit:
        mask = match.allowed()
        able = [token for token in np.flatnonzero(mask).tolist() if token not in ends]
        if not able or (mask[ends].all() and rng.random() < 0.3):
            return tokenizer.decode(tokens)
        likely = [token for token in closing if mask[token]]
        tokens.append(rng.choice(likely if likely and rng.random() < 0.4 + len(tokens) / 600 else able))
        match.take(tokens[-1])
    return None


def test_random_tokens_of_a_grammar_make_valid_values(compiler):
    rng, ended = random.Random(3), 0
    for schema in [*(entry["schema"] for entry in entries(SAMPLE)), *4 * HARD]:
        try:
            grammar = compiler.compile(JsonSchema(schema))
        except UsageError:
            continue
        if (text := wander(grammar, rng)) is not None:
            validator(schema).validate(json.loads(text))
            ended += 1
    assert ended > 40


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (JsonSchema({"const": "a <|im_end|>"}), '"a <|im_end|>"'),
        (Regex("<think>x</think>[yz]"), "<think>x</think>y"),
        (JsonSchema({"required": ["<tool_call>"], "properties": {"<tool_call>": {"const": 1}}}), '{"<tool_call>": 1}'),
    ],
    ids=str,
)
def test_a_tag_in_a_constant_is_text(compiler, spec, text):
    tokenizer = compiler._tokenizer
    match = compiler.compile(spec).begin()
    special = [index for index in range(tokenizer.size) if compiler._tokens.is_special_token(index)]
    rest = text.encode()
    while rest:
        allowed = match.allowed()
        assert not allowed[special].any()
        pieces = [index for index in np.flatnonzero(allowed) if rest.startswith(tokenizer.token_bytes(int(index)))]
        match.take(int(pieces[0]))
        rest = rest.removeprefix(tokenizer.token_bytes(int(pieces[0])))
    assert match.allowed()[list(tokenizer.stop_ids)].any()


def test_every_sampled_reply_that_stops_is_valid(demo):
    """Schemas of the sample, in batches; those with long texts may reach the limit of tokens."""
    schemas, replies = [], []
    with Engine(*demo, max_rows=8) as engine:
        for entry in entries(SAMPLE)[::2]:
            try:
                options = ReplyOptions(WILD, 120, thinking=False, grammar=JsonSchema(entry["schema"]))
                replies.append(engine.submit(engine.prepare("Write the object.", options)))
                schemas.append(entry["schema"])
            except UsageError:
                continue
        stopped = 0
        for schema, reply in zip(schemas, replies, strict=True):
            chunks = list(reply)
            text = "".join(chunk.text for chunk in chunks)
            if chunks[-1].finish_reason == "stop":
                validator(schema).validate(json.loads(text))
                stopped += 1
            else:
                assert (chunks[-1].finish_reason, len(chunks)) == ("length", 120)
    assert stopped > len(schemas) / 3


@pytest.mark.slow
@pytest.mark.skipif(not BENCHMARK.is_file(), reason="the benchmark's schemas are not at hand")
def test_every_reply_to_the_benchmark_that_stops_is_valid(demo):
    seen = Counter()
    with Engine(*demo, max_rows=16) as engine:
        work = []
        for seed, entry in enumerate(entries(BENCHMARK)[::3]):
            try:
                sampling = SamplingParams(temperature=1.5, top_k=0, top_p=1.0, seed=seed)
                options = ReplyOptions(sampling, 120, thinking=False, grammar=JsonSchema(entry["schema"]))
                work.append((entry, engine.submit(engine.prepare("Write the object.", options))))
            except UsageError:
                seen["refused"] += 1
        for entry, reply in work:
            chunks = list(reply)
            seen[chunks[-1].finish_reason] += 1
            if chunks[-1].finish_reason == "stop":
                validator(entry["schema"]).validate(json.loads("".join(chunk.text for chunk in chunks)))
    assert seen["stop"] > 15, seen


@pytest.mark.skipif("QWEN3_TOKENIZER" not in os.environ, reason="QWEN3_TOKENIZER names no folder")
def test_the_real_vocabulary():
    tokenizer = Tokenizer(os.environ["QWEN3_TOKENIZER"])
    grammar = compiled(tokenizer, JsonSchema({"type": "object", "properties": {"ü": {"enum": ["北京", "Köln"]}}}))
    match = grammar.begin()
    for token in tokenizer.encode('{"ü": "北京"}'):
        mask = match.allowed()
        assert mask.shape == (tokenizer.size,)
        assert mask[token]
        match.take(token)
    assert np.flatnonzero(match.allowed()).tolist() == sorted(tokenizer.stop_ids)
