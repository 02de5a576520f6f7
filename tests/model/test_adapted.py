"""Models with adapters: against PEFT and mlx-lm, and against checkpoints whose weights were changed by hand."""

import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from adapting import ATTENTION, matrices, peft_deltas, write_mlx_lm, write_peft
from arrays import as_numpy, relative
from checkpoints import AFFINE_4, PACKABLE, TINY, TINY_MOE, random_weights, write_checkpoint, write_packed
from mlx.utils import tree_flatten

from mlx_qwen3.engine.runner import decode_step
from mlx_qwen3.errors import CheckpointError
from mlx_qwen3.files.adapted import AdaptedCheckpoint
from mlx_qwen3.files.adapters import open_adapter
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.model import adapted as module
from mlx_qwen3.model.adapted import adapted
from mlx_qwen3.model.load import load_model
from mlx_qwen3.model.low_rank import AdaptedLinear

TOLERANCE = 2e-5  # of logits near 6; measured: at most 1.5e-5 with rsLoRA, 8e-6 without
EVERY = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
Arrays = dict[str, np.ndarray]


def deltas(folder: Path, scale: float) -> Arrays:
    """scale * B @ A, whatever the scale of the adapter is."""
    return {name: scale / 2 * delta for name, delta in peft_deltas(folder).items()}


def changed(folder: Path, changes: Arrays, config: dict[str, Any] = TINY, **more: Any) -> Path:
    """A checkpoint of the random weights with these changes added."""
    weights = random_weights({**config, **more})
    for name, change in changes.items():
        weights[name] = weights[name] + change.astype(np.float32)
    return write_checkpoint(folder, config, weights, **more)


@pytest.fixture(scope="module")
def attention(tmp_path_factory):
    return write_peft(tmp_path_factory.mktemp("attention"))


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    return write_peft(tmp_path_factory.mktemp("every"), EVERY, seed=5)


# --- against PEFT

