"""Adapters that a conversion merges: the result is PEFT's merged model, rounded once."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from adapting import write_mlx_lm, write_peft
from arrays import as_numpy, relative
from checkpoints import AFFINE_4, PACKABLE, TINY, TINY_MOE, random_weights, write_checkpoint, write_packed
from safetensors.numpy import load_file, save_file

from mlx_qwen3.conversion.certificate import Certificate
from mlx_qwen3.conversion.convert import convert, dry_plan
from mlx_qwen3.conversion.verify import verify
from mlx_qwen3.errors import CheckpointError, Qwen3Error, UsageError, VerificationError
from mlx_qwen3.files.adapters import open_adapter
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.files.config import Qwen3Config
from mlx_qwen3.model.load import load_model

SAME = 2e-5  # of logits near 6 from PEFT's merged model; measured: 5e-6
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Weights = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A LoRA of every projection; its scale is 2."""
    return write_peft(tmp_path_factory.mktemp("adapter"), EVERY)


def added(folder: Path, weights: Weights, scale: float = 2.0) -> Weights:
    """The weights with an adapter of PEFT added, by hand."""
    tensors = {
        n.removeprefix("base_model.model."): v for n, v in load_file(folder / "adapter_model.safetensors").items()
    }
    result = dict(weights)
    for name in [name for name in tensors if name.endswith("lora_A.weight")]:
        module = name.removesuffix(".lora_A.weight")
        result[f"{module}.weight"] = weights[f"{module}.weight"] + scale * (
            tensors[f"{module}.lora_B.weight"] @ tensors[name]
        )
    return {name: value.astype(np.float32) for name, value in result.items()}


def stored(folder: Path) -> Weights:
    return {name: as_numpy(array) for name, array in mx.load(str(folder / "model.safetensors")).items()}


def logits_of(folder: Path, ids: np.ndarray) -> np.ndarray:
    return as_numpy(load_model(folder, "fp32")(ids))


def test_every_weight_is_the_sum(tiny, adapter, tmp_path):
    certificate = convert(tiny, tmp_path / "out", layout="hf", adapters=[str(adapter)], divergence=False)
    expected = added(adapter, random_weights(TINY))
    for name, value in stored(tmp_path / "out").items():
        assert np.abs(value - expected[name]).max() < 2e-6, name
    [record] = certificate.adapters
    assert (record.source, record.scale, record.rounding) == (str(adapter), 1, "none: the sum is kept in float32")
    assert record.kind == "a PEFT LoRA adapter of rank 4 for Qwen/Qwen3-0.6B"
    assert record.files.keys() == {"adapter_config.json", "adapter_model.safetensors"}
    assert Certificate.read(tmp_path / "out") == certificate


def test_mlx_lm_and_several_adapters_with_scales(tiny, adapter, tmp_path, ids):
    other = write_mlx_lm(tmp_path / "other", "dora", layers=1, seed=7)
    given = [f"{adapter}=0.25", str(other)]
    convert(tiny, tmp_path / "out", adapters=given, divergence=False)
    assert relative(logits_of(tmp_path / "out", ids), as_numpy(load_model(tiny, "fp32", given)(ids))) < SAME


def test_a_bf16_source_is_rounded_once(adapter, tmp_path):
    source = in_bf16(tmp_path / "source")
    certificate = convert(source, tmp_path / "out", layout="hf", adapters=[str(adapter)], divergence=False)
    expected, result = added(adapter, stored(source)), mx.load(str(tmp_path / "out" / "model.safetensors"))
    for name, array in result.items():
        rounded = mx.array(expected[name]).astype(mx.bfloat16)
        # The order of a sum decides a tie of the rounding in a value of ten thousand.
        assert float(mx.mean(array != rounded)) < 1e-3, name
        assert relative(as_numpy(array), as_numpy(rounded)) < 1e-4, name
    assert certificate.adapters[0].rounding.startswith("once, after the sum, to bfloat16")
    errors = {record.name: record.error for record in certificate.tensors}
    assert errors["model.norm.weight"] is None, "no adapter changes it"
    assert 1e-4 < errors["model.layers.0.mlp.up_proj.weight"].relative < 2**-8


def in_bf16(folder: Path, **config: Any) -> Path:
    write_checkpoint(folder, torch_dtype="bfloat16", **config)
    arrays = mx.load(str(folder / "model.safetensors"))
    mx.save_safetensors(str(folder / "model.safetensors"), {n: a.astype(mx.bfloat16) for n, a in arrays.items()})
    return folder


