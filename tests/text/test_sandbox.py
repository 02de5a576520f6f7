"""The template language against transformers, and its limits."""

from typing import Any

import pytest
from chats import HI, render

from mlx_qwen3.errors import CheckpointError, PromptError
from mlx_qwen3.text import growth, sandbox

LANGUAGE = {
    "blocks are trimmed": "{% if true %}\n    a\n    {% endif %}\nb\n  {# c #}\nd\n",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "tojson": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2, sort_keys=true) }}",
    "tojson options": "{{ messages | tojson(separators=(',', ':'), ensure_ascii=true) }}",
    "date": "{{ strftime_now('%Y') }}",
    "special tokens": "{{ eos_token }}|{{ bos_token }}|{{ pad_token }}",
    "variables": "{{ [tools, documents, add_generation_prompt, enable_thinking is defined] }}",
    "null fields are absent": "{{ messages[0].name is defined }}{{ messages[1].tool_calls is defined }}",
    "names of thinking": "{% set m = messages[1] %}{{ [m.reasoning_content, m.thinking, m.reasoning] }}",
    "namespace": "{% set ns = namespace(x=1) %}{% for m in messages %}{% set ns.x = ns.x + 1 %}{% endfor %}{{ ns.x }}",
    "generation": "{% generation %}{{ messages[1].content }}{% endgeneration %}!",
    "markup": "{{ messages[0].content }}{{ messages[0].content | e }}{{ messages[0].content | upper }}",
}


LANGUAGE |= {
    "namespace with self": "{% set ns = namespace(self=1) %}{{ ns.self }}",
    "dict": "{{ dict(a=1) }}{{ dict.fromkeys('ab', 1) }}",
    "concatenation": "{{ messages[0].content ~ 5 ~ none ~ [1, messages[0].content] }}",
    "lists of values": "{% for a, b in [(1, messages[0].role), (2, 'x')] %}{{ a ~ b }}{% endfor %}{{ {'a': 1} }}",
    "operators": "{{ 'ab' * 3 }}{{ [1] * 2 }}{{ 7 % 4 }}{{ '%05d|%s' % (5, 'x') }}{{ 2 ** 10 }}{{ 'a' + 'b' }}",
    "methods": "{{ 'a,b'.split(',') }}{{ 'a'.center(5, '-') }}{{ 'aa'.replace('a', 'b', 1) }}{{ '-'.join('ab') }}",
    "format": "{{ '{:>5}|{a}'.format(3, a='x') }}{{ '%s' | format('y') }}{{ '{a}'.format_map({'a': 1}) }}",
    "filters": "{{ [3, 1] | sort | join('+') }}{{ 'a b' | replace(' ', '_') }}{{ 'x' | center(5) }}{{ 2.3 | round }}",
    "generators": "{{ messages | map(attribute='role') | join(', ') }}{{ [1, 2, 3] | batch(2, 0) | list }}",
    "macros": "{% macro f(x) %}<{{ x }}{{ caller() if caller }}>{% endmacro %}{{ f(1) }}{% call f(2) %}in{% endcall %}",
    "recursive loops": "{% for i in [[1, []], [2, []]] recursive %}{{ i[0] if i }}{{ loop(i[1]) if i }}{% endfor %}",
    "loop variables": "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.cycle(1, 2) }}{% endfor %}",
    "block set": "{% set x %}a{{ 1 }}{% endset %}{{ x }}{% filter upper %}abc{% endfilter %}",
    "loop else": "{% for m in [] %}a{% else %}none{% endfor %}{% for m in messages if m.role == 'user' %}x{% endfor %}",
}


@pytest.mark.parametrize("source", LANGUAGE.values(), ids=LANGUAGE)
def test_the_template_language_is_that_of_transformers(reference: Any, source: str) -> None:
    messages = [
        {"role": "user", "content": "<&'\"> 你好\n", "name": None},
        {"role": "assistant", "content": "é", "tool_calls": None, "reasoning": "hm"},
    ]
    assert render(source, messages) == reference(source, messages) != ""


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ raise_exception('Roles\\nmust\\nalternate') }}", "Roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "__class__"),
        ("{{ ''['__class__'].__mro__ }}", "__class__"),
        ("{{ (''|attr('__class__')).__mro__ }}", "__class__"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ messages[0].update(role='x') }}", "update"),
        ("{{ '{0.__class__.__mro__}'.format(messages) }}", "__class__"),
        ("{{ raise_exception.__globals__.x }}", "__globals__"),
        ("{{ cycler.__init__.__globals__ }}", "__init__"),
        ("{% for i in range(10000000000) %}x{% endfor %}", "[Rr]ange"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "recursion"),
        ("{{ messages[5].content }}", "no element 5"),
        ("{{ tools + 1 }}", "unsupported operand"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% include '/etc/hostname' %}", "loader"),
        ("{% set ns = namespace(_x=1) %}", "'_x'"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "'_x'"),
        ("{% set ns = namespace({'__class__': 1}) %}", "'__class__'"),
    ],
)
def test_a_template_that_fails_gives_its_reason_in_one_line(template: str, reason: str) -> None:
    with pytest.raises(PromptError, match=reason) as caught:
        render(template, HI)
    assert "\n" not in str(caught.value)


# Limits

