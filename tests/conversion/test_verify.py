"""`verify`: every change in a converted folder is found and named."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import VOCABULARY, write_checkpoint, write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen3.conversion.certificate import Certificate
from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.conversion.verify import report, verify
from mlx_qwen3.errors import VerificationError
from mlx_qwen3.model import qwen3 as model_module

PACKABLE = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256, "vocab_size": VOCABULARY}


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return write_tokenizer(write_checkpoint(tmp_path_factory.mktemp("chat"), **PACKABLE))


@pytest.fixture(scope="module", params=["copied", "quantized"])
def converted(request, chat, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "out"
    convert(chat, out, quantize="affine4" if request.param == "quantized" else None, shard_bytes=200_000)
    return out


@pytest.fixture(scope="module")
def plain(chat, tmp_path_factory):
    """A result in one file, whose divergence was not measured."""
    out = tmp_path_factory.mktemp("plain") / "out"
    convert(chat, out, divergence=False)
    return out


@pytest.fixture
def copy(converted, tmp_path):
    return Path(shutil.copytree(converted, tmp_path / "copy"))


def flip(path: Path, position: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ (1 << bit)]))


def forge(folder: Path, **changes: float) -> Path:
    """The folder with other figures of the divergence in its certificate, whose own digest is right again."""
    certificate = Certificate.read(folder)
    replace(certificate, divergence=replace(certificate.divergence, **changes)).write(folder)
    return folder


def test_a_figure_below_zero_is_another_figure(copy, chat):
    with pytest.raises(VerificationError, match=r"the perplexity is .*, the certificate says -1 "):
        verify(forge(copy, perplexity=-1.0))
    with pytest.raises(VerificationError, match="the certificate says -3 "):
        verify(forge(copy, perplexity=None, kl_mean=-3.0), chat)


def test_a_long_digest_is_not_repeated_whole(copy):
    certificate = Certificate.read(copy)
    files = {**certificate.files, "config.json": replace(certificate.files["config.json"], sha256="y" * 5000)}
    replace(certificate, files=files).write(copy)
    with pytest.raises(VerificationError, match=r"yyy \(5000 characters\)"):
        verify(copy)


def test_a_folder_as_it_was_made(converted, chat):
    assert verify(converted).divergence is None
    found = verify(converted, chat)
    assert found.divergence == Certificate.read(converted).divergence
    first, *_, table = report(found)
    assert "are as certified" in first.text
    assert "KL divergence" in table.text()


def test_it_may_have_been_moved(copy, chat):
    verify(copy, chat)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_one_flipped_bit_in_any_tensor_is_found_and_named(converted, data):
    certificate = Certificate.read(converted)  # the same in every example, which undoes what it did
    record = data.draw(st.sampled_from(certificate.tensors))
    offset, bit = data.draw(st.integers(0, record.bytes - 1)), data.draw(st.integers(0, 7))
    path = converted / record.file
    flip(path, record.start + offset, bit)
    try:
        with pytest.raises(VerificationError, match=f"^{record.name} damaged: .*{record.file} has sha256"):
            verify(converted)
    finally:
        flip(path, record.start + offset, bit)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_so_is_one_in_a_header(converted, data):
    path = sorted(converted.glob("*.safetensors"))[0]
    position = data.draw(st.integers(0, 7 + int.from_bytes(path.read_bytes()[:8], "little")))
    bit = data.draw(st.integers(0, 7))
    flip(path, position, bit)
    try:
        with pytest.raises(VerificationError, match=f"^the header is damaged: .*{path.name} has sha256"):
            verify(converted)
    finally:
        flip(path, position, bit)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "generation_config.json", "model.safetensors.index.json"]
)
def test_so_is_one_in_any_other_file(converted, name):
    path = converted / name
    for position in range(0, path.stat().st_size, max(1, path.stat().st_size // 7)):
        flip(path, position)
        try:
            with pytest.raises(VerificationError, match=f"{name} has sha256"):
                verify(converted)
        finally:
            flip(path, position)


def means_the_same(content: bytes, flipped: bytes) -> bool:
    """Another last digit of a number can stand for the same float64."""
    try:
        return json.loads(flipped) == json.loads(content)
    except ValueError:
        return False


def test_so_is_one_in_the_certificate(copy):
    path = copy / "certificate.json"
    for position in range(0, path.stat().st_size, path.stat().st_size // 40):
        content = path.read_bytes()
        flip(path, position)
        if means_the_same(content, path.read_bytes()):
            path.write_bytes(content)
            continue
        with pytest.raises(VerificationError, match=r"certificate\.json"):
            verify(copy)
        path.write_bytes(content)


def test_several_damaged_tensors(copy):
    certificate = Certificate.read(copy)
    by_file = {name: [r for r in certificate.tensors if r.file == name] for name in certificate.files}
    records = max(by_file.values(), key=len)
    for record in records[:3]:
        flip(copy / record.file, record.start)
    with pytest.raises(VerificationError, match=f"^{records[0].name} and 2 more damaged"):
        verify(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "model-00001-of-00004.safetensors").unlink(), "model-00001-of-00004.safetensors is missing"),
        (lambda f: os.truncate(f / "config.json", 20), "config.json has 20 bytes, the certificate says"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda f: (f / "certificate.json").unlink(), "has no certificate.json"),
        (lambda f: (f / "model-extra.safetensors").write_bytes(b""), "model-extra.safetensors is not in certificate"),
    ],
)
def test_files_that_are_missing_cut_or_extra(chat, change, message, tmp_path):
    convert(chat, tmp_path / "out", shard_bytes=500_000, divergence=False)
    change(tmp_path / "out")
    with pytest.raises(VerificationError, match=message.replace(".", r"\.")):
        verify(tmp_path / "out")


def test_a_file_that_is_cut_names_what_it_lost(copy):
    record = Certificate.read(copy).tensors[-1]
    os.truncate(copy / record.file, record.start + record.bytes - 1)
    with pytest.raises(VerificationError, match=f"{record.name}.* damaged: .*{record.file} has .* bytes"):
        verify(copy)


@pytest.mark.parametrize(
    "name",
    [
        "chat_template.jinja",
        "added_tokens.json",
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
        "additional_chat_templates/tool_use.jinja",
        "model.safetensors.index.json",
        "extra.safetensors",
    ],
)
def test_an_extra_file_that_is_read_is_named(plain, name, tmp_path):
    """Each of them changes what `generate` does."""
    out = Path(shutil.copytree(plain, tmp_path / "out"))
    (out / "README.md").write_text("no part of a checkpoint")
    (out / "pictures").mkdir()
    verify(out)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("{}")
    with pytest.raises(
        VerificationError, match=f"{name} is not in certificate.json, but it changes".replace(".", r"\.")
    ):
        verify(out)


def test_a_generation_config_that_came_later_is_named(tiny, tmp_path):
    convert(tiny, tmp_path / "out", divergence=False)
    (tmp_path / "out" / "generation_config.json").write_text('{"temperature": 2}')
    with pytest.raises(VerificationError, match=r"generation_config\.json is not in certificate\.json"):
        verify(tmp_path / "out")


def test_the_folder_of_templates_is_certified(tmp_path):
    source = write_tokenizer(write_checkpoint(tmp_path / "source", **PACKABLE))
    (source / "additional_chat_templates").mkdir()
    path = Path("additional_chat_templates", "tool_use.jinja")
    (source / path).write_text("{{ tools }}")
    convert(source, tmp_path / "out", divergence=False)
    assert (tmp_path / "out" / path).read_text() == "{{ tools }}"
    verify(tmp_path / "out", source)
    (tmp_path / "out" / path).write_text("{{ fools }}")
    with pytest.raises(VerificationError, match=r"tool_use\.jinja has sha256"):
        verify(tmp_path / "out")


def test_a_link_out_of_the_folder_is_refused_but_the_hub_cache_is_not(plain, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    shutil.copytree(plain, snapshot)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    (snapshot / "model.safetensors").rename(blobs / "abc")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    verify(snapshot)
    shutil.move(snapshot, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").unlink()
    (tmp_path / "copy" / "model.safetensors").symlink_to(blobs / "abc")
    with pytest.raises(VerificationError, match=r"model\.safetensors is a link to .*abc, outside the folder"):
        verify(tmp_path / "copy")


def test_another_source(converted, chat, tmp_path):
    other = Path(shutil.copytree(chat, tmp_path / "other"))
    flip(other / "model.safetensors", 50_000)
    with pytest.raises(
        VerificationError, match=r"model\.safetensors has sha256 .*it is not the source that was converted"
    ):
        verify(converted, other)


def test_a_machine_that_computes_something_else(converted, chat, monkeypatch):
    """The bytes are right and the forward pass is not: without and with the source."""
    real = model_module.Attention.merge

    def half(self, x, *rest):
        return real(self, x, *rest) * 0.5

    monkeypatch.setattr(model_module.Attention, "merge", half)
    with pytest.raises(VerificationError, match=r"the perplexity is .*, the certificate says"):
        verify(converted)


def test_the_first_measurement_may_be_made_later(chat, tmp_path):
    convert(chat, tmp_path / "out", quantize="affine4", divergence=False)
    assert verify(tmp_path / "out").divergence is None
    found = verify(tmp_path / "out", chat).divergence
    assert found == convert(chat, tmp_path / "other", quantize="affine4").divergence


def test_a_folder_that_was_not_converted(tiny):
    with pytest.raises(VerificationError, match=r"has no certificate\.json; convert it with mlx-qwen3"):
        verify(tiny)
