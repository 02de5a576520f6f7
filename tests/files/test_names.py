"""Names and shapes of parts, and what each layout stacks."""

import pytest
from checkpoints import TINY, TINY_MOE, shapes

from mlx_qwen3.files.config import Qwen3Config
from mlx_qwen3.files.names import NATIVE, SHAPES, SWITCH, bare, fusions, hf_name, kind_of, part_shapes


@pytest.mark.parametrize("config", [TINY, TINY_MOE, {**TINY_MOE, "mlp_only_layers": [], "tie_word_embeddings": False}])
def test_the_parts_are_what_hugging_face_stores(config):
    found = part_shapes(Qwen3Config.from_hf(config))
    assert {f"{hf_name(name)}.weight": shape for name, shape in found.items()} == shapes(config)
    assert {kind_of(name) for name in found} <= SHAPES.keys()


def test_a_stack_has_first_all_of_expert_0():
    found = fusions(Qwen3Config.from_hf(TINY_MOE), *NATIVE, SWITCH)
    both = found["layers.2.mlp.experts.gate_up_proj"]
    assert both.experts == 7
    assert both.parts[:3] == tuple(
        f"layers.2.mlp.experts.{part}" for part in ("0.gate_proj", "0.up_proj", "1.gate_proj")
    )
    assert found["layers.0.mlp.switch_mlp.up_proj"].parts[6] == "layers.0.mlp.experts.6.up_proj"
    assert len(both.parts) == 14
    dense = found["layers.1.mlp.gate_up_proj"]
    assert (dense.parts, dense.experts) == (("layers.1.mlp.gate_proj", "layers.1.mlp.up_proj"), None)


def test_a_layer_has_a_dense_mlp_or_experts():
    names = fusions(Qwen3Config.from_hf(TINY_MOE), *NATIVE).keys()
    assert {name for name in names if name.startswith("layers.1.mlp")} == {"layers.1.mlp.gate_up_proj"}
    assert "layers.0.mlp.gate_up_proj" not in names


def test_the_fused_tensors_of_transformers_get_a_leaf():
    assert bare("model.layers.0.mlp.experts.gate_up_proj") == "layers.0.mlp.experts.gate_up_proj.weight"
    assert bare("layers.0.mlp.experts.down_proj") == "layers.0.mlp.experts.down_proj.weight"
    assert bare("model.layers.0.mlp.experts.down_proj.weight") == "layers.0.mlp.experts.down_proj.weight"
    assert bare("model.layers.0.mlp.gate_up_proj") == "layers.0.mlp.gate_up_proj"
