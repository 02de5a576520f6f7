"""The certificate: it lists everything, its figures can be computed from the two folders, and `max_kl` is obeyed."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy
from checkpoints import TINY, VOCABULARY, random_weights, write_checkpoint, write_tokenizer
from safetensors import safe_open

from mlx_qwen3.compare.streamed import Streamed
from mlx_qwen3.conversion.certificate import Certificate
from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.conversion.summary import certified_in_full, difference
from mlx_qwen3.conversion.verify import verify
from mlx_qwen3.errors import UsageError, VerificationError
from mlx_qwen3.files.checkpoint import Checkpoint

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
            for name in file.keys():  # noqa: SIM118, the library's object is not a mapping
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
    assert any("left out: lm_head.weight (repeats the embedding" in str(part) for part in certified_in_full(native))


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


# --- the gate


def test_past_max_kl_out_is_not_written(chat, tmp_path):
    with pytest.raises(VerificationError, match=r"KL divergence .* past the 1e-06 allowed; OUT was not written"):
        convert(chat, tmp_path / "out", quantize="affine2", max_kl=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]  # a larger max_kl may still accept it
    kl = convert(chat, tmp_path / "out", quantize="affine2", max_kl=100).divergence.kl_mean
    assert kl > 1e-6
    convert(chat, tmp_path / "exact", max_kl=0)
    convert(chat, tmp_path / "limit", quantize="affine2", max_kl=kl)
    with pytest.raises(VerificationError):
        convert(chat, tmp_path / "below", quantize="affine2", max_kl=kl * 0.999)


@pytest.mark.parametrize("options", [{"max_kl": 0.1, "divergence": False}, {"max_kl": -1}])
def test_a_wrong_max_kl(chat, options, tmp_path):
    with pytest.raises(UsageError, match="max_kl is"):
        convert(chat, tmp_path / "out", **options)


def test_a_model_that_computes_nothing_finite_is_not_published(tmp_path):
    weights = random_weights(TINY)
    weights["model.norm.weight"][:] = np.nan
    source = write_checkpoint(tmp_path / "source", weights=weights)
    with pytest.raises(VerificationError, match="logits that are not finite; OUT was not written"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_divergence_nothing_is_computed(chat, tmp_path, monkeypatch):
    monkeypatch.setattr(Streamed, "hidden", None)
    certificate = convert(chat, tmp_path / "out", divergence=False)
    assert certificate.divergence is None
    assert difference(certificate.divergence).text == "differs not measured"


# --- file and table


def test_it_comes_back_from_its_file(certified):
    certificate, out = certified
    assert Certificate.read(out) == certificate
    stored = json.loads((out / "certificate.json").read_text())
    assert stored["divergence"]["perplexity_ratio"] == certificate.divergence.perplexity_ratio
    assert stored["versions"].keys() == {"mlx-qwen3", "mlx"}


# --- what anyone may have written


def forged(folder: Path, change: Any) -> None:
    """Change the certificate, and its digest with it, as anyone can."""
    path = folder / "certificate.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    change(content)
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    content["sha256"] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    path.write_text(json.dumps(content))


def put(*place: Any, value: Any) -> Any:
    def change(content: Any) -> None:
        for key in place[:-1]:
            content = content[key]
        content[place[-1]] = value

    return change


RECORD = {"bytes": 1, "sha256": "00"}
FORGED = {
    "unknown field": (put("kind", value=1), "kind is a field that this version does not know"),
    "unknown field inside": (put("tensors", 3, "kind", value=1), r"tensors\[3\]\.kind is a field that this version"),
    "unknown figure": (put("divergence", "kl_min", value=1), r"divergence\.kl_min is a field"),
    "missing field": (lambda content: content.pop("files"), "files is missing"),
    "missing record": (lambda content: content["files"]["config.json"].pop("bytes"), r"json\.bytes is missing"),
    "text": (put("bytes", value="many"), "bytes is 'many'; expected a whole number"),
    "list": (put("tensors", value={}), r"tensors is \{\}; expected a list"),
    "object": (put("files", value=["config.json"]), r"files is \['config.json'\]; expected an object"),
    "negative": (put("tensors", 0, "start", value=-1), r"tensors\[0\]\.start is -1"),
    "no tokens": (put("divergence", "sequences", value=[]), "without the tokens that it was measured on"),
    "empty text": (put("divergence", "sequences", value=[[1], []]), "without the tokens that it was measured on"),
    "other tokens": (put("divergence", "top1", value=[1]), "without the tokens that it was measured on"),
    "an id past the end": (put("divergence", "sequences", 0, 0, value=307), "has the token 307, but vocab_size is 307"),
    "half a character": (put("out", value="\ud800"), None),
    "parent": (
        put("files", "../config.json", value=RECORD),
        r"names the file '\.\./config\.json', which does not belong",
    ),
    "absolute": (put("files", "/etc/passwd", value=RECORD), "names the file '/etc/passwd'"),
    "deep": (put("files", "additional_chat_templates/../../x.jinja", value=RECORD), "names the file 'additional"),
    "folder": (put("files", "..", value=RECORD), r"names the file '\.\.'"),
    "null": (put("files", "model\0.safetensors", value=RECORD), "names the file"),
    "other": (put("files", "passwords.txt", value=RECORD), "names the file 'passwords.txt'"),
    "long": (put("files", "model" + "x" * 5000 + ".safetensors", value=RECORD), r"xxx.* characters\) is missing"),
    "source": (put("source_files", "../../secret.safetensors", value=RECORD), r"names the file '\.\./\.\./secret"),
    "tensor": (put("tensors", 0, "file", value="/etc/passwd"), "is in the file '/etc/passwd', which it does not list"),
    "format": (put("format", value=[3]), r"has format \[3\]; this version reads 1 and 2"),
}


@pytest.mark.parametrize(("change", "message"), FORGED.values(), ids=FORGED.keys())
def test_a_forged_certificate_is_refused_in_one_line(certified, change, message, tmp_path):
    out = Path(shutil.copytree(certified[1], tmp_path / "out"))
    forged(out, change)
    if message is None:
        verify(out)
        return
    with pytest.raises(VerificationError, match=message) as error:
        verify(out)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_a_certificate_of_version_0_1_is_read(certified, tmp_path):
    out = Path(shutil.copytree(certified[1], tmp_path / "out"))
    forged(out, lambda c: c.update(format=1, behaviour=c.pop("divergence")))
    assert Certificate.read(out) == certified[0]


def test_a_pipe_in_place_of_the_certificate(certified, tmp_path):
    out = Path(shutil.copytree(certified[1], tmp_path / "out"))
    (out / "certificate.json").unlink()
    os.mkfifo(out / "certificate.json")
    with pytest.raises(VerificationError, match=r"certificate\.json is damaged \(.* is a named pipe"):
        verify(out)
