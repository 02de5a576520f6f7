"""Packed or unpacked: what is chosen, what it takes, what is refused and told, and that replies are the same."""

import mlx.core as mx
import pytest
from checkpoints import AFFINE_4, write_checkpoint, write_packed
from mlx.utils import tree_flatten

import mlx_qwen3
from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.engine import weights as module
from mlx_qwen3.engine.decode import decode
from mlx_qwen3.engine.memory import Memory
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.engine.weights import check, choose, weights_of
from mlx_qwen3.errors import MemoryBudgetError, UsageError
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.model.load import load_model

LARGE = 10**12


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return Checkpoint(write_packed(tmp_path_factory.mktemp("packed"), AFFINE_4))


@pytest.fixture(scope="module")
def smaller(tmp_path_factory):
    return Checkpoint(write_packed(tmp_path_factory.mktemp("smaller"), AFFINE_4, num_hidden_layers=1))


@pytest.fixture(scope="module")
def plain(tiny):
    return Checkpoint(tiny)


@pytest.fixture
def fast_cpu(monkeypatch):
    monkeypatch.setattr(module.kernels, "on_gpu", lambda: False)
    monkeypatch.setattr(module.blas, "lacking", lambda: False)


def unpacks(checkpoints, weights=None, budget=LARGE, room=0):
    return [one.unpack for one in choose(checkpoints, "fp32", weights, budget, room)]


# --- sizes


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("write", [write_checkpoint, lambda folder: write_packed(folder, AFFINE_4)])
def test_what_a_checkpoint_needs_is_known_before_it_is_read(tmp_path, write, dtype):
    folder = write(tmp_path / "model")
    for choice in ("unpacked", None):
        [chosen] = choose([Checkpoint(folder)], dtype, choice, 0)
        model = load_model(folder, dtype, unpack=chosen.unpack)
        assert chosen.nbytes == sum(array.nbytes for _, array in tree_flatten(model.parameters())) == model.nbytes


# --- the choice


def test_on_a_cpu_with_a_fast_blas_weights_are_unpacked_if_a_quarter_of_the_budget_stays(fast_cpu, packed):
    size = weights_of(packed, "fp32").unpacked
    assert unpacks([packed], budget=size * 4 // 3 + 4) == [True]
    assert unpacks([packed], budget=size * 4 // 3 - 4) == [False]


def test_what_the_request_needs_counts(fast_cpu, packed):
    size = weights_of(packed, "fp32").unpacked
    assert unpacks([packed], budget=3 * size, room=2 * size) == [True]
    assert unpacks([packed], budget=3 * size, room=2 * size + 1) == [False]


def test_the_smallest_of_several_comes_first(fast_cpu, packed, smaller):
    large, small = (weights_of(checkpoint, "fp32") for checkpoint in (packed, smaller))
    both, one = large.unpacked + small.unpacked, large.packed + small.unpacked
    for order in ([packed, smaller], [smaller, packed]):
        found = [unpacks(order, budget=size * 4 // 3 + 4) for size in (both, one, one - 100)]
        assert found == [[True, True], [checkpoint is smaller for checkpoint in order], [False, False]]


@pytest.mark.parametrize(("gpu", "slow"), [(True, False), (False, True)])
def test_a_gpu_and_a_cpu_without_a_fast_blas_keep_them_packed(monkeypatch, packed, gpu, slow):
    monkeypatch.setattr(module.kernels, "on_gpu", lambda: gpu)
    monkeypatch.setattr(module.blas, "lacking", lambda: slow)
    assert unpacks([packed]) == [False]
    assert unpacks([packed], "unpacked") == [True]


def test_a_choice_is_kept(fast_cpu, packed, plain):
    assert unpacks([packed], "packed") == [False]
    assert unpacks([packed], "unpacked", budget=1) == [True]  # `check` refuses it
    assert unpacks([plain, packed], "packed") == [False, False]
    assert unpacks([plain], "unpacked") == unpacks([plain]) == [False]


def test_what_cannot_be_is_refused(packed, plain):
    with pytest.raises(UsageError, match=r"^weights is packed, but the checkpoint is not quantized; leave it out"):
        unpacks([plain, plain], "packed")
    with pytest.raises(UsageError, match=r"^weights is 'none'; expected packed or unpacked$"):
        unpacks([packed], "none")


def test_a_checkpoint_that_does_not_fit_is_refused_with_both_numbers(plain):
    chosen = [weights_of(plain, "fp32")]
    check(chosen, chosen[0].nbytes)
    with pytest.raises(
        MemoryBudgetError, match=r"^the weights take 0\.25 MB and the memory budget is 0\.10 MB; use fewer"
    ):
        check(chosen, 100_000)


def test_unpacked_weights_that_do_not_fit_are_refused_with_all_numbers(packed):
    sizes = r"take 1\.19 MB and the memory budget is 0\.20 MB; leave them packed, which takes 0\.19 MB,"
    with pytest.raises(MemoryBudgetError, match=rf"^the weights, unpacked, {sizes} or a larger --memory$"):
        mlx_qwen3.load(packed.folder, memory=200_000, weights="unpacked")


def test_a_request_that_fits_only_beside_packed_weights_says_so(packed):
    for unpack in (False, True):
        memory = Memory(load_model(packed, "fp32", unpack=unpack), 2_000_000)
        with pytest.raises(MemoryBudgetError) as refused:
            memory.limit(5000, 10, False)
        assert ("packed weights" in str(refused.value)) is unpack


# --- what is told


def test_one_line_says_what_becomes_of_them(fast_cpu, monkeypatch, packed, plain):
    [unpacked], [kept] = choose([packed], "fp32", None, LARGE), choose([packed], "fp32", None, 1)
    assert unpacked.note == (
        "the packed weights are unpacked to float32, 1.19 MB instead of 0.19 MB, to be multiplied faster"
    )
    assert kept.note.startswith("the weights stay packed, 0.")
    assert choose([plain], "fp32", None, LARGE)[0].note is None
    monkeypatch.setattr(module.blas, "lacking", lambda: True)
    assert "without a fast BLAS" in kept.note
    monkeypatch.setattr(module.kernels, "on_gpu", lambda: True)
    assert kept.note is None
    assert unpacked.note


def test_names_of_the_choice(packed, plain):
    assert [choose([packed], "fp32", name, 0)[0].name for name in ("packed", "unpacked")] == ["packed", "unpacked"]
    assert choose([plain], "fp32", "unpacked", 0)[0].name is None


# --- replies


@pytest.mark.parametrize("source", ["demo", "demo-moe"])
def test_greedy_tokens_are_those_of_packed_weights(source, tmp_path):
    convert(source, tmp_path / "packed", quantize="affine4", divergence=False)
    (packed, tokenizer), (unpacked, _) = (
        mlx_qwen3.load(tmp_path / "packed", "fp32", weights=weights) for weights in ("packed", "unpacked")
    )
    assert (packed.unpacked, unpacked.unpacked) == (False, True)
    assert packed.fingerprint != unpacked.fingerprint
    assert unpacked.nbytes > 5 * packed.nbytes
    ids = tokenizer.encode("<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n<|im_start|>assistant\n")
    logits = [model(mx.array([ids])) for model in (packed, unpacked)]
    assert mx.abs(logits[0] - logits[1]).max() < 1e-4 * mx.abs(logits[0]).max()  # measured 3e-6: sums in another order
    replies = [
        [int(token) for token in decode(model, ids, SamplingParams(temperature=0), max_tokens=30)]
        for model in (packed, unpacked)
    ]
    assert replies[0] == replies[1]