DOUBLING = "{%% set ns = namespace(s='xx') %%}{%% for i in range(99) %%}{%% set ns.s = %s %%}{%% endfor %%}{{ ns.s }}"
TOO_LARGE = {
    "times": "{{ 'x' * 10**10 }}",
    "times a list": "{{ [1] * 10**10 }}",
    "powers": "{{ 10 ** (10 ** 10) }}",
    "squares": DOUBLING.replace("'xx'", "2") % "ns.s * ns.s",
    "sums": DOUBLING % "ns.s + ns.s",
    "concatenations": DOUBLING % "ns.s ~ ns.s",
    "lists of lists": DOUBLING % "[ns.s, ns.s]",
    "tuples of tuples": DOUBLING % "(ns.s, ns.s)",
    "objects of objects": DOUBLING % "{'a': ns.s, 'b': ns.s}",
    "joins": DOUBLING % "ns.s.join([ns.s, ns.s])",
    "join filters": DOUBLING % "[ns.s, ns.s] | join(ns.s)",
    "replacements": DOUBLING % "ns.s.replace('x', ns.s)",
    "replace filters": DOUBLING % "ns.s | replace('x', ns.s)",
    "block sets": "{% set ns = namespace(s='xx') %}{% for i in range(99) %}"
    "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
    "percent width": "{{ '%10000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (10000000000, 1) }}",
    "percent filter": "{{ '%*d' | format(10000000000, 1) }}",
    "percent with names": "{{ '%(a)10000000000d' % {'a': 1} }}",
    "format width": "{{ '{:10000000000}'.format(1) }}",
    "format width from a value": "{{ '{:{}}'.format(1, 10000000000) }}",
    "format map": "{{ '{a:{b}}'.format_map({'a': 1, 'b': 10000000000}) }}",
    "center": "{{ 'x' | center(10000000000) }}",
    "center by name": "{{ 'x' | center(width=10000000000) }}",
    "center method": "{{ 'x'.center(10000000000) }}",
    "center through map": "{{ ['x'] | map('center', 10000000000) | list }}",
    "zfill of bytes": "{{ 'x'.encode().zfill(10000000000) }}",
    "tabs": "{{ '\t'.expandtabs(10000000000) }}",
    "indent": "{{ 'a\nb' | indent(10000000000) }}",
    "JSON": "{{ {'a': [1, 2]} | tojson(indent=10000000000) }}",
    "batch": "{{ [1] | batch(10000000000, 'x') | list }}",
    "slice": "{{ [1] | slice(10000000000) | list }}",
    "round": "{{ 5 | round(-10000000000) }}",
    "integers": "{{ 5 .to_bytes(10000000000, 'big') }}",
    "translate": "{{ ('x' * 100000).translate({120: 'y' * 100000}) }}",
    "output": "{% for i in range(100000) %}{{ 'x' * 100000 }}{% endfor %}",
    "plain text": "{% for i in range(9999) %}" + "x" * 9999 + "{% endfor %}",
}


@pytest.mark.parametrize("source", TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_template_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    for module in (growth, sandbox):
        monkeypatch.setattr(module, "MAX_SIZE", 1 << 20)
    with pytest.raises(PromptError, match=r"it (makes a value of|writes) more than [0-9,]+ characters"):
        render(source, HI)


ENDLESS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
    "filters": "{% for i in range(99999) %}{{ range(999) | sort | length }}{% endfor %}",
    "recursive loops": "{% for i in [1] recursive %}{% if loop.depth < 99 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
    "generators": "{% for i in range(99999) %}{{ range(99999) | map('upper') | join | length }}{% endfor %}",
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_a_template_that_would_run_for_ever_is_refused(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.05)
    with pytest.raises(PromptError, match=r"it runs for more than 0\.05 seconds"):
        render(source, HI)


def test_a_rendering_that_failed_leaves_its_budget_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_SIZE", 100)
    for _ in range(3):
        assert render("{{ 'x' * 60 }}", HI) == "x" * 60
        with pytest.raises(PromptError, match="it writes more than 100 characters"):
            render("{{ 'x' * 60 }}{{ 'y' * 60 }}", HI)


@pytest.mark.parametrize(
    "source",
    [
        "{% if true %}" * 2000 + "{% endif %}" * 2000,
        "{% for i in [1] %}" * 2000 + "{% endfor %}" * 2000,
        "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
        "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}",
        "{{ " + "[" * 2000 + "]" * 2000 + " }}",
        "{{ " + "not " * 2000 + "1 }}",
        "{{ " + "1 + " * 20000 + "1 }}",
        "{{ 'x'" + " | upper" * 2000 + " }}",
        "{{ x" + ".y" * 3000 + " }}",
    ],
    ids=["if", "for", "thirty loops", "parentheses", "lists", "not", "sums", "filters", "attributes"],
)
def test_a_template_that_nests_too_deeply_is_refused(source: str) -> None:
    with pytest.raises(CheckpointError, match="the chat template nests too deeply"):
        render(source, HI)


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ 'a }}", "{% endfor %}", "{{ " + "1" * 5000 + " }}", "{% unknown %}", "{{ 1 | unknown }}"]
)
def test_a_template_that_is_not_jinja_is_refused(source: str) -> None:
    with pytest.raises(CheckpointError, match="the chat template is not valid Jinja: ") as caught:
        render(source, HI)
    assert len(str(caught.value)) < 400


def test_a_template_of_megabytes_is_refused() -> None:
    with pytest.raises(CheckpointError, match="has 1,048,577 characters; at most 1,048,576 are read"):
        render("x" * (2**20 + 1), HI)


def test_a_long_reason_is_cut() -> None:
    with pytest.raises(PromptError) as caught:
        render("{{ raise_exception('no ' * 10000) }}", HI)
    assert len(str(caught.value)) < 400
