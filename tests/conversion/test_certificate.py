"""The certificate: it lists everything, its figures are those that can be computed from the two folders, it gates."""

import hashlib
import json
import math
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy
from checkpoints import TINY, VOCABULARY, random_weights, write_checkpoint, write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from mlx_qwen3.compare import divergence
from mlx_qwen3.compare.divergence import Streamed, compare, fixed_ids, sequences_for
from mlx_qwen3.conversion.certificate import Certificate, table
from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.errors import UsageError, VerificationError
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.files.config import Qwen3Config
from mlx_qwen3.model.load import load_model
from mlx_qwen3.text.tokenizer import Tokenizer

PACKABLE = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256, "vocab_size": VOCABULARY}
OPTIONS = [{}, {"layout": "hf"}, {"dtype": "bf16"}, {"quantize": "affine4"}, {"quantize": "mxfp8", "layout": "hf"}]


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return write_tokenizer(write_checkpoint(tmp_path_factory.mktemp("chat"), **PACKABLE))


@pytest.fixture(scope="module")
def certified(chat, tmp_path_factory):
    out = tmp_path_factory.mktemp("certified") / "out"
    return convert(chat, out, quantize="affine4"), out


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shard_bytes", [10**9, 40_000])
def test_nothing_is_missing_and_nothing_extra(chat, options, shard_bytes, tmp_path):
    out = tmp_path / "out"
    certificate = convert(chat, out, shard_bytes=shard_bytes, **options)
    assert certificate.files.keys() == {path.name for path in out.iterdir()} - {"certificate.json"}
    for name, record in certificate.files.items():
        assert (record.sha256, record.bytes) == (sha(out / name), (out / name).stat().st_size)
    assert certificate.source_files.keys() == {"model.safetensors"}
    assert certificate.source_files["model.safetensors"].sha256 == sha(chat / "model.safetensors")
    listed = {record.name: record for record in certificate.tensors}
    assert len(listed) == len(certificate.tensors)
    found = set()
    for path in out.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118, the library's object is no mapping
                found.add(name)
                part, record = file.get_slice(name), listed[name]
                assert (record.dtype, list(record.shape), record.file) == (
                    part.get_dtype(),
                    part.get_shape(),
                    path.name,
                )
                raw = path.read_bytes()[record.start : record.start + record.bytes]
                assert hashlib.sha256(raw).hexdigest() == record.sha256
                assert raw == np.array(mx.load(str(path))[name].view(mx.uint8)).tobytes()
    assert found == listed.keys()
    assert {name for record in certificate.tensors for name in record.sources} == Checkpoint(chat).tensors.keys()
    assert certificate.dropped == {}


def test_every_tensor_says_where_it_came_from_and_how_it_was_made(chat, tmp_path):
    made = {r.name: (r.sources, r.made) for r in convert(chat, tmp_path / "native", dtype="fp16").tensors}
    block = "model.layers.0.self_attn"
    assert made["layers.0.self_attn.qkv_proj.weight"] == (
        (f"{block}.q_proj.weight", f"{block}.k_proj.weight", f"{block}.v_proj.weight"),
        "fused, cast",
    )
    assert made["norm.weight"] == (("model.norm.weight",), "cast")
    made = {r.name: (r.sources, r.made) for r in convert(tmp_path / "native", tmp_path / "hf", layout="hf").tensors}
    assert made[f"{block}.k_proj.weight"] == (("layers.0.self_attn.qkv_proj.weight",), "split")
    assert made["model.norm.weight"] == (("norm.weight",), "copied")


def test_a_head_that_is_left_out_is_listed(tmp_path):
    weights = random_weights(TINY)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    source = write_checkpoint(tmp_path / "source", weights=weights)
    native = convert(source, tmp_path / "native")
    assert native.dropped == {"lm_head.weight": "repeats the embedding that it is tied to"}
    assert convert(source, tmp_path / "hf", layout="hf").dropped == {}
    assert "left out: lm_head.weight (repeats the embedding" in table(native)


def test_the_error_of_a_cast(chat, tmp_path):
    certificate = convert(chat, tmp_path / "out", dtype="bf16")
    weights = random_weights({**TINY, **PACKABLE})
    for record in certificate.tensors:
        before = np.concatenate([weights[name] for name in record.sources])
        difference = as_numpy(mx.array(before).astype(mx.bfloat16)) - before
        assert record.error.max == pytest.approx(np.abs(difference).max())
        assert record.error.relative == pytest.approx(np.linalg.norm(difference) / np.linalg.norm(before), rel=1e-4)
        if before.ndim == 2:
            rows = np.linalg.norm(difference, axis=1) / np.linalg.norm(before, axis=1)
            assert record.error.worst_row == rows.argmax()
            assert record.error.worst_row_relative == pytest.approx(rows.max(), rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"layout": "hf"}])
