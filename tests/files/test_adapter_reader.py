"""Every tensor of an adapter is accounted for: what is missing, unexpected or of another shape is named."""

import mlx.core as mx
import numpy as np
import pytest
from adapting import ATTENTION, mlx_matrices, refused, write_mlx_lm, write_peft
from checkpoints import TINY, TINY_MOE, shapes

from mlx_qwen3.files.adapters import open_adapter
from mlx_qwen3.files.config import Qwen3Config

CONFIG, MOE = Qwen3Config.from_hf(TINY), Qwen3Config.from_hf(TINY_MOE)
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_peft(tmp_path_factory.mktemp("adapter"))


def test_every_part_has_its_matrices(folder):
    found = open_adapter(folder, CONFIG)
    assert set(found.low_rank) == {f"layers.{i}.self_attn.{name}" for i in (0, 1) for name in ATTENTION}
    a, b, magnitude = found.low_rank["layers.1.self_attn.o_proj"].arrays()
    assert (a.shape, b.shape, magnitude) == ((4, 120), (48, 4), None)
    assert not found.whole
    assert open_adapter(found, CONFIG) is found


def test_the_matrices_of_mlx_lm_are_turned(tmp_path):
    found = open_adapter(write_mlx_lm(tmp_path, "dora", rank=5), CONFIG)
    a, b, magnitude = found.low_rank["layers.0.mlp.down_proj"].arrays()
    assert (a.shape, b.shape, magnitude.shape) == ((5, 80), (48, 5), (48,))


def test_the_experts_of_mlx_lm_are_taken_apart(tmp_path):
    found = open_adapter(write_mlx_lm(tmp_path, model=TINY_MOE), MOE)
    whole = mx.load(str(tmp_path / "adapters.safetensors"))["model.layers.2.mlp.switch_mlp.up_proj.lora_a"]
    a, _, _ = found.low_rank["layers.2.mlp.experts.3.up_proj"].arrays()
    assert np.array_equal(a, np.array(whole[3]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{Q0}.lora_B.weight"), r"lacks model\.layers\.0\.self_attn\.q_proj\.lora_B\.weight, though"),
        (
            lambda t: [t.pop(f"{Q0}.lora_{x}.weight") for x in "AB"],
            r"lacks model\.layers\.0\.self_attn\.q_proj\.lora_A",
        ),
        (
            lambda t: t.update({"base_model.model.model.layers.7.x.lora_A.weight": t[f"{Q0}.lora_A.weight"]}),
            r"layers\.7",
        ),
        (lambda t: t.update({Q0[17:] + ".lora_A.weight": t[f"{Q0}.lora_A.weight"]}), "with and without the prefix"),
        (lambda t: t.update({f"{Q0}.lora_C.weight": np.ones(3)}), "lora_C.weight .* does not belong to any module"),
        (
            lambda t: t.update({f"{Q0}.lora_A.weight": np.ones((4, 64), np.float32)}),
            r"q_proj\.lora_A\.weight in .* has shape \[4, 64\], but .* give \[4, 48\]; the adapter was trained on "
            "Qwen/Qwen3-0.6B, and this model has 2 layers and hidden_size 48",
        ),
        (lambda t: t.update({f"{Q0}.lora_A.weight": np.ones((5, 48), np.float32)}), r"shape \[5, 48\]"),
        (lambda t: t.update({f"{Q0}.lora_A.weight": np.ones((4, 48), np.int32)}), "has dtype I32"),
        (
            lambda t: t.update({"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": np.ones((4, 48))}),
            r"up_proj\.lora_A\.weight in .* is outside the modules",
        ),
        (
            lambda t: t.update({"base_model.model.model.norm.weight": np.ones(48, np.float32)}),
            r"model\.norm\.weight in .* is outside the modules",
        ),
        (
            lambda t: t.update({f"{Q0}.lora_magnitude_vector": np.ones(120, np.float32)}),
            "lora_magnitude_vector .* belongs to DoRA",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(change, message, tmp_path):
    refused(write_peft(tmp_path, change=change), message)


def test_what_its_config_names_must_be_there(tmp_path):
    refused(write_peft(tmp_path / "a", modules_to_save=["norm"]), r"lacks model\.layers\.0\.input_layernorm\.weight")
    refused(write_peft(tmp_path / "b", use_dora=True), r"lacks .*q_proj\.lora_magnitude_vector")
    refused(
        write_mlx_lm(tmp_path / "c", keys=["self_attn.q_proj"], change=lambda t: t.popitem()), "lacks model.layers.1"
    )


def test_an_adapter_that_changes_nothing_is_refused(tmp_path):
    """PEFT refuses it too. It is of another kind of model, or the training saved nothing."""
    message = "changes nothing: its adapter_config.json names no module of this model; the adapter was trained on Qwen"
    refused(write_peft(tmp_path / "a", ("w_pack",)), message)
    refused(write_mlx_lm(tmp_path / "b", keys=["mixer.in_proj"]), message)


def test_whole_weights_of_experts_are_refused_with_what_merges_them(tmp_path):
    found = {f"{name}.weight": shape for name, shape in mlx_matrices(TINY_MOE).items()}
    found |= {name: shape for name, shape in shapes(TINY_MOE).items() if len(shape) == 1 and "layers" in name}
    weights = {name: np.ones(shape, np.float32) for name, shape in found.items()}
    folder = write_mlx_lm(tmp_path, "full", TINY_MOE, change=lambda t: (t.clear(), t.update(weights)))
    refused(folder, r"gate_proj\.weight .*: whole weights of experts are not supported; merge .* mlx_lm\.fuse", MOE)


def test_dora_of_experts_and_of_an_embedding_is_refused(tmp_path):
    def experts(tensors):
        for name in [n for n in tensors if n.endswith("lora_B.weight")]:
            magnitude = np.ones(len(tensors[name]), np.float32)
            tensors[name.replace("lora_B.weight", "lora_magnitude_vector")] = magnitude

    folder = write_peft(tmp_path / "a", ("up_proj",), TINY_MOE, use_dora=True, change=experts)
    refused(folder, "DoRA of model.layers.0.mlp.experts.0.up_proj is not supported", MOE)

    def embedding(tensors):
        prefix = "base_model.model.model.embed_tokens.lora_"
        shapes = {"embedding_A": (4, 151), "embedding_B": (48, 4), "magnitude_vector": (48,)}
        tensors |= {prefix + name: np.ones(shape, np.float32) for name, shape in shapes.items()}

    folder = write_peft(tmp_path / "b", (), use_dora=True, target_modules=["embed_tokens"], change=embedding)
    refused(folder, "DoRA of model.embed_tokens is not supported")
