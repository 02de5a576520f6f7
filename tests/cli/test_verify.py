"""`verify`: what it prints for a correct folder and for a damaged one."""

import json
import re

from adapting import write_peft
from checkpoints import TINY, VOCABULARY
from commands import here


def test_an_adapter_is_merged_by_convert_and_again_by_verify(chat, tmp_path):
    adapter, out = f"{write_peft(tmp_path / 'adapter', model={**TINY, 'vocab_size': VOCABULARY})}=0.5", tmp_path / "out"
    result = here("convert", chat, out, "--adapter", adapter)
    assert (result.returncode, result.stderr) == (0, b"")
    assert f"merged  {adapter}, a PEFT LoRA adapter of rank 4".encode() in result.stdout
    result = here("verify", out, "--source", chat, "--adapter", adapter)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"are as certified" in result.stdout
    result = here("verify", out, "--source", chat)
    assert result.returncode == 1
    assert f"--adapter {adapter}".encode() in result.stderr


def test_a_damaged_folder_is_exit_code_1_and_one_line(chat, tmp_path):
    out = tmp_path / "out"
    here("convert", chat, out, "--no-divergence")
    content = bytearray((out / "model.safetensors").read_bytes())
    content[-5] ^= 4  # of the last tensor
    (out / "model.safetensors").write_bytes(content)
    result = here("verify", out)
    assert (result.returncode, result.stdout) == (1, b"")
    assert re.fullmatch(rb"error: norm\.weight damaged: .*model\.safetensors has sha256 .*\n", result.stderr)


def test_an_adapter_on_its_base(chat, tmp_path):
    adapter = write_peft(tmp_path / "adapter", model={**TINY, "vocab_size": VOCABULARY})
    result = here("verify", chat, "--adapter", adapter)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"its 16 tensors are finite and fit 8 matrices" in result.stdout
    assert json.loads(here("verify", chat, "--adapter", adapter, "--json").stdout)["base"] == str(chat)
