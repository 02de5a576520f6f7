"""Prefixes in files: they outlive the process, and a file that is not in order is never used."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import warnings

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import random_weights, write_checkpoint
from prefixes import LIMIT, prompt_of, reply

from mlx_qwen3.engine import prefix_folder
from mlx_qwen3.engine.prefix import PrefixStore, model_key
from mlx_qwen3.engine.prefix_folder import SUFFIX, PrefixFolder
from mlx_qwen3.errors import OutputError, Qwen3Warning, UsageError
from mlx_qwen3.model.load import load_model
from mlx_qwen3.model.qwen3 import Qwen3
from mlx_qwen3.report import PARTIAL


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny, "fp32")


PROMPT = prompt_of(60)


def files(folder):
    return sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIX))


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """(a folder with one prefix, the reply to its prompt)"""
    place = tmp_path_factory.mktemp("prefixes")
    store = PrefixStore(LIMIT, PrefixFolder(place, model_key(model)))
    tokens = reply(model, store, PROMPT)[0]
    store.close()
    return place, tokens


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written[0], tmp_path / "copy")


@pytest.fixture
def expected(written):
    return written[1]


def open_store(model, folder, bytes_kept=LIMIT, **options):
    return PrefixStore(bytes_kept, PrefixFolder(folder, model_key(model), **options))


def test_a_prefix_outlives_its_store(model, folder, expected):
    store = open_store(model, folder)
    assert reply(model, store, PROMPT) == (expected, 1)
    longer = [*PROMPT, *expected, *prompt_of(5, 1)]
    assert reply(model, store, longer) == (reply(model, None, longer)[0], 6)
    store.close()
    assert len(files(folder)) == 1  # the longer one has taken the place of the first
    assert reply(model, open_store(model, folder), longer)[1] == 1


def test_what_does_not_fit_the_memory_is_found_on_the_disk(model, tmp_path):
    prompts = [prompt_of(60, seed) for seed in range(3)]
    store = open_store(model, tmp_path / "new" / "folder", 0)
    for prompt in prompts:
        reply(model, store, prompt)
    assert store.nbytes == 0
    assert [reply(model, store, prompt)[1] for prompt in prompts] == [1, 1, 1]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_other_dtypes_come_back_as_they_were(tiny, tmp_path, dtype):
    model = load_model(tiny, dtype)
    store = open_store(model, tmp_path)
    expected = reply(model, store, PROMPT)[0]
    ids, kept = store.last.ids, store.last.cache.stored()
    store.close()
    folder = PrefixFolder(tmp_path, model_key(model))
    _, cache = folder.read(folder.best(ids))
    for name, array in cache.stored().items():
        assert array.dtype == kept[name].dtype
        assert mx.array_equal(array, kept[name])
    assert reply(model, open_store(model, tmp_path), PROMPT) == (expected, 1)


# --- files that are not in order


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def other_format(path):
    path.write_bytes(path.read_bytes().replace(b"mlx-qwen3 prefix 1", b"mlx-qwen3 prefix 0"))


DAMAGE = {
    "a byte of the values": lambda path: flip(path, -5000),
    "a byte of the ids": lambda path: flip(path, 8 + path.read_bytes()[0] + 256 * path.read_bytes()[1] + 4 * 40),
    "a byte of the digest": lambda path: flip(path, -1),
    "the end": lambda path: cut(path, -1),
    "all but the header": lambda path: cut(path, 300),
    "everything": lambda path: cut(path, 0),
    "another file": lambda path: path.write_text("a recipe for soup"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "another format": other_format,
    "a checkpoint": lambda path: mx.save_safetensors(str(path), {"ids": mx.zeros(3)}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_not_in_order_is_not_used(model, folder, expected, damage):
    [path] = files(folder)
    DAMAGE[damage](path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tokens, computed = reply(model, open_store(model, folder), PROMPT)
    assert tokens == expected
    assert computed == 60
    [note] = caught
    assert f"the prefix in {path} is not used: " in str(note.message)


@pytest.mark.parametrize("place", range(0, 300, 17))
def test_no_byte_of_the_header_may_change(model, folder, expected, place):
    flip(files(folder)[0], place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert reply(model, open_store(model, folder), PROMPT)[0] == expected


def test_a_file_that_another_process_removed_is_not_missed(model, folder, expected):
    store = open_store(model, folder)
    files(folder)[0].unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reply(model, store, PROMPT) == (expected, 60)


# --- which model


def test_a_fine_tune_with_equal_shapes_has_its_own_prefixes(model, tmp_path, folder):
    weights = random_weights(model.config.__dict__ | {"tie_word_embeddings": True})
    weights["model.layers.1.mlp.down_proj.weight"] = weights["model.layers.1.mlp.down_proj.weight"] * np.float32(1.01)
    fine_tune = load_model(write_checkpoint(tmp_path / "tuned", weights=weights), "fp32")
    assert reply(fine_tune, open_store(fine_tune, folder), PROMPT) == (reply(fine_tune, None, PROMPT)[0], 60)


def test_the_fingerprint_reads_samples_of_the_weights(tiny, tmp_path):
    """Header, size and time may be equal: a training script that writes twice within the clock's resolution."""
    keys = []
    for name, change in (("one", 0), ("two", 1)):
        copy = shutil.copytree(tiny, tmp_path / name)
        path = copy / "model.safetensors"
        if change:
            flip(path, -3)
        os.utime(path, ns=(1, 1))
        keys.append(load_model(copy, "fp32").fingerprint)
    assert keys[0] != keys[1]