def test_what_is_copied_has_no_error_and_behaves_the_same(chat, options, tmp_path):
    certificate = convert(chat, tmp_path / "out", **options)
    assert all(record.error is None for record in certificate.tensors)
    now = certificate.divergence
    assert (now.logits_max, now.logits_relative, now.kl_mean, now.kl_p99) == (0, 0, 0, 0)
    assert (now.top1_agreement, now.perplexity_ratio) == (1, 1)


# --- divergence


def log_softmax(logits: np.ndarray) -> np.ndarray:
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def by_hand(source: Path, out: Path, sequences) -> dict[str, float]:
    """The figures from whole logits, float64, of the models as they are loaded to generate."""
    first, second = (load_model(folder, "fp32") for folder in (source, out))
    rows = [[np.array(m(mx.array(ids)[None]))[0].astype(np.float64) for m in (first, second)] for ids in sequences]
    a, b = (np.concatenate([row[side] for row in rows]) for side in (0, 1))
    p, q = log_softmax(a), log_softmax(b)
    kl = (np.exp(p) * (p - q)).sum(-1)
    losses = [
        -np.mean(
            np.concatenate(
                [
                    log_softmax(row[side])[np.arange(len(ids) - 1), ids[1:]]
                    for row, ids in zip(rows[1:], sequences[1:], strict=True)
                ]
            )
        )
        for side in (0, 1)
    ]
    return {
        "logits_max": np.abs(a - b).max(),
        "logits_relative": np.linalg.norm(a - b) / np.linalg.norm(a),
        "kl_mean": kl.mean(),
        "kl_p99": np.quantile(kl, 0.99),
        "top1_agreement": (a.argmax(-1) == b.argmax(-1)).mean(),
        "source_perplexity": math.exp(losses[0]),
        "perplexity": math.exp(losses[1]),
        "perplexity_ratio": math.exp(losses[1] - losses[0]),
    }


@pytest.mark.parametrize("quantize", ["affine2", "affine4", "nvfp4", None])
@pytest.mark.parametrize("tied", [True, False])
def test_the_divergence_is_that_of_the_loaded_models(quantize, tied, tmp_path, monkeypatch):
    source = write_tokenizer(write_checkpoint(tmp_path / "source", **PACKABLE, tie_word_embeddings=tied))
    monkeypatch.setattr(divergence, "HEAD_VALUES", 1)  # runs of 256 rows: the vocabulary of 307 in two
    certificate = convert(source, tmp_path / "out", quantize=quantize, dtype=None if quantize else "bf16")
    now = certificate.divergence
    expected = by_hand(source, tmp_path / "out", now.sequences)
    for key, value in expected.items():
        assert getattr(now, key) == pytest.approx(value, rel=1e-3, abs=1e-6), key
    assert 0 < now.kl_mean < now.kl_p99


def test_the_streamed_forward_pass_is_that_of_transformers(chat, ids, transformers_model, transformers_states):
    streamed = Streamed(Checkpoint(chat))
    _, theirs = transformers_states(transformers_model(chat), ids)
    ours = streamed.hidden(ids.tolist()) @ streamed.head(0, VOCABULARY).T
    assert np.abs(ours - theirs.reshape(ours.shape)).max() < 5e-5


def test_the_sequences_are_fixed_ids_and_a_text(chat):
    sequences, text = sequences_for(Checkpoint(chat), None)
    assert text == "built-in"
    assert sequences[0] == fixed_ids(Qwen3Config.from_folder(chat))
    assert len(set(sequences[0])) == 64
    assert max(sequences[0]) < VOCABULARY
    assert Tokenizer(chat).decode([token for ids in sequences[1:] for token in ids]) == divergence.TEXT
    assert all(len(ids) <= 512 for ids in sequences)
    assert sequences_for(Checkpoint(chat), None) == (sequences, text)


def test_a_text_of_ones_own(chat, tmp_path):
    (tmp_path / "text").write_text("To be, or not to be.", encoding="utf-8")
    certificate = convert(chat, tmp_path / "out", quantize="affine4", text=tmp_path / "text")
    assert certificate.divergence.text == str(tmp_path / "text")
    assert Tokenizer(chat).decode(certificate.divergence.sequences[1]) == "To be, or not to be."
    expected = by_hand(chat, tmp_path / "out", certificate.divergence.sequences)["perplexity_ratio"]
    assert certificate.divergence.perplexity_ratio == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "has 0 tokens; a perplexity needs 2"), (b"\xff\xfe", "is not UTF-8"), (None, "cannot be read")],
)
def test_a_text_that_cannot_be_used(chat, content, message, tmp_path):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=f"--text {re.escape(str(path))} {message}"):
        convert(chat, tmp_path / "out", text=path)
    assert not (tmp_path / "out").exists()


def test_without_a_tokenizer_there_is_no_perplexity(tiny, tmp_path):
    now = convert(tiny, tmp_path / "out", dtype="bf16").divergence
    assert (now.text, now.perplexity, now.perplexity_ratio, len(now.sequences)) == (None, None, None, 1)
    assert now.kl_mean > 0
    (tmp_path / "text").write_text("x y")
    with pytest.raises(UsageError, match=r"needs the tokenizer, but .*tokenizer\.json does not exist"):
        convert(tiny, tmp_path / "other", text=tmp_path / "text")


