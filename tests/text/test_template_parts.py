"""The functions and tags of chat templates against transformers."""

from typing import Any

import pytest
from chats import HI, render

from mlx_qwen3.errors import PromptError

MESSAGES = [{"role": "user", "content": "<&'\"> 你好"}]
PARTS = {
    "a dict in every way": "{{ dict([('a', 1)], b=2) }}{{ dict.fromkeys(['x', 'y']) }}",
    "namespace of an object": "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a + ns.b }}",
    "generation in a loop": "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}",
    "tojson in every way": "{{ messages | tojson(true, indent=1, separators=(',', ':'), sort_keys=true) }}",
}


@pytest.mark.parametrize("source", PARTS.values(), ids=PARTS)
def test_they_are_those_of_transformers(reference: Any, source: str) -> None:
    assert render(source, MESSAGES) == reference(source, MESSAGES) != ""


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('no system message') }}", "no system message"),
        ("{% set ns = namespace(a=1) %}{% set ns.__class__ = 2 %}", "'__class__'"),
        ("{{ dict.__class__ }}{{ dict.mro() }}", "__class__|mro"),
    ],
)
def test_what_they_refuse(source: str, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        render(source, HI)
