"""Estimates of the size of a template operation's result: never less than the real size."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen3.text import growth
from mlx_qwen3.text.growth import FILTERS, METHODS, OPERATORS, TemplateLimitError, check_growth, check_size, size

values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=20,
)


@given(value=values, indent=st.integers(1, 9))
def test_json_is_not_longer_than_estimated(value, indent) -> None:
    written = json.dumps(value, indent=indent)
    blanks = sum(len(line) - len(line.lstrip(" ")) for line in written.splitlines())
    assert blanks <= FILTERS["tojson"](value, indent=indent)


@given(text=st.text("ab\t\n"), old=st.text("ab", max_size=2), new=st.text("ab", max_size=5), count=st.integers(-1, 5))
def test_texts_are_not_longer_than_estimated(text: str, old: str, new: str, count: int) -> None:
    assert len(text.replace(old, new, count)) <= METHODS["replace"](text, old, new, count)
    assert len(new.join([text, old, text])) <= METHODS["join"](new, [text, old, text])
    assert len(text.expandtabs(count + 1)) <= METHODS["expandtabs"](text, count + 1)
    assert len(text * count) <= OPERATORS["*"](text, count) or count < 0
    assert len(text + new) <= size([text, new])


@given(left=st.integers(), right=st.integers(), exponent=st.integers(0, 99))
def test_integers_are_not_longer_than_estimated(left: int, right: int, exponent: int) -> None:
    assert (left * right).bit_length() // 4 <= OPERATORS["*"](left, right)
    assert (left**exponent).bit_length() // 4 <= OPERATORS["**"](left, exponent)


@pytest.mark.parametrize(
    ("text", "values", "width"),
    [
        ("%s in 20250101123456", ("x",), 0),
        ("%s%%", (1,), 0),
        ("%1234567s", ("x",), 1234567),
        ("%-01234567.3f", (1.0,), 1234567),
        ("%.1234567f", (1.0,), 1234567),
        ("%(name)1234567s", {"name": 1}, 1234567),
        ("%*d", (1234567, 5), 1234567),
        ("%d", (10**12,), 0),  # a large number is not a width
    ],
)
def test_widths_of_percent_formats(text: str, values: object, width: int) -> None:
    assert OPERATORS["%"](text, values) == width
    assert OPERATORS["%"](text.encode(), values) == width


@pytest.mark.parametrize(
    ("text", "arguments", "width"),
    [
        ("{} {0[key]}", (10**12,), 0),
        ("{:>1234567}", ("x",), 1234567),
        ("{:.1234567f}", (1.0,), 1234567),
        ("{:{}}", (1, 1234567), 1234567),
        ("{:{w}}", ({"w": 1234567},), 1234567),
    ],
)
def test_widths_of_brace_formats(text: str, arguments: tuple[object, ...], width: int) -> None:
    assert METHODS["format"](text, *arguments) == width


def test_numbers_do_not_grow() -> None:
    for left, right in ((1.5, 10**9), (10**9, 1.5), (2.0, 0.5), (10**12, 10**12)):
        check_growth(OPERATORS["*"], left, right)
    check_growth(OPERATORS["**"], 2.0, 10**9)


def test_what_a_value_holds_twice_counts_twice() -> None:
    inner = ["ab"] * 3
    assert size(inner) == 3 * 8 + 3 * 2
    assert size([inner, inner]) == 2 * 8 + 2 * size(inner)
    assert size({"a": inner}) == 8 + 1 + size(inner)


def test_counting_ends_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "MAX_SIZE", 1000)
    value: list[object] = ["x"]
    for _ in range(200):  # 2 ** 200 elements, were all of them counted
        value = [value, value]
    with pytest.raises(TemplateLimitError):
        check_size(value)


def test_arguments_that_do_not_fit_are_left_to_the_operation() -> None:
    check_growth(METHODS["replace"], "text", 5, None)
    check_growth(METHODS["center"], "text")
    check_growth(FILTERS["round"], 1.0, "many")
