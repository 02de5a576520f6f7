"""The steps of this package, of reference.py and of transformers are the same."""

import pytest
from checkpoints import TINY_MOE, YARN, write_checkpoint
from comparing import PEERS, against

from mlx_qwen3.compare.flow import EVENTS, FLOW, SPARSE
from mlx_qwen3.model.load import load_model


@pytest.mark.parametrize("peer", PEERS)
def test_ours_equals_the_peer_in_every_step_of_every_layer(peer, folder, ids):
    comparison = against(peer, load_model(folder, "fp32"), folder, ids)
    assert comparison.first_outside is None
    compared = {step.name for step in FLOW if step.name not in ("k_grouped", "v_grouped")}
    inside = compared - {"final_norm", "logits"} - {step.name for event in SPARSE for step in EVENTS[event]}
    assert {(d.layer, d.step) for d in comparison.differences} == {
        *((layer, step) for layer in range(9) for step in inside),
        (None, "final_norm"),
        (None, "logits"),
    }
    assert max(d.relative for d in comparison.differences) < 5e-6  # measured 1.2e-6
    assert comparison.differences[0].relative == 0  # the embedding is read, not computed


@pytest.mark.parametrize(("dtype", "smallest"), [("bf16", 1e-3), ("fp16", 1e-4)])
def test_half_precision_stays_within_its_bound(dtype, smallest, folder, ids):
    comparison = against("reference", load_model(folder, dtype), folder, ids)
    assert comparison.first_outside is None
    assert comparison.differences[-1].relative > smallest  # it does round


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("factor", [None, 1.3])
def test_the_steps_of_yarn_are_comparable(peer, factor, ids, tmp_path):
    """transformers multiplies q and k by the attention factor, this package their product."""
    scaling = YARN if factor is None else {**YARN, "attention_factor": factor}
    folder = write_checkpoint(tmp_path, rope_scaling=scaling)
    assert against(peer, load_model(folder, "fp32"), folder, ids).first_outside is None


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("norm", [True, False])
def test_ours_equals_the_peer_in_every_step_of_the_experts(peer, norm, ids, tmp_path):
    folder = write_checkpoint(tmp_path, {**TINY_MOE, "norm_topk_prob": norm})
    comparison = against(peer, load_model(folder, "fp32"), folder, ids)
    assert comparison.first_outside is None
    # transformers computes the experts in a function that shows only their outputs
    hidden = {"expert_gate_up", "expert_activation"} if peer == "transformers" else set()
    sparse = {step.name for event in SPARSE for step in EVENTS[event]} - hidden
    found = {layer: {d.step for d in comparison.differences if d.layer == layer} for layer in range(3)}
    assert sparse <= found[0] == found[2]
    assert not sparse & found[1]
    assert "down" in found[0] & found[1]
    assert max(d.relative for d in comparison.differences) < 5e-6  # measured 1.3e-6
