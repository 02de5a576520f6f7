"""Projections, plain and packed, against MLX's own."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_qwen3.model.linear import ConcatLinear, Embedding, Linear, QuantizedLinear

X, RESIDUAL = mx.random.normal((3, 64), key=mx.random.key(0)), mx.random.normal((3, 20), key=mx.random.key(1))


def right(linear):
    """By a module of MLX with the same parameters."""
    if isinstance(linear, Linear):
        theirs = nn.Linear(64, 20, bias=False)
    else:
        theirs = nn.QuantizedLinear(64, 20, bias=False, group_size=32, bits=linear.bits)
    theirs.update(linear.parameters())
    return theirs(X)


@pytest.fixture(params=[None, 4, 8], ids=["plain", "4 bits", "8 bits"])
def linear(request):
    model = nn.Sequential(Linear(64, 20))
    if request.param:
        nn.quantize(model, group_size=32, bits=request.param)
    return model.layers[0]


def test_a_product_alone_and_added_to_a_residual(linear):
    assert isinstance(linear, Linear | QuantizedLinear)
    assert mx.allclose(linear(X), right(linear), atol=1e-5)
    assert mx.allclose(linear.add(RESIDUAL, X), RESIDUAL + right(linear), atol=1e-5)


def test_a_weight_that_is_replaced_counts():
    linear = Linear(64, 20)
    before = linear(X)
    for replace in (lambda w: setattr(linear, "weight", w), lambda w: linear.update({"weight": w})):
        replace(2 * linear.weight)
        assert mx.allclose(linear(X), right(linear), atol=1e-5)
        assert not mx.allclose(linear(X), before, atol=1e-2)


def test_its_weight_is_its_only_parameter():
    linear = Linear(64, 20)
    linear(X)
    assert list(linear.parameters()) == ["weight"]


def test_parts_side_by_side():
    parts = [Linear(64, 20), Linear(64, 8)]
    assert mx.array_equal(ConcatLinear(parts)(X), mx.concatenate([part(X) for part in parts], axis=-1))


@pytest.mark.parametrize("rows", [1, 3])
def test_a_tied_projection(rows):
    embedding, theirs = Embedding(50, 64), nn.Embedding(50, 64)
    theirs.weight = embedding.weight
    x = mx.random.normal((rows, 2, 64), key=mx.random.key(2))
    for given in (x, x[:, 0]):
        assert mx.allclose(embedding.as_linear(given), theirs.as_linear(given), atol=1e-5)
