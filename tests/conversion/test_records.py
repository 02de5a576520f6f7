"""Records from JSON that anyone may have written: a wrong field is named."""

import json
from dataclasses import asdict, dataclass

import pytest

from mlx_qwen3.conversion.records import decode
from mlx_qwen3.conversion.shards import TensorRecord
from mlx_qwen3.conversion.tally import TensorError

TENSOR = TensorRecord(
    "a", ("b", "c"), (2, 3), "F32", "fused", "", "f", 8, 24, "0a", TensorError(0.5, 1, 2, 0.25, (0.5, 0.75))
)
STORED = json.loads(json.dumps(asdict(TENSOR)))


@dataclass(frozen=True)
class Nested:
    rows: tuple[tuple[int, ...], ...]
    name: str | None


def test_a_record_comes_back():
    assert decode(TensorRecord, STORED) == TENSOR
    assert decode(TensorRecord, STORED | {"error": None}).error is None
    assert decode(Nested, {"rows": [[1, 2], []], "name": None}) == Nested(((1, 2), ()), None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "name is 3; expected text"),
        ({"shape": "2x3"}, "shape is '2x3'; expected a list"),
        ({"shape": [2, -3]}, r"shape\[1\] is -3; expected a whole number from 0 up"),
        ({"shape": [2, True]}, r"shape\[1\] is True; expected a whole number"),
        ({"bytes": 1.5}, "bytes is 1.5; expected a whole number"),
        ({"bytes": None}, "bytes is None; expected a whole number"),
        ({"sources": [None]}, r"sources\[0\] is None; expected text"),
        ({"error": []}, r"error is \[\]; expected an object"),
        ({"error": {"max": 1}}, r"error\.relative is missing"),
        ({"error": {**STORED["error"], "max": "much"}}, r"error\.max is 'much'; expected a number"),
        ({"kind": "x"}, "kind is a field that this version does not know"),
        ({"x" * 5000: 1}, r"x+\.\.\.x+ \(5000 characters\) is a field"),
        ({"dtype": "y" * 5000 + "'"}, None),
    ],
)
def test_a_wrong_field_is_named(change, message):
    stored = STORED | change
    if message is None:  # any text is text
        assert decode(TensorRecord, stored).dtype == change["dtype"]
        return
    with pytest.raises(ValueError, match=f"^{message}") as error:
        decode(TensorRecord, stored)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_what_is_not_an_object(value):
    with pytest.raises(ValueError, match="expected an object"):
        decode(Nested, value)