PEFT: dict[str, dict[str, Any]] = {
    "two projections": {"target_modules": ["q_proj", "v_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "a regex": {"target_modules": r".*\.1\.(self_attn|mlp)\.(k_proj|up_proj|down_proj|o_proj)"},
    "one fused part": {"target_modules": ["up_proj"]},
    "rsLoRA": {"target_modules": "all-linear", "use_rslora": True},
    "DoRA": {"target_modules": "all-linear", "use_dora": True},
    "DoRA of k alone": {"target_modules": ["k_proj"], "use_dora": True},
    "patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 7},
        "alpha_pattern": {"v_proj": 3},
    },
    "rsLoRA with patterns": {"target_modules": ["q_proj", "k_proj"], "use_rslora": True, "rank_pattern": {"k_proj": 9}},
    "one layer, and a whole name": {
        "target_modules": ["q_proj", "model.layers.0.self_attn.k_proj"],
        "layers_to_transform": [1],
    },
    "an exclusion": {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
    "modules to save": {"target_modules": ["q_proj"], "modules_to_save": ["k_proj", "norm"]},
    "an MLP to save": {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]},
    "the embedding to save": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "the head to save": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "both to save": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "both to save, tied": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "the head": {"target_modules": ["lm_head", "q_proj"]},
    "the head by DoRA": {"target_modules": ["lm_head"], "use_dora": True},
    "the embedding and what is tied to it": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
}
# PEFT merges a change of one matrix into both of a tied model, though it was trained on one alone.
OF_ONE = ("the embedding", "the head", "the head by DoRA", "the embedding and what is tied to it")


def trained(base: Path, out: Path, load: Any, **settings: Any) -> Path:
    """An adapter that PEFT writes, every number random."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    torch.manual_seed(0)
    model = peft.get_peft_model(load(base), peft.LoraConfig(task_type="CAUSAL_LM", r=5, lora_alpha=16, **settings))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "magnitude" in name:
                value.mul_(torch.rand_like(value) + 0.5)
            elif "lora_" in name or "modules_to_save" in name:
                value.add_(torch.randn_like(value) * 0.1)
    model.save_pretrained(out)
    return out


def of_peft(base: Path, adapters: list[Path], load: Any, ids: np.ndarray, merged: bool) -> np.ndarray:
    """The logits of PEFT, with its adapters beside the weights or merged into them."""
    import peft
    import torch

    names = [f"adapter {index}" for index in range(len(adapters))]
    model = peft.PeftModel.from_pretrained(load(base), adapters[0], adapter_name=names[0])
    for name, folder in zip(names[1:], adapters[1:], strict=True):
        model.load_adapter(folder, adapter_name=name)
    model.base_model.set_adapter(names)
    with torch.no_grad():
        ready = model.merge_and_unload(adapter_names=names) if merged else model
        logits: np.ndarray = ready.eval()(torch.tensor(ids)).logits.numpy()
    return logits


@pytest.mark.filterwarnings("ignore")  # PEFT warns of tied weights and of embeddings that it saves
@pytest.mark.parametrize(
    ("name", "tied"),
    [(name, tied) for name in PEFT for tied in (True, False) if tied or "head" in name or "embedding" in name],
)
def test_it_equals_peft(name, tied, tiny, untied, ids, tmp_path, transformers_model):
    base = tiny if tied else untied
    folder = trained(base, tmp_path / "adapter", transformers_model, **PEFT[name])
    plain = load_model(base)
    ours = as_numpy(adapted(plain, [open_adapter(folder, plain.config)])(ids))
    assert np.abs(as_numpy(plain(ids)) - ours).max() > 0.1
    for merged in (False,) if tied and name in OF_ONE else (False, True):
        assert np.abs(of_peft(base, [folder], transformers_model, ids, merged) - ours).max() < TOLERANCE, merged


EXPERTS: dict[str, dict[str, Any]] = {
    "all-linear": {"target_modules": "all-linear"},
    "projections by name": {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"], "use_rslora": True},
    "one stack": {"target_parameters": ["experts.down_proj"]},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXPERTS)
def test_experts_equal_peft(name, tiny_moe, ids, tmp_path, transformers_model):
    """PEFT has one lora_A and one lora_B for a stack of experts, as transformers 5 has it."""
    folder = trained(tiny_moe, tmp_path / "adapter", transformers_model, **EXPERTS[name])
    assert json.loads((folder / "adapter_config.json").read_text())["target_parameters"]
    plain, ours = load_model(tiny_moe), load_model(tiny_moe, adapters=[folder])
    assert np.abs(as_numpy(plain(ids)) - as_numpy(ours(ids))).max() > 0.1
    theirs = of_peft(tiny_moe, [folder], transformers_model, ids, merged=False)
    assert np.abs(theirs - as_numpy(ours(ids))).max() < TOLERANCE
    with_merged = load_model(AdaptedCheckpoint(Checkpoint(tiny_moe), [open_adapter(folder, plain.config)]))
    assert np.abs(theirs - as_numpy(with_merged(ids))).max() < TOLERANCE


@pytest.mark.filterwarnings("ignore")
def test_several_adapters_equal_peft_in_any_order(tiny, ids, tmp_path, transformers_model):
    kinds = {"LoRA": {"target_modules": "all-linear"}, "DoRA": {"target_modules": ["q_proj", "o_proj"]}}
    lora = trained(tiny, tmp_path / "lora", transformers_model, **kinds["LoRA"])
    dora = trained(tiny, tmp_path / "dora", transformers_model, **kinds["DoRA"], use_dora=True)
    for adapters in ([lora, dora], [dora, lora], [dora, dora]):
        ours = as_numpy(load_model(tiny, adapters=adapters)(ids))
        assert np.abs(of_peft(tiny, adapters, transformers_model, ids, merged=True) - ours).max() < TOLERANCE


# --- against mlx-lm


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize(
    "keys",
    [None, ["self_attn.q_proj", "mlp.up_proj"], ["self_attn.v_proj", "model.embed_tokens"]],
    ids=["all", "two", "embedding"],
)
def test_it_equals_mlx_lm(kind, keys, tiny, ids, tmp_path):
    mlx_lm, tuner = pytest.importorskip("mlx_lm.utils"), pytest.importorskip("mlx_lm.tuner.utils")

    def with_embedding(tensors: Arrays) -> None:
        if keys and "model.embed_tokens" in keys:
            rng, (rows, hidden) = np.random.default_rng(2), (TINY["vocab_size"], TINY["hidden_size"])
            tensors["model.embed_tokens.lora_a"] = rng.normal(0, 0.2, (rows, 4)).astype(np.float32)
            tensors["model.embed_tokens.lora_b"] = rng.normal(0, 0.2, (4, hidden)).astype(np.float32)
            if kind == "dora":
                tensors["model.embed_tokens.m"] = rng.uniform(0.5, 1.5, rows).astype(np.float32)

    folder = write_mlx_lm(tmp_path / "adapter", kind, layers=1, keys=keys, change=with_embedding)
    theirs, _ = mlx_lm.load_model(tiny)
    tuner.load_adapters(theirs, str(folder))
    ours = load_model(tiny, adapters=[folder])
    assert np.abs(as_numpy(theirs(mx.array(ids))) - as_numpy(ours(ids))).max() < TOLERANCE


def test_experts_equal_mlx_lm(tiny_moe, ids, tmp_path):
    mlx_lm, tuner = pytest.importorskip("mlx_lm.utils"), pytest.importorskip("mlx_lm.tuner.utils")
    folder = write_mlx_lm(tmp_path / "adapter", model=TINY_MOE)
    theirs, _ = mlx_lm.load_model(tiny_moe)
    tuner.load_adapters(theirs, str(folder))
    ours = load_model(tiny_moe, adapters=[folder])
    assert relative(ours(ids), as_numpy(theirs(mx.array(ids)))) < 1e-5
    step = decode_step(ours)
    cache = ours.make_cache(2)
    ours(ids[:, :-1], cache)
    assert relative(step(mx.array(ids[:, -1]), cache), as_numpy(ours(ids))[:, -1]) < 1e-5


def test_a_full_fine_tune_of_the_last_layer_replaces_its_weights(tiny, ids, tmp_path):
    new = random_weights(TINY, seed=7)
    last = {name: value for name, value in new.items() if ".layers.1." in name}
    folder = tmp_path / "adapter"
    write_mlx_lm(folder, "full", layers=1, keys=[], change=lambda tensors: tensors.update(last))
    expected = load_model(write_checkpoint(tmp_path / "model", weights={**random_weights(TINY), **last}))
    assert np.array_equal(as_numpy(load_model(tiny, adapters=[folder])(ids)), as_numpy(expected(ids)))


# --- against changed checkpoints


def test_experts_of_peft_equal_a_changed_checkpoint(tiny_moe, ids, tmp_path):
    """With other ranks for some experts, and with the router."""
    folder = tmp_path / "adapter"

    def more(tensors: Arrays) -> None:
        rng = np.random.default_rng(3)
        for name in [n for n in tensors if ".experts.2.up_proj.lora_A" in n]:
            outputs, inputs = TINY_MOE["moe_intermediate_size"], TINY_MOE["hidden_size"]
            tensors[name] = rng.normal(0, 0.2, (6, inputs)).astype(np.float32)
            tensors[name.replace("lora_A", "lora_B")] = rng.normal(0, 0.2, (outputs, 6)).astype(np.float32)

    targets = (*EVERY, "mlp.gate")
    write_peft(folder, targets, TINY_MOE, change=more, rank_pattern={r"experts\.2\.up_proj": 6}, use_rslora=True)
    scales = {name: 8 / math.sqrt(6 if ".experts.2.up_proj" in name else 4) for name in deltas(folder, 1)}
    changes = {name: scales[name] * delta for name, delta in deltas(folder, 1).items()}
    expected = as_numpy(load_model(changed(tmp_path / "model", changes, TINY_MOE))(ids))
    model = load_model(tiny_moe, adapters=[folder])
    assert relative(model(ids), expected) < 1e-5
    assert relative(model(ids[:1, :2]), expected[:1, :2]) < 1e-5  # few pairs: each by its own product


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_a_packed_base_equals_its_unpacked_weights_with_the_change(dora, ids, tmp_path):
    config = {**TINY, **PACKABLE}
    base = write_packed(tmp_path / "packed", AFFINE_4, {"k_proj": {**AFFINE_4, "bits": 8}})  # so q and k are apart
    rng = np.random.default_rng(4)
    magnitudes = {name: rng.uniform(0.5, 1.5, shape[0]).astype(np.float32) for name, shape in matrices(config).items()}

    def with_magnitudes(tensors: Arrays) -> None:
        if dora:
            prefix = "base_model.model."
            tensors |= {f"{prefix}{name}.lora_magnitude_vector": m for name, m in magnitudes.items()}

    folder = write_peft(tmp_path / "adapter", EVERY, config, change=with_magnitudes, use_dora=dora)
    weights = {}
    for name, value in random_weights(config).items():
        packing = {**AFFINE_4, "bits": 8} if "k_proj" in name else AFFINE_4
        weights[name] = value
        if value.ndim > 1:
            weights[name] = np.array(mx.dequantize(*mx.quantize(mx.array(value), **packing), **packing))
    for name, delta in deltas(folder, 2).items():
        weights[name] = weights[name] + delta
        if dora:
            ratio = magnitudes[name.removesuffix(".weight")] / np.linalg.norm(weights[name], axis=1)
            weights[name] = weights[name] * ratio[:, None]
    expected = load_model(write_checkpoint(tmp_path / "model", config, weights))
    ours = load_model(base, adapters=[folder])
    assert relative(ours(ids), as_numpy(expected(ids))) < 1e-5


def test_a_whole_part_of_a_packed_matrix_takes_its_place(ids, tmp_path):
    config = {**TINY, **PACKABLE}
    base = write_packed(tmp_path / "packed", AFFINE_4)
    new = random_weights(config, seed=9)["model.layers.0.self_attn.k_proj.weight"]
    folder = write_peft(
        tmp_path / "adapter",
        ("q_proj",),
        config,
        change=lambda tensors: tensors.update({"base_model.model.model.layers.0.self_attn.k_proj.weight": new}),
        modules_to_save=["layers.0.self_attn.k_proj"],
    )
    model = load_model(base, adapters=[folder])
    x = mx.array(np.random.default_rng(0).normal(size=(3, config["hidden_size"])).astype(np.float32))
    q, k = (config["head_dim"] * heads for heads in (6, 2))
    before, after = (as_numpy(m.layers[0].self_attn.qkv_proj(x)) for m in (load_model(base), model))
    assert relative(after[:, q : q + k], as_numpy(x) @ new.T) < 1e-5
    assert relative(after[:, q + k :], before[:, q + k :]) < 1e-6
    assert relative(after[:, :q], before[:, :q]) > 0.1


@pytest.mark.parametrize(("dtype", "bound"), [("bf16", 0.05), ("fp16", 0.006)])  # measured: 0.020 and 0.0026
def test_it_computes_in_the_dtype_of_the_model(dtype, bound, tiny, every, ids):
    model = load_model(tiny, dtype, adapters=[every])
    dtypes = {array.dtype for _, array in tree_flatten(model.parameters())}
    assert dtypes == {model.norm.weight.dtype} == {{"bf16": mx.bfloat16, "fp16": mx.float16}[dtype]}
    assert relative(model(ids), as_numpy(load_model(tiny, adapters=[every])(ids))) < bound


def test_a_value_that_float16_cannot_hold_is_refused(tiny, tmp_path):
    folder = write_peft(tmp_path / "adapter", change=lambda tensors: [t.__imul__(1e6) for t in tensors.values()])
    with pytest.raises(CheckpointError, match=r"qkv_proj reaches .* past float16's 65504"):
        load_model(tiny, "fp16", adapters=[folder])


# --- decode, batches, scales


def test_a_replayed_step_and_a_prompt_in_chunks_equal_one_pass(tiny, every, ids):
    model = load_model(tiny, adapters=[every])
    expected = as_numpy(model(ids))
    cache = model.make_cache(2)
    for first, end in ((0, 5), (5, 12), (12, 30)):
        assert np.abs(as_numpy(model(ids[:, first:end], cache)) - expected[:, first:end]).max() < TOLERANCE
    step = decode_step(model)
    for place in range(30, 37):
        assert np.abs(as_numpy(step(mx.array(ids[:, place]), cache)) - expected[:, place]).max() < TOLERANCE


def test_the_scale_of_the_command_multiplies_that_of_the_adapter(tiny, every, ids, tmp_path):
    for scale in (0.5, -1.0, 0.0):
        expected = load_model(changed(tmp_path / f"model {scale}", deltas(every, 2 * scale)))
        ours = load_model(tiny, adapters=[f"{every}={scale}"])
        assert np.abs(as_numpy(ours(ids)) - as_numpy(expected(ids))).max() < TOLERANCE


def test_the_base_does_not_change_and_shares_its_arrays(tiny, attention, every, ids):
    base = load_model(tiny)
    before, arrays = as_numpy(base(ids)), {id(array) for _, array in tree_flatten(base.parameters())}
    config = base.config
    one, two = (adapted(base, [open_adapter(folder, config)]) for folder in (attention, every))
    assert np.array_equal(as_numpy(base(ids)), before)
    for model, folder in ((one, attention), (two, every)):
        assert arrays <= {id(array) for _, array in tree_flatten(model.parameters())}
        assert model.nbytes - base.nbytes == open_adapter(folder, config).nbytes(config, mx.float32)
    assert len({base.fingerprint, one.fingerprint, two.fingerprint}) == 3
    assert adapted(base, [open_adapter(f"{every}=0.5", config)]).fingerprint != two.fingerprint
    assert adapted(base, []) is base


def test_the_first_matrix_lies_by_ranks(tiny, every):
    """One row times few columns is many times slower in MKL if the columns do not lie one after another."""
    model = load_model(tiny, adapters=[every])
    found = [module["a"] for module in model.modules() if isinstance(module, AdaptedLinear)]
    assert found
    assert {np.array(a, copy=False).strides[0] for a in found} == {4}


def test_the_bytes_of_experts_and_gains_are_known_before(tiny, tiny_moe, tmp_path):
    for kind, base, config in (("dora", tiny, TINY), ("lora", tiny_moe, TINY_MOE)):
        model, folder = load_model(base), write_mlx_lm(tmp_path / kind, kind, model=config)
        adapter = open_adapter(folder, model.config)
        assert adapted(model, [adapter]).nbytes - model.nbytes == adapter.nbytes(model.config, mx.float32)


def test_a_tied_model_counts_the_embedding_once(tiny, tmp_path):
    def head(tensors: Arrays) -> None:
        for name, size in (("A", (4, TINY["hidden_size"])), ("B", (TINY["vocab_size"], 4))):
            tensors[f"base_model.model.lm_head.lora_{name}.weight"] = np.ones(size, np.float32)

    folder = write_peft(tmp_path / "adapter", (), change=head, target_modules=["lm_head"])
    base = load_model(tiny)
    adapter = open_adapter(folder, base.config)
    assert adapted(base, [adapter]).nbytes == base.nbytes + adapter.nbytes(base.config, mx.float32)


# --- planted mistakes


def without_scale(monkeypatch, folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": config["r"]}))


def with_rslora(monkeypatch, folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": True}))


def q_and_k_swapped(monkeypatch, folder):
    parts = {name: tuple(reversed(kinds[:2])) + kinds[2:] for name, kinds in module.NAME_MAP.items()}
    monkeypatch.setattr(module, "NAME_MAP", parts)


def columns_of_others(monkeypatch, folder):
    """Each part of a fused matrix also gets what belongs to the others."""
    made = module._Changes._adapted

    def mixed(self, base, changes, heights, name):
        found = made(self, base, changes, heights, name)
        if isinstance(found, AdaptedLinear):
            found.b = found.b + mx.roll(found.b, 1, axis=0)
        return found

    monkeypatch.setattr(module._Changes, "_adapted", mixed)


def add_forgets_the_change(monkeypatch, folder):
    monkeypatch.setattr(AdaptedLinear, "add", lambda self, residual, x: self["base"].add(residual, x))


@pytest.mark.parametrize(
    "mistake", [without_scale, with_rslora, q_and_k_swapped, columns_of_others, add_forgets_the_change]
)
def test_a_planted_mistake_is_found(mistake, tiny, ids, tmp_path, monkeypatch):
    folder = write_peft(tmp_path / "adapter", EVERY)
    expected = as_numpy(load_model(changed(tmp_path / "model", deltas(folder, 2)))(ids))
    assert np.abs(as_numpy(load_model(tiny, adapters=[folder])(ids)) - expected).max() < TOLERANCE
    mistake(monkeypatch, folder)
    assert np.abs(as_numpy(load_model(tiny, adapters=[folder])(ids)) - expected).max() > 0.1
