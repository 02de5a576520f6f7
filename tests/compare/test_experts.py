"""Two models with experts side by side: near ties are told from mistakes, and a mistake is named by its expert."""

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import PACKABLE, TINY_MOE, random_weights, write_checkpoint
from comparing import PEERS, against

from mlx_qwen3.compare.comparison import STATES, differences
from mlx_qwen3.compare.experts import Choice, Choices
from mlx_qwen3.compare.steps import model_steps
from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.inspect import Options, as_json, inspect, render
from mlx_qwen3.model import moe
from mlx_qwen3.model.load import load_model


def side(logits, chosen):
    return {"router_logits": mx.array(logits, mx.float32), "chosen_experts": mx.array(chosen)}


# One row of three tokens, two of four experts for each. The second token is a near tie of experts 1 and 2.
LOGITS = [[[4, 3, 0, 0], [4, 2.01, 2, 0], [0, 0, 3, 4]]]
CHOSEN = [[[0, 1], [0, 1], [2, 3]]]


def test_equal_choices():
    choices = Choices(side(LOGITS, CHOSEN), side(LOGITS, CHOSEN), 0.01)
    assert not choices.differ.any()
    assert (choices.shares, choices.first) == ((0.0, 0.0), None)


def test_a_near_tie_is_explained_by_the_scores():
    ours = [[[4, 3, 0, 0], [4, 2, 2.01, 0], [0, 0, 3, 4]]]
    choices = Choices(side(ours, [[[0, 1], [0, 2], [2, 3]]]), side(LOGITS, CHOSEN), 0.01)
    assert choices.differ.tolist() == choices.explained.tolist() == [[False, True, False]]
    assert choices.shares == (1 / 6, 1 / 6)
    assert choices.first == Choice(0, 1, 2, 1)


def test_another_choice_with_the_same_scores_is_a_mistake():
    """The near tie comes first, but the mistake is named."""
    ours = [[[4, 3, 0, 0], [4, 2, 2.01, 0], [0, 0, 3, 4]]]
    choices = Choices(side(ours, [[[0, 1], [0, 2], [1, 3]]]), side(LOGITS, CHOSEN), 0.01)
    assert choices.differ.tolist() == [[False, True, True]]
    assert choices.explained.tolist() == [[False, True, False]]
    assert choices.shares == (2 / 6, 1 / 6)
    assert choices.first == Choice(0, 2, 1, 2)


def test_scores_past_their_bound_explain_nothing():
    ours = [[[4, 3, 0, 0], [4, 2, 2.01, 0], [0, 0, 3, 4]]]
    choices = Choices(side(ours, [[[0, 1], [0, 2], [2, 3]]]), side(LOGITS, CHOSEN), 0.001)
    assert (choices.differ.any(), choices.explained.any()) == (True, False)


def test_an_exact_tie_may_go_either_way():
    logits = [[[1, 1, 1, 0]]]
    assert Choices(side(logits, [[[0, 1]]]), side(logits, [[[1, 2]]]), 0.01).explained.all()


def test_outputs_are_compared_where_both_sides_chose_the_expert():
    ours = [[[4, 3, 0, 0], [4, 2, 2.01, 0], [0, 0, 3, 4]]]
    choices = Choices(side(ours, [[[0, 1], [0, 2], [2, 3]]]), side(LOGITS, CHOSEN), 0.01)
    a, b = np.ones((2, 1, 3, 2, 5), np.float32)
    a[0, 1, 1] = 99  # of expert 2, which the other side has expert 1 for
    assert choices.difference(mx.array(a), mx.array(b)) == (0.0, None)
    a[0, 2] = 1.1  # past twice the bound, of experts 2 and 3
    relative, expert = choices.difference(mx.array(a), mx.array(b))
    assert (relative, expert) == (pytest.approx(0.1, rel=1e-5), 2)
    a[0, 0, 1, 0] = np.nan
    assert choices.difference(mx.array(a), mx.array(b)) == (None, 1)


def other_expert(model):
    """The weights of one expert."""
    experts = model.layers[2].mlp.experts
    experts.down_proj.weight = mx.concatenate([experts.down_proj.weight[i : i + 1] * (1 + (i == 4)) for i in range(7)])


def shifted_experts(model):
    for projection in (model.layers[2].mlp.experts.gate_up_proj, model.layers[2].mlp.experts.down_proj):
        projection.weight = mx.roll(projection.weight, 1, axis=0)


class Lowest(moe.MoE):
    def route(self, scores):
        chosen, _ = super().route(-scores)
        return chosen, super().route(scores)[1]


def lowest_scores(model):
    model.layers[2].mlp.__class__ = Lowest


def swapped_gate(model):
    gate = model.layers[2].mlp.gate
    gate.weight = gate.weight[mx.array([1, 0, 2, 3, 4, 5, 6])]


