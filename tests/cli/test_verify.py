"""`verify`: what it prints for a correct folder and for a damaged one."""

import re

from commands import here


def test_a_damaged_folder_is_exit_code_1_and_one_line(chat, tmp_path):
    out = tmp_path / "out"
    here("convert", chat, out, "--no-divergence")
    content = bytearray((out / "model.safetensors").read_bytes())
    content[-5] ^= 4  # of the last tensor
    (out / "model.safetensors").write_bytes(content)
    result = here("verify", out)
    assert (result.returncode, result.stdout) == (1, b"")
    assert re.fullmatch(rb"error: norm\.weight damaged: .*model\.safetensors has sha256 .*\n", result.stderr)
