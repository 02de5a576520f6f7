"""`convert`: the certificate, the plan, the gate, and options that make no sense."""

import json
import re

import pytest
from commands import here
from safetensors.numpy import load_file


def test_convert_and_back(chat, tmp_path):
    native, back = tmp_path / "native", tmp_path / "back"
    result = here("convert", chat, native)
    assert result.returncode == 0
    assert result.stderr == b""
    assert b"float32, layout native" in result.stdout
    certificate = json.loads(here("convert", native, back, "--layout", "hf", "--json").stdout)
    assert (certificate["layout"], certificate["dtype"], certificate["tensors"]) == ("hf", "float32", 24)
    before, after = (load_file(folder / "model.safetensors") for folder in (chat, back))
    assert {name: array.tobytes() for name, array in after.items()} == {n: a.tobytes() for n, a in before.items()}


def test_convert_prints_the_certificate_and_verify_reads_it(chat, tmp_path):
    out = tmp_path / "out"
    result = here("convert", chat, out, "--dtype", "bf16", "--progress")
    lines = result.stderr.decode().splitlines()
    assert any(re.match(r"writing 100%  0\.\d of 0\.\d MB, \d+ MB/s", line) for line in lines)
    result = here("verify", out, "--source", chat)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"are as certified" in result.stdout
    found = json.loads(here("verify", out, "--json").stdout)
    assert (found["files"], found["tensors"], found["source"]) == (5, 18, None)


def test_no_progress_where_it_was_not_asked_for(chat, tmp_path):
    assert b"%" not in here("convert", chat, tmp_path / "out").stderr


def test_a_gate_is_exit_code_1_and_publishes_nothing(chat, tmp_path):
    result = here("convert", chat, tmp_path / "out", "--dtype", "bf16", "--max-kl", "0")
    assert result.returncode == 1
    assert re.fullmatch(rb"error: the mean KL divergence .* past the 0 allowed; OUT was not written.*\n", result.stderr)
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]


def test_a_dry_run_prints_the_plan_and_writes_nothing(chat, tmp_path):
    result = here("convert", chat, tmp_path / "out", "--dtype", "bf16", "--shard-size", "50KB", "--dry-run")
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode().splitlines() == [
        "made    bfloat16, layout native, 18 tensors",
        "size    0.14 MB, was 0.28 MB; 16.000 bits per weight",
        "files   4",
        "nothing was written",
    ]
    plan = json.loads(here("convert", chat, tmp_path / "out", "--dtype", "bf16", "--dry-run", "--json").stdout)
    assert list(tmp_path.iterdir()) == []
    made = json.loads(here("convert", chat, tmp_path / "out", "--dtype", "bf16", "--json").stdout)
    for key in ("bytes", "source_bytes", "bits_per_weight", "dtype", "layout"):
        assert plan[key] == made[key]
    assert len(plan["tensors"]) == made["tensors"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quantize", "int4"], "--quantize is 'int4'"),
        (["--shard-size", "5 potatoes"], "--shard-size is '5 potatoes'; expected a number with a unit"),
        (["--bits", "4"], "--bits is 4, but --quantize is not given"),
        (["--max-kl", "1", "--no-divergence"], "--max-kl is 1"),
        (["--text", "/nowhere"], "--text /nowhere cannot be read"),
    ],
)
def test_convert_options_that_make_no_sense_are_exit_code_2(chat, options, message, tmp_path):
    result = here("convert", chat, tmp_path / "out", *options)
    assert result.returncode == 2
    assert result.stderr.decode().startswith(f"error: {message}")
    assert result.stderr.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == []
