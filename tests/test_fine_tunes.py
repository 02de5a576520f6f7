"""Folders as fine-tuning leaves them: they run as transformers runs them, or are refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from adapting import write_peft
from checkpoints import TINY, VOCABULARY, random_weights, write_checkpoint, write_tokenizer
from safetensors.numpy import load_file, save_file

from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.conversion.verify import verify
from mlx_qwen3.engine.reply import generate
from mlx_qwen3.engine.request import ReplyOptions, prepare
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.errors import CheckpointError, PromptError, Qwen3Error
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.files.layout import checkpoint_dtype
from mlx_qwen3.model.load import load_model
from mlx_qwen3.text.tokenizer import Tokenizer

SAME = 2e-5  # relative norm of float32 logits from transformers'; measured: 6e-7
Weights = dict[str, np.ndarray]


def weights_of(folder: Path) -> Weights:
    return load_file(folder / "model.safetensors")


def store(folder: Path, weights: Weights, **config: Any) -> Path:
    """Replace the weights of a folder, and settings of its config.json."""
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | config))
    return folder


def resized(rows: int, multiple: int | None = None, **config: Any) -> Callable[[Path], Path]:
    """What transformers writes after `resize_token_embeddings`."""

    def make(folder: Path) -> Path:
        transformers = pytest.importorskip("transformers")
        model = transformers.AutoModelForCausalLM.from_pretrained(write_checkpoint(folder / "base", **config))
        model.resize_token_embeddings(rows, pad_to_multiple_of=multiple)
        model.save_pretrained(folder / "tuned")
        return folder / "tuned"

    return make


def only_head(folder: Path) -> Path:
    """What `safetensors.torch.save_model` writes of a tied model: of two names for one matrix it keeps the first."""
    torch, transformers = pytest.importorskip("safetensors.torch"), pytest.importorskip("transformers")
    write_checkpoint(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    torch.save_model(model, str(folder / "model.safetensors"), {"format": "pt"})
    assert "model.embed_tokens.weight" not in weights_of(folder)
    return folder


def other_dtype(*names: str, **config: Any) -> Callable[[Path], Path]:
    """A bfloat16 model that keeps some tensors in float32."""

    def make(folder: Path) -> Path:
        write_checkpoint(folder, torch_dtype="bfloat16", **config)
        arrays = mx.load(str(folder / "model.safetensors"))
        kept = {name: any(part in name for part in names) for name in arrays}
        arrays = {name: array if kept[name] else array.astype(mx.bfloat16) for name, array in arrays.items()}
        mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": "pt"})
        return folder

    return make


def untied_by_hand(folder: Path) -> Path:
    """A head that was trained apart from the embedding, with the setting that says so."""
    write_checkpoint(folder)
    weights = weights_of(folder)
    return store(
        folder, weights | {"lm_head.weight": weights["model.embed_tokens.weight"] * 1.5}, tie_word_embeddings=False
    )


def with_leftovers(folder: Path) -> Path:
    """The files that trainers leave, and the keys that Unsloth and trl write."""
    write_checkpoint(folder, unsloth_version="2026.1", unsloth_fixed=True, use_cache=False, model_name="mine")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin"):
        (folder / name).write_bytes(b"\x80\x02}q\x00.")
    (folder / "trainer_state.json").write_text("{}")
    for name in ("checkpoint-10", "runs"):
        write_checkpoint(folder / name, vocab_size=13)
    return folder


RUNS = {
    "resized": resized(157),
    "resized to a multiple": resized(157, 64),
    "made smaller": resized(149),
    "resized without a tie": resized(157, tie_word_embeddings=False),
    "only the head": only_head,
    "untied by hand": untied_by_hand,
    "head in float32": other_dtype("lm_head", tie_word_embeddings=False),
    "norms in float32": other_dtype("norm"),
    "one matrix in float32": other_dtype("layers.1.self_attn.k_proj"),
    "leftovers of training": with_leftovers,
}


def logits_of(folder: Path, ids: np.ndarray) -> np.ndarray:
    return np.array(load_model(folder, "fp32")(mx.array(ids)))


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("make", RUNS.values(), ids=RUNS)
def test_it_runs_as_in_transformers_and_after_a_conversion(make, tmp_path, transformers_model, transformers_states):
    folder = make(tmp_path / "source")
    ids = np.random.default_rng(1).integers(0, 140, (2, 11))
    _, theirs = transformers_states(transformers_model(folder), ids)
    ours = logits_of(folder, ids)
    assert distance(ours, theirs) < SAME
    for layout in ("native", "hf"):
        convert(folder, tmp_path / layout, layout=layout, divergence=False)
        verify(tmp_path / layout, folder)
        np.testing.assert_array_equal(logits_of(tmp_path / layout, ids), ours)
    _, again = transformers_states(transformers_model(tmp_path / "hf"), ids)
    np.testing.assert_array_equal(again, theirs)


@pytest.mark.parametrize("name", ["head in float32", "norms in float32", "one matrix in float32"])
def test_the_dtype_is_that_of_most_values(name, tmp_path):
    """A head is often the largest tensor: its float32 must not make a model of bfloat16 twice as large."""
    folder = RUNS[name](tmp_path / "source")
    assert checkpoint_dtype(Checkpoint(folder).parts) == mx.bfloat16
    convert(folder, tmp_path / "out", layout="hf", divergence=False)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


EMBEDDING = "model.embed_tokens.weight"


def head(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {"lm_head.weight": change(weights[EMBEDDING])}


def prefixed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {prefix + name: value for name, value in weights.items()}


def renamed(old: str, new: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name.replace(old, new): value for name, value in weights.items()}


NOT_TIED = "tie_word_embeddings is true, but lm_head.weight differs from the embedding; set it to false in config.json"
REFUSED: dict[str, tuple[Callable[[Weights], Weights], dict[str, Any], str]] = {
    "a head of its own": (head(lambda embedding: embedding + 0.1), {}, NOT_TIED),
    "one value of the head": (head(lambda e: np.where(np.arange(e.size).reshape(e.shape) == 77, 0, e)), {}, NOT_TIED),
    "a rounded head": (head(lambda embedding: embedding.astype(np.float16)), {}, NOT_TIED),
    "no head": (lambda w: w, {"tie_word_embeddings": False}, "lacks lm_head.weight; tie_word_embeddings is false"),
    "vocab_size": (lambda w: w, {"vocab_size": 157}, r"if the embedding was resized, set vocab_size to 151"),
    "torch.compile": (prefixed("_orig_mod."), {}, r"torch.compile's wrapper; save the model inside .*model\._orig_mod"),
    "one compiled layer": (renamed("layers.1.", "layers.1._orig_mod."), {}, "torch.compile's wrapper; save the model"),
    "DeepSpeed": (prefixed("module."), {}, r"wrapper of DeepSpeed .*; save the model inside .*, model\.module"),
    "FSDP": (prefixed("_fsdp_wrapped_module."), {}, "FSDP's wrapper; save the model inside"),
    "PEFT": (prefixed("base_model.model."), {}, "PEFT's wrapper; save what merge_and_unload of PEFT returns"),
    "PEFT's targets": (renamed("q_proj", "q_proj.base_layer"), {}, r"q_proj\.base_layer\.weight, a name of PEFT's"),
    "a prefix twice": (prefixed("model."), {}, "the prefix 'model.' twice; save the model inside the wrapper"),
}


@pytest.mark.parametrize(("change", "config", "message"), REFUSED.values(), ids=REFUSED)
def test_what_transformers_runs_otherwise_or_not_at_all_is_refused_by_name(change, config, message, tmp_path):
    store(write_checkpoint(tmp_path / "tuned"), change(random_weights(TINY)), **config)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "tuned")
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "tuned", tmp_path / "out", divergence=False)
    assert not (tmp_path / "out").exists()


TOKENS = ["<tool>", "<|plan|>", "émoji🙂"]
MESSAGES = [{"role": "user", "content": "a <tool> b<|plan|>émoji🙂 <think> c"}]


@pytest.fixture
def tuned(tmp_path):
    """A model with new tokens, as transformers saves it: resized embedding, tokenizer, chat template."""
    transformers = pytest.importorskip("transformers")
    base = write_tokenizer(write_checkpoint(tmp_path / "base", vocab_size=VOCABULARY))
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(TOKENS[:1])
    tokenizer.add_special_tokens({"additional_special_tokens": TOKENS[1:]})
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned", model, tokenizer


def test_added_tokens_give_the_ids_and_the_reply_of_transformers(tuned, tmp_path):
    folder, model, theirs = tuned
    convert(folder, tmp_path / "out", layout="hf", divergence=False)
    for place in (folder, tmp_path / "out"):
        ours = Tokenizer(place)
        text = ours.apply_chat_template(MESSAGES)
        assert text == theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert {theirs.convert_tokens_to_ids(token) for token in TOKENS} < set(ids)
        reply = model.generate(model.dummy_inputs["input_ids"].new_tensor([ids]), max_new_tokens=9, do_sample=False)
        result = generate(load_model(place, "fp32"), ours, ids, sampling=SamplingParams(temperature=0), max_tokens=9)
        assert list(result.tokens) == reply[0, len(ids) :].tolist()


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(tuned):
    folder, *_ = tuned
    rows = Tokenizer(folder).size - 1
    weights = weights_of(folder)
    store(folder, weights | {EMBEDDING: weights[EMBEDDING][:rows]}, vocab_size=rows)
    config = Checkpoint(folder).config
    with pytest.raises(
        PromptError, match=rf"has {rows + 1} ids, but the embedding {rows} rows; .*resize_token_embeddings"
    ):
        prepare(config, Tokenizer(folder), MESSAGES, ReplyOptions())
    assert issubclass(PromptError, Qwen3Error)


def test_an_adapter_beside_the_model_is_not_left_out_silently(tmp_path):
    """transformers applies it if PEFT is installed."""
    folder = write_peft(write_checkpoint(tmp_path / "both"))
    for use in (load_model, lambda folder: convert(folder, tmp_path / "out", divergence=False)):
        with pytest.raises(CheckpointError, match=r"holds a model and an adapter.*; give the folder as --adapter too"):
            use(folder)
    convert(folder, tmp_path / "out", adapters=[str(folder)], divergence=False)
    ids = np.arange(12)[None]
    merged = logits_of(tmp_path / "out", ids)
    assert distance(np.array(load_model(folder, "fp32", [folder])(mx.array(ids))), merged) < SAME