@pytest.mark.parametrize("layout", ["hf", "native"])
@pytest.mark.parametrize("tensors", ["plain", "affine4"])
def test_it_is_merged_before_it_is_fused_or_packed(layout, tensors, tmp_path):
    """The same bytes as a conversion of a checkpoint that was merged by hand."""
    model = {**TINY, **PACKABLE}
    options = {"layout": layout, "quantize": None if tensors == "plain" else tensors, "divergence": False}
    adapter = write_peft(tmp_path / "adapter", EVERY, model)
    source = write_checkpoint(tmp_path / "source", model)
    by_hand = write_checkpoint(tmp_path / "by hand", model, added(adapter, random_weights(model)))
    convert(source, tmp_path / "out", adapters=[str(adapter)], **options)
    convert(by_hand, tmp_path / "expected", **options)
    for name in ("config.json", "model.safetensors"):
        same = (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
        assert same or (name != "config.json" and close(tmp_path / "out", tmp_path / "expected")), name


def test_the_error_of_a_fused_matrix_counts_the_rows_that_no_adapter_changes(tmp_path):
    base, some = in_bf16(tmp_path / "base"), str(write_peft(tmp_path / "adapter", ("k_proj",)))
    certificate = convert(base, tmp_path / "out", adapters=[some], divergence=False)
    exact = added(
        tmp_path / "adapter",
        {name: as_numpy(array) for name, array in mx.load(str(base / "model.safetensors")).items()},
    )
    layer = [exact[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    result = stored(tmp_path / "out")["layers.0.self_attn.qkv_proj.weight"]
    error = next(record.error for record in certificate.tensors if record.name == "layers.0.self_attn.qkv_proj.weight")
    assert error.relative == pytest.approx(relative(result, np.concatenate(layer)), rel=1e-3)
    assert len(layer[0]) <= error.worst_row < len(layer[0]) + len(layer[1])
    assert verify(tmp_path / "out", base, adapters=[some]).errors


def close(a: Path, b: Path) -> bool:
    """The same tensors, but for a sum that another order has rounded otherwise."""
    ours, theirs = (mx.load(str(folder / "model.safetensors")) for folder in (a, b))
    shares = [float(mx.mean(ours[name] != theirs[name])) if ours[name].dtype == mx.uint32 else 0 for name in theirs]
    return ours.keys() == theirs.keys() and max(shares) < 1e-3


def test_experts(tiny_moe, tmp_path, ids):
    for adapter in (write_peft(tmp_path / "peft", EVERY, TINY_MOE), write_mlx_lm(tmp_path / "mlx", model=TINY_MOE)):
        for layout in ("hf", "native"):
            out = tmp_path / f"{adapter.name} {layout}"
            convert(tiny_moe, out, layout=layout, adapters=[str(adapter)], divergence=False)
            assert relative(logits_of(out, ids), as_numpy(load_model(tiny_moe, "fp32", [adapter])(ids))) < SAME


@pytest.mark.parametrize("changed", ["embed_tokens", "lm_head"])
def test_one_of_two_tied_matrices_unties_them(changed, tiny, tmp_path, ids):
    def embed(tensors: Weights) -> None:
        rng = np.random.default_rng(4)
        tensors[f"base_model.model.{'' if changed == 'lm_head' else 'model.'}{changed}.weight"] = rng.normal(
            0, 1, (151, 48)
        ).astype(np.float32)

    adapter = write_peft(tmp_path / "adapter", modules_to_save=[changed], change=embed)
    for layout in ("hf", "native"):
        out = tmp_path / layout
        convert(tiny, out, layout=layout, adapters=[str(adapter)])
        assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
        assert relative(logits_of(out, ids), as_numpy(load_model(tiny, "fp32", [adapter])(ids))) < SAME
        verify(out, tiny, adapters=[str(adapter)])


PEFT: dict[str, dict[str, Any]] = {
    "LoRA": {"target_modules": "all-linear"},
    "rsLoRA with patterns": {"target_modules": "all-linear", "use_rslora": True, "rank_pattern": {"k_proj": 7}},
    "DoRA": {"target_modules": ["q_proj", "v_proj", "up_proj"], "use_dora": True},
    "a head": {"target_modules": ["o_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", PEFT.values(), ids=PEFT)
def test_it_equals_the_model_that_peft_merges(settings, untied, tmp_path, ids, transformers_model, transformers_states):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=5, lora_alpha=16, **settings)
    model = peft.get_peft_model(transformers_model(untied), config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                value.add_(torch.randn_like(value) * 0.1)
    model.save_pretrained(tmp_path / "adapter")
    _, theirs = transformers_states(model.merge_and_unload(), ids)
    convert(untied, tmp_path / "out", layout="hf", adapters=[str(tmp_path / "adapter")], divergence=False)
    assert np.abs(logits_of(tmp_path / "out", ids) - theirs).max() < SAME
    _, again = transformers_states(transformers_model(tmp_path / "out"), ids)
    assert np.abs(again - theirs).max() < SAME


# --- certificate and verify


@pytest.fixture(scope="module")
def merged(tmp_path_factory, adapter):
    source = in_bf16(tmp_path_factory.mktemp("source"))
    out = tmp_path_factory.mktemp("merged") / "out"
    convert(source, out, adapters=[f"{adapter}=0.5"])
    return source, out


def test_verify_merges_again(merged, adapter):
    source, out = merged
    verification = verify(out, source, adapters=[f"{adapter}=0.5"], transformers=True)
    assert verification.errors == 8, "qkv, o, gate_up and down of two layers"
    assert verification.divergence.kl_mean < 1e-3
    verify(out)


def test_verify_needs_the_same_adapters(merged, adapter, tmp_path):
    source, out = merged
    other = write_peft(tmp_path / "other", EVERY, seed=1)
    for given, message in {
        (): rf"was made with 1 adapters; give --adapter {adapter}=0\.5",
        (f"{adapter}",): r"--adapter .*=0\.5",
        (f"{adapter}=0.5", f"{adapter}=0.5"): "--adapter",
        (f"{other}=0.5",): r"adapter_model\.safetensors has sha256 .*; it is not the adapter that was merged",
    }.items():
        with pytest.raises(VerificationError, match=message):
            verify(out, source, adapters=given)


def test_a_weight_without_its_adapter_is_found(merged, adapter, tmp_path):
    """Forged: the certificate of the merged weights beside weights that lack the adapter."""
    source, out = merged
    plain = tmp_path / "plain"
    convert(source, plain, adapters=[f"{adapter}=0"])
    forged = shutil.copytree(out, tmp_path / "forged")
    shutil.copy(plain / "model.safetensors", forged)
    with pytest.raises(VerificationError, match=r"damaged"):
        verify(forged, source, adapters=[f"{adapter}=0.5"])


# --- crashes and refusals


class StopHere(Exception):
    pass


def test_stopped_anywhere_the_same_call_resumes(tiny, adapter, tmp_path):
    options: dict[str, Any] = {"adapters": [str(adapter)], "shard_bytes": 30_000, "divergence": False}
    convert(tiny, tmp_path / "whole", **options)
    expected = {p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir() if p.name != "certificate.json"}
    for point in (1, 5, 20):
        events = iter(range(point))

        def stop(stage: Any, done: int, events: Any = events) -> None:
            if next(events, None) is None:
                raise StopHere

        with pytest.raises(StopHere):
            convert(tiny, tmp_path / "out", progress=stop, **options)
        assert not (tmp_path / "out").exists()
        convert(tiny, tmp_path / "out", **options)
        result = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.name != "certificate.json"}
        assert result == expected
        shutil.rmtree(tmp_path / "out")


def test_an_adapter_that_changes_meanwhile(tiny, adapter, tmp_path):
    changing = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    file = changing / "adapter_model.safetensors"

    def change(stage: Any, done: int) -> None:
        if stage.name == "writing":
            tensors = load_file(adapter / file.name)
            save_file({name: value + 1 for name, value in tensors.items()}, file)

    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors changed while it was converted"):
        convert(tiny, tmp_path / "out", adapters=[str(changing)], divergence=False, progress=change)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_merged_is_refused(tiny, adapter, tmp_path):
    packed = write_packed(tmp_path / "packed", AFFINE_4)
    fitting = write_peft(tmp_path / "fitting", EVERY, {**TINY, **PACKABLE})
    with pytest.raises(UsageError, match=r"is packed, and an adapter cannot be merged.*--quantize none"):
        convert(packed, tmp_path / "out", adapters=[str(fitting)])
    convert(packed, tmp_path / "unpacked", adapters=[str(fitting)], quantize="none", divergence=False)
    ids = np.arange(20)[None]
    assert relative(logits_of(tmp_path / "unpacked", ids), as_numpy(load_model(packed, "fp32", [fitting])(ids))) < 1e-2
    with pytest.raises(CheckpointError, match="has shape"):
        convert(packed, tmp_path / "out", adapters=[str(adapter)], quantize="none")
    with pytest.raises(Qwen3Error):
        convert(tiny, adapter, adapters=[str(adapter)], overwrite=True)
    assert (adapter / "adapter_model.safetensors").exists()
    assert not (tmp_path / "out").exists()


def test_the_plan_names_the_adapter(tiny, adapter, tmp_path):
    plan = dry_plan(tiny, tmp_path / "out", adapters=[f"{adapter}=0.5"]).summary()
    assert plan["adapters"] == (f"{adapter}=0.5",)
    made = {tensor["name"]: tensor for tensor in plan["tensors"]}
    qkv = made["layers.0.self_attn.qkv_proj.weight"]
    assert qkv["made"] == f"fused, merged in float32 with adapter {adapter} (times 0.5)"
    assert "base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight" in qkv["from"]
    assert made["norm.weight"]["made"] == "copied"
    assert plan["dropped"] == {}
    assert open_adapter(f"{adapter}=0.5", Qwen3Config.from_hf(TINY)).strength == 0.5
    assert Checkpoint(tiny).tensors.keys() <= {name for tensor in plan["tensors"] for name in tensor["from"]}
