"""The settings of experts in config.json."""

import json
from typing import Any

import pytest
from checkpoints import TINY, TINY_MOE, YARN

from mlx_qwen3.errors import ConfigError, Qwen3Warning
from mlx_qwen3.files.config import Qwen3Config
from mlx_qwen3.files.moe import MoE, read_moe


def read(**changes: Any) -> MoE:
    raw = {key: value for key, value in {**TINY_MOE, **changes}.items() if value is not ...}
    moe = Qwen3Config.from_hf(raw).moe
    assert moe is not None
    return moe


def test_all_settings():
    assert read() == MoE(7, 3, 28, True, frozenset({0, 2}))
    assert Qwen3Config.from_hf(TINY).moe is None


@pytest.mark.parametrize("value", [..., None])
def test_what_is_missing_is_as_in_transformers(value):
    keys = ("norm_topk_prob", "decoder_sparse_step", "mlp_only_layers")
    assert read(**dict.fromkeys(keys, value)) == MoE(7, 3, 28, False, frozenset({0, 1, 2}))
    theirs = pytest.importorskip("transformers").Qwen3MoeConfig()
    assert [getattr(theirs, key) for key in keys] == [False, 1, []]


@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("dense", [[], [1], [0, 2]])
def test_the_layers_with_experts_are_those_of_transformers(step, dense):
    transformers = pytest.importorskip("transformers")
    config = {**TINY_MOE, "num_hidden_layers": 3, "decoder_sparse_step": step, "mlp_only_layers": dense}
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**config))
    sparse = {index for index, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "experts")}
    assert Qwen3Config.from_hf(config).moe.layers == sparse


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "more than there are": ({"num_experts_per_tok": 8}, "num_experts_per_tok is 8, but num_experts is 7"),
    "no experts": ({"num_experts": 0}, "num_experts is 0"),
    "experts without end": ({"num_experts": 10**9}, "num_experts is 1000000000 .* at most 10,000"),
    "experts missing": ({"num_experts": ...}, "num_experts is missing"),
    "choice missing": ({"num_experts_per_tok": ...}, "num_experts_per_tok is missing"),
    "width missing": ({"moe_intermediate_size": ...}, "moe_intermediate_size is missing"),
    "width as text": ({"moe_intermediate_size": "28"}, "moe_intermediate_size is '28'"),
    "norm as a number": ({"norm_topk_prob": 1}, "norm_topk_prob is 1 .*true or false"),
    "step of zero": ({"decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
    "layers as a number": ({"mlp_only_layers": 1}, "mlp_only_layers is 1 .* list of layers from 0 to 2"),
    "a layer that is not there": ({"mlp_only_layers": [3]}, r"mlp_only_layers is \[3\]"),
    "two numbers of experts": ({"num_local_experts": 8}, "num_experts is 7, but num_local_experts is 8"),
    "attention bias": ({"attention_bias": True}, "attention_bias is True"),
    "sliding window": ({"use_sliding_window": True}, "use_sliding_window is True"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        read(**changes)


@pytest.mark.parametrize("scaling", [None, YARN])
def test_what_transformers_saves_is_read(scaling, tmp_path):
    """It writes num_local_experts and rope_parameters."""
    transformers = pytest.importorskip("transformers")
    transformers.Qwen3MoeConfig(**TINY_MOE, rope_scaling=dict(scaling) if scaling else None).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert {"num_local_experts", "rope_parameters"} <= saved.keys()
    assert Qwen3Config.from_hf(saved) == Qwen3Config.from_hf({**TINY_MOE, "rope_scaling": scaling})


def test_keys_of_training_are_silent_and_others_are_named():
    assert read(router_aux_loss_coef=0.01, output_router_logits=True) == read()
    with pytest.warns(Qwen3Warning, match="^shared_expert_intermediate_size in config.json"):
        read(shared_expert_intermediate_size=28)
    with pytest.warns(Qwen3Warning, match="^num_experts in config.json"):
        Qwen3Config.from_hf({**TINY, "num_experts": 4})


def test_a_dense_model_has_none():
    assert read_moe(TINY, 2) is None


def test_what_a_token_goes_through():
    config = Qwen3Config.from_hf(TINY_MOE)
    assert config.active_widths == [3 * 28, 80, 3 * 28]
    assert config.mlp_in_words == "7 experts of 28, 3 for each token, MLP 80 in 1 of 3 layers"
    assert Qwen3Config.from_hf({**TINY_MOE, "mlp_only_layers": []}).mlp_in_words.endswith("3 for each token")
    assert Qwen3Config.from_hf(TINY).mlp_in_words == "MLP 80"
