"""What the report says about a router is what it did: counted here by hand, and for a model from reference.py."""

import math

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import TINY_MOE, random_weights, write_checkpoint

from mlx_qwen3.compare.experts import CHOSEN
from mlx_qwen3.compare.steps import reference_steps
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.inspect import Options, inspect, load_rules
from mlx_qwen3.inspect.numbers import measure, measure_step
from mlx_qwen3.inspect.router import NONE, RouterSteps, judge_router
from mlx_qwen3.inspect.rules import NORMAL, UNUSUAL
from mlx_qwen3.model.load import load_model


def router_of(logits, k, passes=1):
    """A router for scores (B, L, E), in several passes; the experts of a token in the order of their numbers."""
    steps = RouterSteps()
    for part in np.array_split(np.array(logits, np.float32), passes, axis=1):
        chosen = np.sort(np.argsort(-part, axis=-1, kind="stable")[..., :k], axis=-1)
        best = np.exp(np.take_along_axis(part, chosen, -1))
        weights = best / best.sum(-1, keepdims=True)
        for step, array in (("router_logits", part), ("chosen_experts", chosen), ("expert_weights", weights)):
            steps.add(step, mx.array(array))
    return steps.result()


# Five tokens, two of four experts for each; probabilities of powers of two
LOGITS = np.log([[[8, 4, 2, 1], [8, 1, 4, 2], [8, 4, 1, 3.99], [8, 4, 2, 1], [8, 4, 2, 1]]])


@pytest.mark.parametrize("passes", [1, 2, 5])
def test_a_load_counted_by_hand(passes):
    router = router_of(LOGITS, 2, passes)
    assert router.load.tolist() == [5, 4, 1, 0]
    assert (router.busiest, router.busiest_share, router.unused) == (0, 1.0, [3])
    assert (router.tokens, router.for_each, router.even) == (5, 2, 2.5)
    assert router.entropy == pytest.approx(-(0.5 * math.log(0.5) + 0.4 * math.log(0.4) + 0.1 * math.log(0.1)))
    assert router.evenness == pytest.approx((router.entropy - math.log(2)) / math.log(2))
    assert router.histogram == (1, 1, 2, 0)  # 5 is twice the even share, which is not more
    assert router.following.tolist() == [[2, 3, 3, 2, 2]]
    np.testing.assert_allclose(router.margins[0], [2 / 15, 2 / 15, 0.01 / 16.99, 2 / 15, 2 / 15], rtol=1e-4)
    assert router.closest == (0, 2)
    assert [router.near_ties(nearness) for nearness in (0.001, 0.01, 0.5)] == [0, 1, 5]
    np.testing.assert_allclose(router.mean_weights, [2 / 3, 1 / 3, 1 / 3, 0], rtol=1e-6)


def test_if_all_experts_are_chosen_there_is_no_next_one():
    router = router_of(LOGITS, 4)
    assert (router.following == NONE).all()
    assert (router.closest, router.near_ties(1.0), router.evenness) == (None, 0, 1.0)


def test_the_trained_experts_are_all_used_and_their_load_is_judged_normal():
    prompt = "What is 17 + 25? Sort these numbers: 5, 3, 9. Reverse: a b c d e. What is the capital of France? " * 3
    report = inspect("demo-moe", Options(prompt=prompt))
    assert sorted(report.numbers.routers) == [0, 1, 2, 3, 4]
    for layer, router in report.numbers.routers.items():
        assert router.load.sum() == 4 * router.tokens > 12 * 16
        assert report.verdicts[(layer, CHOSEN)].level == NORMAL
        assert len(router.unused) <= 3
    assert report.complaint is None


def test_nan_is_no_near_tie():
    router = router_of(np.where(np.arange(5)[:, None] == 2, np.nan, LOGITS), 2)
    assert router.near_ties(0.01) == 0
    assert router.closest != (0, 2)


