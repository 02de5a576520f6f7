import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy

from mlx_qwen3.model.linear import Embedding, ExpertLinear, Linear, QuantizedLinear
from mlx_qwen3.model.low_rank import AdaptedEmbedding, AdaptedExpertLinear, AdaptedLinear, InputAndOutput, TiedOutput

RANK, INPUTS, OUTPUTS, EXPERTS = 3, 64, 48, 5


@pytest.fixture
def arrays():
    """W (outputs, inputs), a (r, inputs), b (outputs, r), gain (outputs,), x (T, inputs)."""
    rng = np.random.default_rng(0)
    shapes = ((OUTPUTS, INPUTS), (RANK, INPUTS), (OUTPUTS, RANK), (OUTPUTS,), (7, INPUTS))
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def with_weight(module, weight):
    module.weight = mx.array(weight)
    return module


@pytest.mark.parametrize("gained", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_a_projection_and_its_sum_with_a_residual(gained, packed, arrays):
    weight, a, b, gain, x = arrays
    base = with_weight(Linear(1, 1), weight)
    if packed:
        base = QuantizedLinear.from_linear(base, 64, 8, "affine")
        weight = as_numpy(mx.dequantize(base.weight, base.scales, base.biases, 64, 8))
    module = AdaptedLinear(base, mx.array(a.T), mx.array(b.T), mx.array(gain) if gained else None)
    expected = x @ weight.T * (gain if gained else 1) + x @ a.T @ b.T
    assert np.abs(as_numpy(module(mx.array(x))) - expected).max() < 1e-4
    residual = np.float32(100) + expected
    assert np.abs(as_numpy(module.add(mx.array(residual), mx.array(x))) - residual - expected).max() < 2e-4


def test_a_projection_of_each_expert():
    rng = np.random.default_rng(1)
    weight, a, b = (
        rng.normal(size=(EXPERTS, *shape)).astype(np.float32)
        for shape in ((OUTPUTS, INPUTS), (RANK, INPUTS), (OUTPUTS, RANK))
    )
    x = rng.normal(size=(4, INPUTS)).astype(np.float32)
    module = AdaptedExpertLinear(with_weight(ExpertLinear(1, 1, 1), weight), mx.array(a), mx.array(b))
    full = weight + b @ a
    experts, rows = np.array([4, 0, 2, 2, 1], np.uint32), np.array([3, 3, 0, 1, 2], np.uint32)
    expected = np.stack([full[e] @ x[r] for e, r in zip(experts, rows, strict=True)])
    assert np.abs(as_numpy(module(mx.array(x), mx.array(experts), mx.array(rows))) - expected).max() < 1e-4
    ascending = np.array([0, 1, 1, 4], np.uint32)  # without rows, pair i has row i
    expected = np.stack([full[e] @ row for e, row in zip(ascending, x, strict=True)])
    assert np.abs(as_numpy(module(mx.array(x), mx.array(ascending))) - expected).max() < 1e-4
    assert np.abs(as_numpy(module.of(3)(mx.array(x))) - x @ full[3].T).max() < 1e-4


@pytest.mark.parametrize("gained", [False, True], ids=["LoRA", "DoRA"])
def test_an_embedding_and_the_output_that_is_tied_to_it(gained, arrays):
    weight, a, b, gain, x = arrays
    base = with_weight(Embedding(1, 1), weight)
    changed = AdaptedEmbedding(base, mx.array(a), mx.array(b), mx.array(gain) if gained else None)
    both = InputAndOutput(changed, TiedOutput(base))
    ids = np.array([[5, 0, 47], [5, 1, 2]])
    expected = (weight * (gain[:, None] if gained else 1) + b @ a)[ids]
    assert np.abs(as_numpy(both(mx.array(ids))) - expected).max() < 1e-4
    assert np.abs(as_numpy(both.as_linear(mx.array(x))) - x @ weight.T).max() < 1e-4
