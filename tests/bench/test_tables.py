"""A report as Markdown, and as tables that fit a terminal."""

import re

import pytest
from screens import on_screen

from mlx_qwen3.bench import page


def test_the_tables_are_markdown(everything):
    text = everything.out
    assert text.index("### Limits") < text.index("### Prompt of 5 tokens") < text.index("### Prompt of 70 tokens")
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    table = text.split("### Prompt of 5 tokens")[1].split("###")[0]
    assert [line.split("|")[1].strip() for line in table.split("---")[-1].splitlines()[1:] if line] == [
        "mlx-qwen3",
        "transformers",
        "reference",
        "mlx-lm",
    ]
    assert re.search(r"\| mlx-lm \| float32 \| [\d.,]+ x[\d.]+ \|", table)
    assert "- mlx-lm, 70 prompt tokens: the first 12 greedy tokens are equal; relative norm of the difference" in text
    assert "reference has no cache, every token is a pass over all before it: it makes only 8 of 12 tokens at 5" in text
    assert "it makes only 1 of 12 tokens at 70" in text


@pytest.mark.parametrize("columns", [80, 200])
def test_the_tables_fit_a_terminal(columns, bench_report, monkeypatch):
    lines = on_screen(page(bench_report, brief=True).shown(), monkeypatch, columns)
    assert lines[0] == f"emphasis: {bench_report.options.source}"
    assert f"emphasis: Prompt of {bench_report.options.prompt_tokens[0]} tokens" in lines
    assert not any("[" in line for line in lines if "mlx-qwen3  " in line)  # the spread is in the Markdown