MISTAKES = {
    other_expert: ("expert_down", 4),
    shifted_experts: ("expert_gate_up", 0),
    lowest_scores: ("chosen_experts", None),
    swapped_gate: ("router_logits", None),
}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(("plant", "place"), MISTAKES.items(), ids=[plant.__name__ for plant in MISTAKES])
def test_a_mistake_is_named_by_its_step_and_expert(plant, place, peer, tiny_moe, ids):
    model = load_model(tiny_moe, "fp32")
    plant(model)
    first = against(peer, model, tiny_moe, ids).first_outside
    if peer == "transformers" and place[0] == "expert_gate_up":
        place = ("expert_down", 0)  # it shows only the outputs of its experts
    assert (first.layer, first.step, first.expert) == (2, *place)
    assert (first.choice is not None) == (plant is lowest_scores)


def spoiled(tmp_path, tensor, change):
    weights = random_weights(TINY_MOE)
    weights[tensor] = change(weights[tensor])
    return write_checkpoint(tmp_path / "spoiled", TINY_MOE, weights)


def test_one_expert_of_a_file_against_the_sound_one(tiny_moe, tmp_path):
    bad = spoiled(tmp_path, "model.layers.0.mlp.experts.5.up_proj.weight", lambda w: w[::-1].copy())
    report = inspect(bad, Options(length=40, against=str(tiny_moe)))
    first = report.comparison.first_outside
    assert (first.layer, first.step, first.expert) == (0, "expert_gate_up", 5)
    assert "in layer 0, expert_gate_up of expert 5: " in report.complaint
    step = next(s for s in as_json(report)["comparison"]["steps"] if s["outside"])
    assert (step["step"], step["expert"]) == ("expert_gate_up", 5)


def test_a_choice_is_named_by_its_token_and_experts(tiny_moe, monkeypatch):
    sound = load_model(tiny_moe, "fp32")
    monkeypatch.setattr("mlx_qwen3.inspect.report.load_model", lambda *_: changing(sound))
    report = inspect(tiny_moe, Options(length=40, against="reference"))
    choice = report.comparison.first_outside.choice
    words = f"token {choice.token} of row 0 goes to expert {choice.expert}, in reference to expert {choice.other}"
    assert report.complaint == f"first difference from reference in layer 2, chosen_experts: {words}"
    assert f"first other choice: layer 2: {words}\n" in render(report)


def changing(model):
    lowest_scores(model)
    return model


def test_a_near_tie_that_rounding_decides_is_named_but_is_no_fault(tiny_moe, tmp_path):
    """Two rows of the router that are nearly the same: bfloat16 decides between them by chance."""
    weights = random_weights(TINY_MOE)
    gate = weights["model.layers.0.mlp.gate.weight"]
    gate[3] = gate[6] + np.float32(1e-4)
    folder = write_checkpoint(tmp_path, TINY_MOE, weights)
    report = inspect(folder, Options(length=200, dtype="bf16", against="reference"))
    assert report.comparison.first_outside is None
    found = [d for d in report.comparison.differences if d.choice and d.layer == 0]
    assert {found[0].choice.expert, found[0].choice.other} == {3, 6}
    assert "first other choice: layer 0: token " in render(report)
    assert ": a near tie" in render(report).replace("\n    ", " ")


def test_states_after_a_near_tie_have_the_growth_of_correct_models(tmp_path, ids):
    """As `verify` compares. Both sides are sound; they decide a tie of equal experts differently."""
    weights = random_weights(TINY_MOE)
    gate = weights["model.layers.0.mlp.gate.weight"]
    gate[3] = gate[6]
    folder = write_checkpoint(tmp_path, TINY_MOE, weights)

    def compared(factor):
        sound, other = load_model(folder), load_model(folder)
        other.layers[0].mlp.__class__ = LowerNumber
        other.layers[2].self_attn.o_proj.weight *= factor
        steps = (model_steps(one, mx.array(ids)) for one in (other, sound))
        return list(differences(*steps, bound=1e-4, only=STATES))

    assert max(d.relative for d in compared(1)) > 0.01
    assert not [d for d in compared(1) if d.outside]
    outside = [(d.layer, d.step) for d in compared(20) if d.outside]
    assert outside[0] == (2, "output")


class LowerNumber(moe.MoE):
    """Of experts 3 and 6, which tie, it takes 3."""

    def route(self, scores):
        below = scores - 1e-6 * (mx.arange(scores.shape[-1]) == 6)
        chosen, weights = super().route(below)
        return chosen, weights


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_stays_within_its_bound(dtype, tiny_moe, ids):
    assert against("reference", load_model(tiny_moe, dtype), tiny_moe, ids).first_outside is None


@pytest.mark.parametrize("against_", ["reference", "transformers"])
def test_a_decode_step_is_compared(against_, tiny_moe):
    comparison = inspect(tiny_moe, Options(length=9, batch=2, decode=3, against=against_)).comparison
    assert comparison.first_outside is None
    assert {"router_logits", "chosen_experts", "expert_down"} <= {
        d.step for d in comparison.differences if d.layer == 2
    }


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_experts_stay_within_their_bound(bits, tmp_path):
    sizes = {**TINY_MOE, **PACKABLE, "moe_intermediate_size": 64, "num_experts": 16}
    plain = write_checkpoint(tmp_path / "plain", sizes)
    convert(plain, tmp_path / "packed", quantize=f"affine{bits}")
    report = inspect(tmp_path / "packed", Options(length=100, dtype="fp32", against=str(plain)))
    assert report.comparison.first_outside is None
    assert any(d.choice for d in report.comparison.differences)
