"""Python functions as tools: the schema is that of transformers."""

import enum
from collections.abc import Callable
from typing import Any, Dict, List, Literal, Optional, Tuple, Union  # noqa: UP035 - what people write

import pytest

from mlx_qwen3.errors import PromptError
from mlx_qwen3.text.tool_schema import tool_schema


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


Mixed = enum.Enum("Mixed", {"A": 1, "B": "b", "C": None})


def weather(city: str, days: int = 1, exact: bool = False) -> str:
    """Tell the weather.

    It asks a station.

    Args:
        city: The name of the city,
            in its own language
        days: How many days: 1 to 7
        exact: Whether to say
          it exactly

    Returns:
        The weather, in words

    Raises:
        ValueError: if there is no such city
    """


def containers(
    a: list[int], b: dict[str, float], c: tuple[int, str], d: list[list[str]], e: list, f: dict, g: tuple, h: Any
) -> None:
    """Everything that holds something.

    Args:
        a: list
        b: dict
        c: tuple
        d: nested
        e: bare list
        f: bare dict
        g: bare tuple
        h: anything
    """


def older(a: List[int], b: Dict[str, Any], c: Tuple[int, int], d: Optional[str] = None, e: Union[int, str] = 1) -> Any:  # noqa: UP006, UP007, UP045
    """Hints of older code.

    Args:
        a: one
        b: two
        c: three
        d: four
        e: five
    """


def bare(a: List, b: Dict, c: Tuple, d: None = None, e: dict[str, list[int]] | None = None):  # noqa: UP006
    """Bare hints.

    Args:
        a: one
        b: two
        c: three
        d: four
        e: five
    """


def unions(
    a: int | None,
    b: int | str | None,
    c: int | list[str],
    d: Literal["x", "y"] | None,
    e: Union[list, tuple],  # noqa: UP007
    f: list[Color] | None,
    g: Optional[Union[float, Literal[1, "a"]]] = None,  # noqa: UP007, UP045
) -> list[int] | None:
    """Unions.

    Args:
        a: one
        b: two
        c: three
        d: four
        e: five
        f: six
        g: seven

    Returns: on the same line
    """


def choices(a: Literal["x", 1, True, None], b: Color, c: Level, d: Mixed, e: str) -> Color:
    """Choices.

    Args:
        a: literal
        b: enumeration
        c: of integers
        d: of several types
        e: text (choices: ["tea ", "coffee", 5])

    Returns:
        a color
    """


def no_arguments() -> object:
    """Say what time it is."""


def tabs(x: int, y: int): ...


tabs.__doc__ = "Tabs.\n\n\tArgs:\n\t\tx: first\n\n\t\ty: second:\n\t\t\twith more: text\n\t"


def stars(*args: int, **options: str):
    """Stars.

    Args:
        args: numbers
        options: texts
    """


class Machine:
    def press(self, button: str, hold: float = 0.5) -> dict[str, int]:
        """Press a button.

        Args:
            button: Its name (Choices: ["a", "b"])
            hold: Seconds
        """

    @classmethod
    def make(cls, name: "str") -> "Machine":
        """Make a machine.

        Args:
            name: Its name
        """

    @staticmethod
    def count(self: int):
        """Count, with a parameter called self.

        Args:
            self: a number
        """


TOOLS: list[Callable[..., Any]] = [
    weather,
    containers,
    older,
    bare,
    unions,
    choices,
    no_arguments,
    tabs,
    stars,
    Machine().press,
    Machine.press,
    Machine.make,
    Machine.count,
]


@pytest.mark.parametrize("function", TOOLS, ids=lambda f: f.__qualname__)
def test_the_schema_is_that_of_transformers(function: Callable[..., Any]) -> None:
    utils = pytest.importorskip("transformers.utils")
    ours, theirs = tool_schema(function), utils.get_json_schema(function)
    assert ours == theirs
    assert str(ours) == str(theirs)  # the order too, which a template writes


def test_a_schema_can_be_made_again() -> None:
    assert tool_schema(weather) == tool_schema(weather)


def undocumented(x: int) -> None: ...


def untyped(x, y: int):
    """Untyped.

    Args:
        x: one
        y: two
    """


def undescribed(x: int, y: int):
    """Undescribed.

    Args:
        x: one
    """


def strange(x: Machine):
    """Strange.

    Args:
        x: one
    """


def long_tuple(x: tuple[int, ...]):
    """Any length.

    Args:
        x: one
    """


def unknown_name(x: "Nowhere"):  # noqa: F821
    """Unknown.

    Args:
        x: one
    """


def bad_choices(x: str):
    """Bad choices.

    Args:
        x: one (choices: tea, coffee)
    """


def bad_literal(x: Literal[b"x"]):
    """Bytes.

    Args:
        x: one
    """


REFUSED = {
    undocumented: r"tools\[0\] \(undocumented\) has no docstring",
    untyped: r"tools\[0\] \(untyped\) has no type hint for 'x'",
    undescribed: r"\(undescribed\) does not describe 'y' in the Args section",
    strange: r"\(strange\), argument 'x': Machine has no JSON schema",
    long_tuple: r"\(long_tuple\), argument 'x': tuple\[int, \.\.\.\] has no JSON schema; use list",
    unknown_name: r"\(unknown_name\) has a type hint that cannot be read \(name 'Nowhere' is not defined\)",
    bad_choices: r"\(bad_choices\), argument 'x': its choices are 'tea, coffee'; expected a JSON list",
    bad_literal: r"\(bad_literal\), argument 'x': .* has values that are not",
    "get_weather": r"tools\[0\] is of type str; expected a JSON schema or a Python function",
    Machine: r"tools\[0\] is of type type; expected",
    len: r"tools\[0\] is of type builtin_function_or_method; expected",
}


@pytest.mark.parametrize(
    ("function", "reason"), REFUSED.items(), ids=[text.split(",")[0][:40] for text in REFUSED.values()]
)
def test_a_function_without_a_schema_is_refused(function: Any, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        tool_schema(function, "tools[0]")
