import shutil

import mlx.core as mx
import numpy as np
import pytest
from adapting import ATTENTION, write_mlx_lm, write_peft
from checkpoints import TINY, TINY_MOE

from mlx_qwen3.errors import CheckpointError, SourceError, UsageError
from mlx_qwen3.files.adapters import merged, open_adapter, unties
from mlx_qwen3.files.config import Qwen3Config

CONFIG, MOE = Qwen3Config.from_hf(TINY), Qwen3Config.from_hf(TINY_MOE)
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_peft(tmp_path_factory.mktemp("adapter"))


def refused(folder, message, config=CONFIG):
    with pytest.raises(CheckpointError, match=message):
        open_adapter(folder, config)


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


def test_files_that_cannot_be_used_are_named(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"x" * 100)
    refused(broken, "adapter_model.safetensors is not a whole safetensors file")
    (broken / "adapter_model.safetensors").rename(broken / "adapter_model.bin")
    refused(broken, "adapter_model.bin, a pickle file")
    (broken / "adapter_model.bin").unlink()
    refused(broken, "has no adapter_model.safetensors")
    with pytest.raises(SourceError, match="is not an adapter: it has no adapter_config"):
        open_adapter(tmp_path, CONFIG)
    with pytest.raises(SourceError, match="there is no folder"):
        open_adapter(tmp_path / "none", CONFIG)


def test_a_scale_after_the_source(folder, tmp_path):
    plain, half = (open_adapter(name, CONFIG) for name in (folder, f"{folder}=0.5"))
    part = "layers.0.self_attn.q_proj"
    assert (plain.low_rank[part].scale, half.low_rank[part].scale) == (2.0, 1.0)
    assert plain.fingerprint != half.fingerprint
    odd = shutil.copytree(folder, tmp_path / "a=2")
    assert open_adapter(odd, CONFIG).low_rank[part].scale == 2.0
    assert open_adapter(f"{odd}=0.5", CONFIG).low_rank[part].scale == 1.0
    for text in ("x", "nan", "inf", ""):
        with pytest.raises(UsageError, match="expected a number"):
            open_adapter(f"{folder}={text}", CONFIG)


def test_a_scale_that_has_no_meaning_is_refused(tmp_path):
    dora = write_mlx_lm(tmp_path / "a", "dora")
    with pytest.raises(UsageError, match="DoRA"):
        open_adapter(f"{dora}=0.5", CONFIG)
    assert open_adapter(f"{dora}=1", CONFIG).strength == 1
    head = {"base_model.model.lm_head.weight": np.ones((151, 48), np.float32)}
    saved = write_peft(tmp_path / "b", change=lambda t: t.update(head), modules_to_save=["lm_head"])
    with pytest.raises(UsageError, match="replaces lm_head"):
        open_adapter(f"{saved}=0.5", CONFIG)


def test_rows_are_merged_in_blocks(tmp_path):
    adapters = [
        open_adapter(write_mlx_lm(tmp_path / kind, kind, seed=i), CONFIG) for i, kind in enumerate(("lora", "dora"))
    ]
    weight, part = np.random.default_rng(0).normal(size=(48, 80)).astype(np.float32), "layers.0.mlp.down_proj"
    tensors = [mx.load(str(tmp_path / kind / "adapters.safetensors")) for kind in ("lora", "dora")]
    name = f"model.{part}"
    first, second = (3 * np.array(t[f"{name}.lora_b"]).T @ np.array(t[f"{name}.lora_a"]).T for t in tensors)
    ratio = np.array(tensors[1][f"{name}.m"]) / np.linalg.norm(weight + second, axis=1)
    expected = ratio[:, None] * (weight + first + second)
    assert np.abs(merged(weight, part, adapters) - expected).max() < 1e-5
    blocks = [merged(weight[rows : rows + 20], part, adapters, rows) for rows in (0, 20, 40)]
    assert np.abs(np.concatenate(blocks) - expected).max() < 1e-5
    assert merged(weight, "layers.0.mlp.up_proj", [], 0) is weight


def test_whether_a_tied_model_gets_two_matrices(folder, tmp_path):
    head = {"base_model.model.lm_head.weight": np.ones((151, 48), np.float32)}
    saved = open_adapter(
        write_peft(tmp_path / "a", change=lambda t: t.update(head), modules_to_save=["lm_head"]), CONFIG
    )
    embedding = {"model.embed_tokens.lora_a": np.ones((151, 4), np.float32)}
    embedding |= {"model.embed_tokens.lora_b": np.ones((4, 48), np.float32)}
    both = write_mlx_lm(tmp_path / "b", keys=["model.embed_tokens"], change=lambda t: t.update(embedding))
    assert unties(CONFIG, [saved])
    assert not unties(CONFIG, [open_adapter(both, CONFIG), open_adapter(folder, CONFIG)])
    assert not unties(Qwen3Config.from_hf({**TINY, "tie_word_embeddings": False}), [saved])
