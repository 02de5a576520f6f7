"""What a reply may be bound to."""

import re
from dataclasses import FrozenInstanceError

import pytest

from mlx_qwen3.engine import specs


def test_descriptions_are_values():
    assert specs.JsonSchema({"type": "null"}) == specs.JsonSchema({"type": "null"}, strict=True)
    assert specs.ToolChoice([]) == specs.ToolChoice([], "auto", True, "json")
    with pytest.raises(FrozenInstanceError):
        specs.Regex("a").pattern = "b"
    assert specs.SPECS == ("JsonObject", "JsonSchema", "Regex", "Lark", "ToolChoice")


@pytest.mark.parametrize("space", [" ", "  ", "\n", "\n    ", "\r\n\t", "\n" + 64 * " "])
def test_white_space_that_printers_of_json_write(space):
    assert re.fullmatch(specs.WHITE_SPACE, space)
    assert not re.fullmatch(specs.WHITE_SPACE, space + "\n")
