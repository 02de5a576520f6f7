"""The divergence is that of whole logits in float64, of the models as they are loaded to generate."""

import math
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import TINY, VOCABULARY, write_checkpoint, write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen3.compare import divergence
from mlx_qwen3.compare.divergence import compare, fixed_ids, sequences_for
from mlx_qwen3.compare.streamed import Streamed
from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.errors import UsageError
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.model.load import load_model
from mlx_qwen3.text.tokenizer import Tokenizer

PACKABLE = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256, "vocab_size": VOCABULARY}


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return write_tokenizer(write_checkpoint(tmp_path_factory.mktemp("chat"), **PACKABLE))


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
    assert sequences[0] == fixed_ids(Checkpoint(chat).config)
    assert len(set(sequences[0])) == 64
    assert max(sequences[0]) < VOCABULARY
    assert Tokenizer(chat).decode([token for ids in sequences[1:] for token in ids]) == divergence.TEXT
    assert all(len(ids) <= 512 for ids in sequences)
    assert sequences_for(Checkpoint(chat), None) == (sequences, text)


def test_a_text_of_any_size_has_a_bounded_number_of_tokens(chat, tmp_path, monkeypatch):
    monkeypatch.setattr(divergence, "TEXT_TOKENS", 700)
    (tmp_path / "text").write_text("a b c " * 100_000)
    sequences, _ = sequences_for(Checkpoint(chat), tmp_path / "text")
    assert sum(map(len, sequences[1:])) == 700


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
    """The output matrix is read in blocks of rows, and no part is in memory twice."""
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
