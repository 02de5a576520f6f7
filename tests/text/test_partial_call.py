"""A call that is still being written: where its arguments begin and end."""

import json

import pytest

from mlx_qwen3.text.partial_call import PartialCall, beginning

ARGUMENTS = '{"a": "}\\\\\\"{", "b": [1, {"c": "]"}], "d": {}}'
BODY = f'\n{{ "name" : "find", "arguments": {ARGUMENTS}}}\n'


def test_the_arguments_are_valid():
    assert json.loads(ARGUMENTS)["a"] == '}\\"{'


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_any_division_gives_the_arguments(size):
    call, pieces, name = None, [], None
    for end in range(size, len(BODY) + size, size):
        body = BODY[:end]
        if call is None:
            name, at = beginning(body)
            if name is None:
                continue
            call = PartialCall(0, at)
        pieces.append(call.read(body))
    assert (name, "".join(pieces), call.over) == ("find", ARGUMENTS, True)


@pytest.mark.parametrize(
    "body",
    ["", '{"name": "find"', '{"name": "find", "arguments": ', '{"arguments": {}', '{"name": "find", "arguments": "{'],
)
def test_a_body_whose_arguments_have_not_begun(body):
    assert beginning(body) == (None, 0)


def test_arguments_that_are_cut_are_not_over():
    call = PartialCall(0, beginning(BODY)[1])
    call.read(BODY[:40])
    assert not call.over
