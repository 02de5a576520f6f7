"""Values of JSON files: which are accepted, and that a wrong type or range is an error that names key and value."""

import pytest

from mlx_qwen3.errors import ConfigError
from mlx_qwen3.files.settings import count, flag, mapping, number, token_ids


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        (count, 7, 7),
        (number, 3, 3.0),
        (number, 1e-6, 1e-6),
        (flag, False, False),
        (mapping, {"a": 1}, {"a": 1}),
        (mapping, None, {}),
        (token_ids, None, frozenset()),
        (token_ids, 0, {0}),
        (token_ids, [3, 5, 3], {3, 5}),
    ],
)
def test_values_that_are_taken(read, value, expected):
    assert read({"key": value}, "key") == expected


@pytest.mark.parametrize(
    ("read", "values", "expected"),
    [
        (count, (0, -1, 1.0, True, "7", [7], 1 << 40), "a positive integer, at most 2,147,483,648"),
        (number, (0, -1.5, True, "3", [3.0], float("nan"), float("inf"), 1e300), "a positive number"),
        (flag, (0, 1, "true", [True]), "true or false"),
        (mapping, (1, "x", [1], True), "an object"),
        (token_ids, (-1, 1.5, True, "3", [3, "4"], [None], {"a": 1}, [1 << 40]), "a token id or a list of them"),
    ],
)
def test_values_of_another_type_or_range(read, values, expected):
    for value in values:
        with pytest.raises(ConfigError, match=f"^key is .* in config.json; expected {expected}"):
            read({"key": value}, "key")


@pytest.mark.parametrize("read", [count, number, flag])
def test_a_value_that_is_missing(read):
    for raw in ({}, {"key": None}):
        with pytest.raises(ConfigError, match=r"key is missing from config\.json"):
            read(raw, "key")


def test_the_range_of_a_number_is_in_the_message():
    with pytest.raises(ConfigError, match=r"factor is 0\.5 .*; expected a number from 1 to 100"):
        number({"factor": 0.5}, "factor", least=1, most=100)


def test_a_long_value_is_shortened():
    with pytest.raises(ConfigError) as error:
        flag({"key": "x" * 5000}, "key")
    assert len(str(error.value)) < 300
