"""Figures of servers, from values whose results are known."""

import pytest

from mlx_qwen3.bench.options import Options
from mlx_qwen3.bench.serving_report import Arrival, Load, Row, Serving, arrival_figures, compare, figures
from mlx_qwen3.errors import UsageError


def load(seconds=2.0, tokens=100, first=(0.1, 0.2), texts=("a", "b")):
    return Load("chat", 2, seconds, tokens, 10, 5, list(first), list(texts))


def test_figures():
    found = figures([load(2.0), load(4.0), load(1.0, first=[0.3] * 18)])
    assert found == {"tps": 50, "first_p50_ms": pytest.approx(300), "first_p95_ms": pytest.approx(300)}


def test_figures_of_arrivals():
    found = arrival_figures(
        [Arrival([0.01] * 19 + [0.5], 2.0, 2000), Arrival([0.01, 0.3], 1.0, 2000), Arrival([0.1], 3.0, 2000)]
    )
    assert found == {
        "longest_ms": pytest.approx(300),
        "gap_p95_ms": pytest.approx(100),
        "first_ms": pytest.approx(2000),
    }


def rows(dtype="float32", **other):
    return Row("ours", "float32", "", [load()]), Row("theirs", dtype, "", [load(**other)])


@pytest.mark.parametrize(
    ("other", "equal", "agree"),
    [
        ({}, 2, True),
        ({"texts": ("a", "c")}, 1, False),  # half of the replies differ
        ({"texts": ("a", "c"), "dtype": "bfloat16"}, 1, True),  # which two dtypes may
        ({"tokens": 106}, 2, False),
        ({"tokens": 104}, 2, True),
    ],
)
def test_replies_are_compared(other, equal, agree):
    found = compare(*rows(**other), "chat", 2)
    assert (found.equal, found.replies, found.agree) == (equal, 2, agree)


@pytest.mark.parametrize("clients", [(0, 1), (4, 4), (65,)])
def test_clients_that_cannot_be_measured(clients):
    with pytest.raises(UsageError, match=f"--clients is '{','.join(map(str, clients))}'; expected different numbers"):
        Serving(Options("demo"), clients)
