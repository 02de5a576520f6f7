"""Mixture of experts against transformers and the float64 oracle, layer by layer."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import numpy as np
import oracle
import pytest
from arrays import as_numpy, relative
from checkpoints import FULL_MOE, TINY_MOE, YARN, random_weights, write_checkpoint

from mlx_qwen3.engine.decode import generate_batch
from mlx_qwen3.engine.runner import decode_step
from mlx_qwen3.model import kernels, moe
from mlx_qwen3.model.load import load_model

VARIANTS: dict[str, dict[str, Any]] = {
    "weights that sum 1": {},
    "weights as they come": {"norm_topk_prob": False},
    "every second layer": {"decoder_sparse_step": 2, "mlp_only_layers": []},
    "experts everywhere": {"mlp_only_layers": []},
    "experts nowhere": {"mlp_only_layers": [0, 1, 2]},
    "one expert for each token": {"num_experts_per_tok": 1, "norm_topk_prob": False},
    "all experts for each token": {"num_experts_per_tok": 7},
    "yarn": {"rope_scaling": YARN},
    "untied": {"tie_word_embeddings": False},
}
# Measured: at most 4e-6 with logits up to 8.
TOLERANCE = 2e-5


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def variant(request, tmp_path):
    return write_checkpoint(tmp_path / "model", TINY_MOE, **request.param), {**TINY_MOE, **request.param}


@pytest.fixture(params=["pair by pair", "expert by expert", "sorted, as on a GPU"])
def way(request, monkeypatch):
    """Each of the ways to compute the experts."""
    many = 10_000 if request.param == "pair by pair" else 0
    monkeypatch.setattr(moe, "PAIRS_TO_SORT", dict.fromkeys(moe.PAIRS_TO_SORT, many))
    if request.param == "sorted, as on a GPU":
        monkeypatch.setattr(kernels, "on_gpu", lambda: True)
    return request.param


def assert_layers_agree(model, ids, states):
    for place, (ours, theirs) in enumerate(zip(model.residuals(ids), states, strict=True)):
        assert relative(ours, theirs) < 1e-6, f"after layer {place - 1} the hidden states differ"


def test_float32_equals_transformers(variant, ids, transformers_model, transformers_states):
    folder, _ = variant
    states, logits = transformers_states(transformers_model(folder), ids)
    model = load_model(folder)
    assert_layers_agree(model, ids, states)
    assert np.abs(as_numpy(model(ids)) - logits).max() < TOLERANCE


def test_every_way_equals_the_float64_oracle(variant, way, ids):
    folder, config = variant
    weights, model = random_weights(config), load_model(folder)
    assert_layers_agree(model, ids, oracle.hidden_states(config, weights, ids))
    assert np.abs(as_numpy(model(ids)) - oracle.logits(config, weights, ids)).max() < TOLERANCE


@pytest.mark.parametrize("norm", [True, False])
def test_64_greedy_tokens_equal_transformers(norm, ids, tmp_path, transformers_model):
    folder = write_checkpoint(tmp_path, TINY_MOE, norm_topk_prob=norm)
    torch = pytest.importorskip("torch")
    prompt = ids[:1, :9]
    theirs = transformers_model(folder).generate(
        torch.tensor(prompt), max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert generate_batch(load_model(folder), prompt, max_tokens=64) == theirs[:, 9:].tolist()


def test_rows_that_join_and_leave_get_the_tokens_that_they_get_alone(tiny_moe, ids):
    model = load_model(tiny_moe)
    prompts = [ids[row % 2, : 3 + 4 * row].tolist() for row in range(6)]
    stop = [7, 11, 19, 23, 42]  # so that rows end at different times
    together = generate_batch(model, prompts, max_tokens=20, stop_ids=stop)
    assert together == [generate_batch(model, [prompt], max_tokens=20, stop_ids=stop)[0] for prompt in prompts]


def test_the_bytes_of_a_step_are_those_of_the_chosen_experts(tiny_moe, tiny, untied):
    model, dense = load_model(tiny_moe), load_model(tiny)
    experts = 2 * 3 * 28 * 48 * 4  # two layers, three matrices
    assert model.nbytes - model.step_bytes == (7 - 3) * experts
    assert model.expert_share == pytest.approx(3 * experts / model.step_bytes)
    assert (dense.step_bytes, dense.expert_share) == (dense.nbytes, 0)
    apart = load_model(untied)
    assert apart.nbytes - apart.step_bytes == apart.embed_tokens.weight.nbytes  # a step reads one row of it


def test_a_padded_batch_equals_its_rows_alone_in_prompt_and_replayed_steps(tiny_moe, ids, monkeypatch):
    monkeypatch.setattr(kernels, "replay_after", lambda: 2)  # then the step is compiled
    model, padding = load_model(tiny_moe), [0, 11]
    weights = random_weights(TINY_MOE)
    right = [oracle.logits(TINY_MOE, weights, ids[row : row + 1, pad:])[0] for row, pad in enumerate(padding)]
    cache = model.make_cache(2, padding)
    found = [as_numpy(model(ids[:, :30], cache))]
    step = decode_step(model)
    found += [as_numpy(step(mx.array(ids[:, place]), cache))[:, None] for place in range(30, 37)]
    logits = np.concatenate(found, axis=1)
    for row, pad in enumerate(padding):
        assert np.abs(logits[row, pad:] - right[row]).max() < TOLERANCE


def test_any_split_of_a_prompt_gives_the_logits_of_the_whole(tiny_moe, ids):
    model = load_model(tiny_moe)
    whole = as_numpy(model(ids))
    for lengths in ([1] * 37, [5, 7, 25], [36, 1]):
        cache, first, found = model.make_cache(2), 0, []
        for length in lengths:
            found.append(as_numpy(model(ids[:, first : first + length], cache)))
            first += length
        assert np.abs(np.concatenate(found, axis=1) - whole).max() < TOLERANCE


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_thread_that_did_not_load_it_can_run_it(dtype, tiny_moe, ids):
    model = load_model(tiny_moe, dtype)

    def run():
        with mx.stream(mx.new_stream(mx.cpu)):
            return [as_numpy(model(rows)) for rows in (ids, ids[:, :1])]

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(run).result()
    for logits, rows in zip(found, (ids, ids[:, :1]), strict=True):
        np.testing.assert_array_equal(logits, as_numpy(model(rows)))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_is_as_near_to_float32_as_transformers_is(dtype, tmp_path, ids, transformers_model):
    """Rounding can change which expert is chosen, so the yardstick is the median over the tokens."""
    folder = write_checkpoint(tmp_path, TINY_MOE, moe_intermediate_size=32)  # torch needs rows of whole 16 bytes
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        name = {"bf16": "bfloat16", "fp16": "float16"}[dtype]
        exact, theirs = (transformers_model(folder, n)(torch.tensor(ids)).logits.float() for n in ("float32", name))
    both = (as_numpy(load_model(folder, dtype)(ids)), theirs.numpy())
    errors = [np.abs(logits - exact.numpy()).max(-1) for logits in both]
    assert np.median(errors[0]) < 1.3 * np.median(errors[1])


def tied(folder, pairs, same_experts):
    """A checkpoint whose router gives the same score to both experts of each pair, in every layer."""
    weights = random_weights(TINY_MOE)
    for layer in (0, 2):
        prefix = f"model.layers.{layer}.mlp"
        for first, second in pairs:
            weights[f"{prefix}.gate.weight"][second] = weights[f"{prefix}.gate.weight"][first]
            for name in ("gate", "up", "down") if same_experts else ():
                parts = [f"{prefix}.experts.{expert}.{name}_proj.weight" for expert in (first, second)]
                weights[parts[1]] = weights[parts[0]].copy()
    return write_checkpoint(folder, TINY_MOE, weights)


def test_experts_that_tie_and_are_alike_give_the_logits_of_transformers(way, ids, tmp_path, transformers_model):
    """Whichever of them is chosen. transformers leaves it to torch.topk, which promises no order."""
    folder = tied(tmp_path, [(0, 6), (2, 3), (1, 5)], same_experts=True)
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        theirs = transformers_model(folder)(torch.tensor(ids)).logits.numpy()
    assert np.abs(as_numpy(load_model(folder)(ids)) - theirs).max() < TOLERANCE


def test_of_experts_that_tie_the_higher_number_is_chosen(tmp_path):
    router = load_model(tied(tmp_path, [], same_experts=False)).layers[0].mlp
    chosen, weights = router.route(mx.array([[1.0, 3, 0, 3, 3, 3, 2], [0.0] * 7]))
    assert [sorted(row) for row in chosen.tolist()] == [[3, 4, 5], [4, 5, 6]]
    np.testing.assert_allclose(np.array(weights), 1 / 3, rtol=1e-6)


def test_a_step_of_one_token_sorts_nothing(tiny_moe):
    """Its nodes are the router, the choice, the two products, SwiGLU and the sum."""
    block = load_model(tiny_moe).layers[0].mlp
    chosen, _ = block.route(mx.zeros((1, 7)))
    _, places = block.experts(mx.zeros((1, 48)), chosen, traced=True)
    assert places is None


def test_expert_by_expert_the_results_are_in_memory_once():
    """Measured: 1.2 times the results; 3.0 if they are joined first and sorted then."""
    chosen = mx.array(np.arange(256 * 8).reshape(256, 8) % 64)
    x, weights = mx.zeros((256, 2048)), mx.zeros((64, 2, 2048))
    mx.eval(x, weights, chosen)
    up, down = (lambda e: lambda rows: rows @ weights[e].T), (lambda e: lambda rows: rows @ weights[e][:1])
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    y = moe.expert_by_expert(x, chosen, up, down)[-1]
    mx.eval(y)
    assert mx.get_peak_memory() - held < 2 * y.nbytes


def swap_gate_and_up(model, patch):
    weight = model.layers[0].mlp.experts.gate_up_proj.weight
    model.layers[0].mlp.experts.gate_up_proj.weight = mx.concatenate(mx.split(weight, 2, axis=1)[::-1], axis=1)


def shift_experts(model, patch):
    experts = model.layers[2].mlp.experts
    for module in (experts.gate_up_proj, experts.down_proj):
        module.weight = mx.roll(module.weight, 1, axis=0)


def shift_down_alone(model, patch):
    down = model.layers[2].mlp.experts.down_proj
    down.weight = mx.roll(down.weight, 1, axis=0)


def rerouted(change):
    """`change` gets the chosen experts, their weights and all scores, and returns experts and weights."""

    def mutate(model, patch):
        route = moe.MoE.route
        patch.setattr(moe.MoE, "route", lambda self, scores: change(*route(self, scores), scores))

    return mutate


def chosen_scores(chosen, scores):
    return mx.take_along_axis(scores, chosen, axis=-1)


softmax_after_top_k = rerouted(lambda c, w, s: (c, mx.softmax(chosen_scores(c, s), axis=-1)))
unnormalised = rerouted(lambda c, w, s: (c, mx.take_along_axis(mx.softmax(s, axis=-1), c, axis=-1)))
weights_of_others = rerouted(lambda c, w, s: (c, w[:, ::-1]))
one_expert_less = rerouted(lambda c, w, s: (c[:, 1:], w[:, 1:]))
lowest_scores = rerouted(lambda c, w, s: (mx.argpartition(s, 2, axis=-1)[:, :3], w))
MUTATIONS = {
    "gate and up swapped": (swap_gate_and_up, True),
    "experts shifted by one": (shift_experts, True),
    "down shifted by one": (shift_down_alone, True),
    "softmax after top-k": (softmax_after_top_k, False),
    "unnormalised": (unnormalised, True),
    "weights of other experts": (weights_of_others, True),
    "one expert less": (one_expert_less, True),
    "the lowest scores": (lowest_scores, False),
}


@pytest.mark.parametrize(("mutate", "norm"), MUTATIONS.values(), ids=MUTATIONS.keys())
def test_a_planted_mistake_is_seen(mutate, norm, way, ids, tmp_path, monkeypatch):
    config = {**TINY_MOE, "norm_topk_prob": norm}
    model = load_model(write_checkpoint(tmp_path, config))
    mutate(model, monkeypatch)
    right = oracle.logits(config, random_weights(config), ids)
    assert np.abs(as_numpy(model(ids)) - right).max() > 1e-2  # five hundred times the tolerance


@pytest.mark.slow
def test_a_layer_of_qwen3_30b_a3b_equals_transformers(tmp_path, ids, transformers_model, transformers_states):
    folder = write_checkpoint(tmp_path, {**FULL_MOE, "num_hidden_layers": 1})
    states, logits = transformers_states(transformers_model(folder), ids)
    model = load_model(folder)
    assert_layers_agree(model, ids, states)
    assert relative(model(ids), logits) < 1e-5
    for place in range(3):  # without sorting
        one = model(ids[:, : place + 1])[:, -1]
        assert relative(one, logits[:, place]) < 1e-5
