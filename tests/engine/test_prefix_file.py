"""A prefix in a file: it comes back bit for bit, and a file of anything else is never used."""

import json

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from mlx_qwen3.engine.prefix_file import FORMAT, OtherModel, PrefixFile, UnusablePrefix, pieces
from mlx_qwen3.model.load import load_model

IDS = list(range(3, 40))


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny, "fp32")


@pytest.fixture(scope="module")
def cache(model):
    cache = model.make_cache()
    mx.eval(model(mx.array([IDS]), cache))
    return cache


@pytest.fixture
def path(cache, tmp_path):
    path = tmp_path / "prefix"
    path.write_bytes(b"".join(bytes(piece) for piece in pieces("a model", IDS, cache)))
    return path


def header(path):
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def write(path, head, rest):
    raw = json.dumps(head).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + rest)


def test_the_cache_comes_back(path, cache, model):
    file = PrefixFile(path, "a model")
    assert file.ids.tolist() == IDS
    again = file.read()
    assert again.end == cache.end
    for ours, theirs in zip(again.stored().values(), cache.stored().values(), strict=True):
        assert mx.array_equal(ours, theirs)
    token = mx.array([[7]])
    expected = model(mx.array([[*IDS, 7]]))[:, -1]
    assert np.abs(np.array(model(token, again)[:, -1]) - np.array(expected)).max() < 2e-5


def test_it_is_a_safetensors_file(path):
    tensors = load_file(path)
    assert tensors["ids"].tolist() == IDS
    assert tensors["sha256"].shape == (32,)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 1.0])
def test_a_changed_byte_of_keys_values_or_digest_is_seen(path, part):
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little") + 4 * len(IDS)
    content[start + int((len(content) - 1 - start) * part)] ^= 1
    path.write_bytes(content)
    file = PrefixFile(path, "a model")
    with pytest.raises(UnusablePrefix, match="damaged") as error:
        file.read()
    assert error.value.ours


def test_a_changed_id_is_seen(path):
    head, rest = header(path)
    write(path, head, bytes([rest[0] ^ 1]) + rest[1:])
    file = PrefixFile(path, "a model")
    with pytest.raises(UnusablePrefix, match="damaged"):
        file.read()


def test_another_model_is_recognised(path):
    with pytest.raises(OtherModel, match="of another model or other settings"):
        PrefixFile(path, "another model")


def test_another_format_may_be_replaced(path):
    head, rest = header(path)
    head["__metadata__"]["format"] = FORMAT[:-1] + "2"
    write(path, head, rest)
    with pytest.raises(UnusablePrefix, match="this version reads") as error:
        PrefixFile(path, "a model")
    assert error.value.ours


@pytest.mark.parametrize("content", [b"", b"a letter to a friend", b"\x08" + 7 * b"\0" + b"[1, 2] "], ids=str)
def test_a_file_of_somebody_else_is_not_ours(path, content):
    path.write_bytes(content)
    with pytest.raises(UnusablePrefix) as error:
        PrefixFile(path, "a model")
    assert not error.value.ours


def test_weights_are_not_ours(tiny):
    with pytest.raises(UnusablePrefix, match="not a file of prefixes") as error:
        PrefixFile(tiny / "model.safetensors", "a model")
    assert not error.value.ours


@pytest.mark.parametrize("keep", [0.2, 0.9])
def test_half_a_file_is_not_used(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UnusablePrefix):
        PrefixFile(path, "a model")
