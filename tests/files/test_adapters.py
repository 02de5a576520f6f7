import shutil

import mlx.core as mx
import numpy as np
import pytest
from adapting import refused, write_mlx_lm, write_peft
from checkpoints import TINY

from mlx_qwen3.errors import SourceError, UsageError
from mlx_qwen3.files import adapters as adapters_module
from mlx_qwen3.files.adapters import merged, open_adapter, unties
from mlx_qwen3.files.config import Qwen3Config

CONFIG = Qwen3Config.from_hf(TINY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_peft(tmp_path_factory.mktemp("adapter"))


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


def test_a_product_in_pieces_is_the_whole_product(monkeypatch):
    monkeypatch.setattr(adapters_module, "PIECE", 16 * 5 * 7)  # 7 columns of a rank of 5
    rng = np.random.default_rng(0)
    b, a = rng.normal(size=(35, 5)).astype(np.float32), rng.normal(size=(5, 23)).astype(np.float32)
    assert np.abs(adapters_module._product(b, a) - b.astype(np.float64) @ a).max() < 2e-6


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