@settings(max_examples=30, deadline=None)
@given(step=st.integers(1, 40), seed=st.integers(0, 99), scale=st.sampled_from([0.1, 1, 30, 300]))
def test_sums_over_runs_of_the_vocabulary_are_those_over_all_of_it(step, seed, scale):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0, scale, (2, 6, 37)).astype(np.float32)
    targets = np.array([-1, -1, 5, 36, 0, -1])
    sums = divergence._Sums(targets)
    for first in range(0, 37, step):
        sums.add(first, a[:, first : first + step], b[:, first : first + step])
    now = sums.divergence([[0, 0], [0, 0, 0, 0]], "text")
    p, q = log_softmax(a.astype(np.float64)), log_softmax(b.astype(np.float64))
    kl = (np.exp(p) * (p - q)).sum(-1)
    assert now.kl_mean == pytest.approx(kl.mean(), rel=1e-6, abs=1e-9)
    assert now.kl_p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-6, abs=1e-9)
    assert now.top1_agreement == (a.argmax(-1) == b.argmax(-1)).mean()
    assert list(now.top1) == b.argmax(-1).tolist()
    assert math.log(now.perplexity) == pytest.approx(min(700, -q[[2, 3, 4], [5, 36, 0]].mean()), rel=1e-6)


def test_comparing_holds_neither_model_nor_logits(tmp_path, monkeypatch):
    """Only runs of rows are asked of the output matrix, and no part is read twice at a time."""
    config = {**TINY, "vocab_size": 4001}
    source = write_checkpoint(tmp_path / "source", config)
    counts = []
    head = Streamed.head
    monkeypatch.setattr(Streamed, "head", lambda self, first, count: counts.append(count) or head(self, first, count))
    monkeypatch.setattr(divergence, "HEAD_VALUES", 64 * 300)
    source = Checkpoint(source)
    compare(source, source, sequences_for(source, None)[0], None)
    assert max(counts) == 300
    assert sum(counts) == 2 * 4001


# --- the gate


def test_past_max_kl_nothing_is_published(chat, tmp_path):
    with pytest.raises(VerificationError, match=r"KL divergence .* past the 1e-06 allowed; nothing was published"):
        convert(chat, tmp_path / "out", quantize="affine2", max_kl=1e-6)
    assert list(tmp_path.iterdir()) == []
    kl = convert(chat, tmp_path / "out", quantize="affine2", max_kl=100).divergence.kl_mean
    assert kl > 1e-6
    convert(chat, tmp_path / "exact", max_kl=0)
    convert(chat, tmp_path / "limit", quantize="affine2", max_kl=kl)
    with pytest.raises(VerificationError):
        convert(chat, tmp_path / "below", quantize="affine2", max_kl=kl * 0.999)


@pytest.mark.parametrize("options", [{"max_kl": 0.1, "divergence": False}, {"max_kl": -1}])
def test_a_gate_that_cannot_be(chat, options, tmp_path):
    with pytest.raises(UsageError, match="max_kl is"):
        convert(chat, tmp_path / "out", **options)


def test_a_model_that_computes_nothing_finite_is_not_published(tmp_path):
    weights = random_weights(TINY)
    weights["model.norm.weight"][:] = np.nan
    source = write_checkpoint(tmp_path / "source", weights=weights)
    with pytest.raises(VerificationError, match="logits that are not finite; nothing was published"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_divergence_nothing_is_computed(chat, tmp_path, monkeypatch):
    monkeypatch.setattr(Streamed, "hidden", None)
    certificate = convert(chat, tmp_path / "out", divergence=False)
    assert certificate.divergence is None
    assert "divergence: not measured" in table(certificate)


# --- file and table


def test_it_comes_back_from_its_file(certified):
    certificate, out = certified
    assert Certificate.read(out) == certificate
    stored = json.loads((out / "certificate.json").read_text())
    assert stored["divergence"]["perplexity_ratio"] == certificate.divergence.perplexity_ratio
    assert stored["versions"].keys() == {"mlx-qwen3", "mlx"}


def test_the_table_has_a_line_for_every_tensor_and_every_file(certified):
    certificate, _ = certified
    lines = table(certificate).splitlines()
    for record in certificate.tensors:
        (line,) = [line for line in lines if line.startswith(f"{record.name} ")]
        assert record.made in line
        assert str(list(record.shape)) in line
        assert record.sources[0] in line
        assert record.error is None or f"{record.error.relative:.3g}" in line
    for name, record in {**certificate.files, **certificate.source_files}.items():
        assert any(name in line and record.sha256 in line for line in lines)
    for figure in ("KL divergence, mean", "99th percentile", "same first choice", "ratio of the perplexities"):
        assert any(figure in line for line in lines)
