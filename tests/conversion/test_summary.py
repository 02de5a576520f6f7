"""What people see of a conversion, at 80 columns."""

import re
from dataclasses import replace

import pytest
from adapting import write_peft
from checkpoints import write_checkpoint
from screens import on_screen

from mlx_qwen3.conversion.convert import convert, dry_plan
from mlx_qwen3.conversion.summary import (
    certified,
    certified_in_full,
    difference,
    divergence_table,
    planned,
    planned_in_full,
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return convert("demo", tmp_path_factory.mktemp("packed") / "out", quantize="affine4")


def masked(line):
    return re.sub(r"\d\.\d+", lambda match: re.sub(r"\d", "0", match[0]), line)


def test_five_lines(packed, monkeypatch):
    lines = on_screen(certified(replace(packed, out="OUT")), monkeypatch)
    assert [re.sub(r"[\d.]+(?=%| next| nats)", "N", line) for line in lines] == [
        "emphasis: made    affine4, bfloat16, layout hf, 129 tensors",
        "in      OUT",
        "size    2.86 MB, was 10.17 MB; 4.509 bits per weight",
        "differs in N% of N next tokens; KL divergence N nats on average",
        "next    mlx-qwen3 generate --model OUT --prompt 'What is 17 + 25?'",
    ]


def test_a_merged_adapter_has_a_line(monkeypatch, tmp_path):
    adapter = write_peft(tmp_path / "adapter")
    source = write_checkpoint(tmp_path / "source")
    asked = f"{adapter}=0.5"
    made = convert(source, tmp_path / "out", adapters=[asked], divergence=False)
    line = f"merged  {asked}, a PEFT LoRA adapter of rank 4 for Qwen/Qwen3-0.6B"
    assert line in certified(made)
    assert f"merged  {asked}" in planned(dry_plan(source, tmp_path / "out2", adapters=[asked]))


def test_all_of_it_at_80_columns(packed, monkeypatch):
    lines = on_screen(certified_in_full(replace(packed, out="OUT")), monkeypatch, mask=masked)
    assert lines[:6] == [
        "emphasis: Tensors",
        "dim:   tensor                       shape       made                         relative",
        "  model.embed_tokens.weight    [2560, 32]  quantized affine 4 bits,       0.0000",
        "                                           groups of 64",
        "  model.layers.{0-4}.          [256]       copied                         -",
        "  input_layernorm.weight",
    ]
    assert "dim:   not shown at this width: n; dtype; max error; worst row" in lines
    assert "emphasis: Files of the result" in lines
    assert not any("perplexity" in line for line in lines)  # of the built-in text, which nobody can judge


def test_a_wide_terminal_shows_every_column(packed, monkeypatch):
    lines = on_screen(certified_in_full(packed)[:1], monkeypatch, columns=200)
    assert lines[1].split() == "dim: tensor n shape dtype made max error relative worst row".split()
    assert len(lines) == 2 + 13
    row = next(line for line in lines if "q_proj" in line)
    assert re.search(r"layers\.\{0-4\}\.self_attn\.q_proj\.weight +5 .* layer \d, \d+: 0\.1\d\d$", row)


def test_an_exact_copy_differs_nowhere(tiny, tmp_path):
    made = convert(tiny, tmp_path / "out")
    assert difference(made.divergence) == ("differs nowhere: the logits of 64 tokens are equal", "good")
    assert difference(None) == ("differs not measured", "warning")


def test_a_text_of_the_user_has_a_perplexity(tmp_path):
    (tmp_path / "text").write_text("Every new corner makes the square one wider, so the sum is n * n. " * 4)
    made = convert("demo", tmp_path / "out", dtype="fp16", text=tmp_path / "text")
    assert "perplexity of the source" in divergence_table(made.divergence).text()


def test_a_plan(monkeypatch, tmp_path):
    plan = dry_plan("demo", tmp_path / "out", dtype="fp32")
    assert on_screen(planned(plan), monkeypatch) == [
        "emphasis: made    float32, layout native, 42 tensors",
        "size    20.33 MB, was 10.17 MB; 32.000 bits per weight",
        "files   1",
        "warning: nothing was written",
    ]
    lines = on_screen(planned_in_full(plan), monkeypatch)
    assert "  layers.{0-4}.self_attn.qkv_proj.weight        5  [768, 256]   fused, cast" in lines