def test_dtype_and_rope_are_part_of_the_fingerprint(tiny, tmp_path):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    kept = load_model(copy, "fp32").fingerprint
    assert load_model(copy, "fp32").fingerprint == kept
    assert load_model(copy, "bf16").fingerprint != kept
    config = copy / "config.json"
    config.write_text(config.read_text().replace("1000000.0", "500000.0"))
    assert load_model(copy, "fp32").fingerprint != kept


def test_a_model_without_a_fingerprint_keeps_none_in_files(model):
    with pytest.raises(UsageError, match="not loaded from a checkpoint"):
        model_key(Qwen3(model.config))


# --- the disk


def test_the_files_take_no_more_than_the_limit(model, folder):
    size = files(folder)[0].stat().st_size
    os.utime(files(folder)[0], ns=(1, 1))
    store = open_store(model, folder, 0, limit=int(2.5 * size))
    for seed in (1, 2):
        reply(model, store, prompt_of(60, seed))
    assert sum(path.stat().st_size for path in files(folder)) <= 2.5 * size
    assert [reply(model, store, prompt_of(60, seed))[1] for seed in (1, 2, 0)] == [1, 1, 60]


def test_a_full_disk_is_reported_once(model, tmp_path, monkeypatch):
    store = open_store(model, tmp_path)

    def full(path, content):
        for _ in content:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(prefix_folder, "replace_file", full)
    for seed in range(3):
        reply(model, store, prompt_of(60, seed))
    with pytest.warns(Qwen3Warning, match="No space left on device.*kept in memory only") as caught:
        store.shrink(0)
    assert len(caught) == 1
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file cannot be used as a folder of prefixes"):
        open_store(model, tmp_path / "file")


def test_what_a_killed_process_left_is_removed(model, folder, expected):
    program = (
        "import os, signal, sys; from pathlib import Path; from mlx_qwen3.report import replace_file\n"
        "def pieces():\n    yield b'half'\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"replace_file(Path(sys.argv[1]) / 'x{SUFFIX}', pieces())"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)])
    assert done.returncode == -signal.SIGKILL
    assert [path.suffix for path in folder.glob(".*")] == [PARTIAL]
    other = PrefixFolder(folder, model_key(model))
    assert not list(folder.glob(".*"))
    (folder / f".other{PARTIAL}").write_text("")
    assert reply(model, open_store(model, folder), PROMPT) == (expected, 1)
    assert list(folder.glob(".*"))  # a process that is alive may be writing it
    other.close()


def test_an_empty_name_is_not_the_current_folder(model):
    with pytest.raises(UsageError, match="cache_dir is empty"):
        PrefixFolder("", model_key(model))
