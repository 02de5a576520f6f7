"""What PEFT stores for a stack of experts; tests/model/test_adapted.py compares the whole with PEFT."""

import numpy as np
import pytest
from adapting import write_peft
from checkpoints import TINY_MOE

from mlx_qwen3.errors import CheckpointError
from mlx_qwen3.files.adapters import open_adapter
from mlx_qwen3.files.config import Qwen3Config

CONFIG = Qwen3Config.from_hf(TINY_MOE)
EXPERTS, HIDDEN, INNER = TINY_MOE["num_experts"], TINY_MOE["hidden_size"], TINY_MOE["moe_intermediate_size"]
MODULE = "base_model.model.model.layers.{}.mlp.experts"


def stacked(rank=4, gate_up=8):
    """Tensors of both stacks of layers 0 and 2, of which the inner one is gate_up."""
    rng, found = np.random.default_rng(0), {}
    for layer in (0, 2):
        for place, r, (outputs, inputs) in ((".base_layer", gate_up, (2 * INNER, HIDDEN)), ("", rank, (HIDDEN, INNER))):
            name = MODULE.format(layer) + place
            found[f"{name}.lora_A.weight"] = rng.normal(size=(EXPERTS * r, inputs)).astype(np.float32)
            found[f"{name}.lora_B.weight"] = rng.normal(size=(outputs, r * EXPERTS)).astype(np.float32)
    return found


def write(folder, tensors, parameters=("gate_up_proj", "down_proj")):
    patterns = {"rank_pattern": {r".*\.gate_up_proj": 8}, "alpha_pattern": {r".*\.gate_up_proj": 16}}
    changes = {"target_parameters": list(parameters), "change": lambda t: t.update(tensors)}
    return open_adapter(write_peft(folder, (), TINY_MOE, **patterns, **changes), CONFIG)


def test_the_matrices_of_each_expert(tmp_path):
    tensors = stacked()
    found = write(tmp_path, tensors)
    assert len(found.low_rank) == 2 * 3 * EXPERTS
    inner = MODULE.format(2) + ".base_layer"
    a, b, _ = found.low_rank["layers.2.mlp.experts.5.up_proj"].arrays()
    assert np.array_equal(a, tensors[f"{inner}.lora_A.weight"].reshape(EXPERTS, 8, HIDDEN)[5])
    expected = tensors[f"{inner}.lora_B.weight"].reshape(2 * INNER, 8, EXPERTS)[INNER:, :, 5]
    assert np.array_equal(b, 2 * expected)  # alpha 16 over rank 8
    assert len({tensor.name for tensor in found.tensors()}) == len(tensors)


@pytest.mark.parametrize(
    ("change", "parameters", "message"),
    [
        (lambda t: t.popitem(), ["gate_up_proj", "down_proj"], r"lacks model\.layers\.2\.mlp\.experts\.lora_B"),
        (
            lambda t: None,
            ["down_proj"],
            r"experts\.base_layer\.lora_A\.weight .* does not belong",
        ),
        (lambda t: None, ["gate_up_proj"], r"experts\.lora_A\.weight .* has shape \[28, 28\], .* give \[56, 48\]"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(change, parameters, message, tmp_path):
    tensors = stacked()
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        write(tmp_path, tensors, parameters)