def random_logits(experts=16, tokens=200):
    return np.random.default_rng(0).normal(size=(1, tokens, experts))


def preferring(logits, experts, by):
    logits = logits.copy()
    logits[..., experts] += by
    return logits


UNEVEN = {
    "one expert for all": (preferring(random_logits(), [5], 20), 2, "expert 5 gets 100% of the tokens"),
    "always the same": (preferring(random_logits(), [3, 9], 20), 2, "few experts do the work: evenness 0 "),
    "dead experts": (preferring(random_logits(), range(6), -20), 2, "6 of 16 experts get no token"),
}


@pytest.mark.parametrize(("logits", "k", "words"), UNEVEN.values(), ids=UNEVEN.keys())
def test_an_uneven_load_is_unusual(logits, k, words):
    verdict = judge_router(router_of(logits, k), load_rules())
    assert verdict.level == UNUSUAL
    assert any(words in reason for reason in verdict.reasons)


NORMAL_LOADS = {
    "random": (random_logits(), 2),
    "too few tokens": (preferring(random_logits(tokens=20), [5], 20), 2),
    "all experts for each": (random_logits(), 16),
    "all but one for each": (random_logits(), 15),
}


@pytest.mark.parametrize(("logits", "k"), NORMAL_LOADS.values(), ids=NORMAL_LOADS.keys())
def test_a_load_that_is_even_or_says_nothing_is_normal(logits, k):
    assert judge_router(router_of(logits, k), load_rules()).level == NORMAL


@pytest.mark.parametrize("chunk", [2048, 10, 1])
def test_the_routers_of_a_model_are_those_of_the_reference(chunk, tiny_moe, ids):
    """Also if the prompt goes through in several passes."""
    pytest.importorskip("torch")
    routers = measure(load_model(tiny_moe), mx.array(ids), chunk=chunk).routers
    layers = list(reference_steps(Checkpoint(tiny_moe), mx.array(ids)))
    assert set(routers) == {0, 2}
    for layer, router in routers.items():
        logits = layers[layer].arrays["router_logits"].double().numpy()
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        order = np.argsort(-p, axis=-1)
        assert router.experts == 7
        np.testing.assert_array_equal(router.chosen, np.sort(order[..., :3], axis=-1))
        np.testing.assert_array_equal(router.following, order[..., 3])
        last, following = (np.take_along_axis(p, order[..., [rank]], -1)[..., 0] for rank in (2, 3))
        np.testing.assert_allclose(router.margins, last - following, atol=1e-6)
        np.testing.assert_allclose(router.weights, layers[layer].arrays["expert_weights"].numpy(), atol=1e-6)


def test_the_router_of_a_decode_step_is_that_of_its_token(tiny_moe, ids):
    model = load_model(tiny_moe)
    prompts, tokens = mx.array(ids[:, :30]), mx.array(ids[:, 30:])
    whole, step = measure(model, mx.array(ids)).routers, measure_step(model, prompts, tokens).routers
    assert set(step) == {0, 2}
    for layer, router in step.items():
        np.testing.assert_array_equal(router.chosen, whole[layer].chosen[:, -1:])
        np.testing.assert_allclose(router.weights, whole[layer].weights[:, -1:], atol=1e-5)


def test_a_dense_model_has_no_routers(tiny, ids):
    assert measure(load_model(tiny), mx.array(ids)).routers == {}


def test_experts_that_the_weights_make_busy_and_dead(tmp_path, ids):
    """Channel 0 is large in every token, so the router's weight for it decides."""
    weights = random_weights(TINY_MOE)
    weights["model.embed_tokens.weight"][:, 0] = 3
    weights["model.layers.0.mlp.gate.weight"][:, 0] = [0, 0, 9, 0, 0, -9, 0]
    router = measure(load_model(write_checkpoint(tmp_path, TINY_MOE, weights)), mx.array(ids)).routers[0]
    assert (router.busiest, router.busiest_share, router.unused) == (2, 1.0, [5])
