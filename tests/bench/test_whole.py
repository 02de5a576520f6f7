"""Whole processes: who has a command line, and what its output says."""

import pytest

from mlx_qwen3.bench import whole
from mlx_qwen3.bench.options import KINDS, OURS, Contestant
from mlx_qwen3.errors import BenchError


def contestant(name, dtype=None, blas=""):
    return Contestant(name, KINDS[name.split(":")[0]], dtype, blas)


def test_only_what_a_command_line_can_do_is_run(tmp_path):
    ours, theirs = contestant(OURS, "bf16"), contestant("mlx-lm")
    assert not whole.can_run(ours, tmp_path)  # no tokenizer
    (tmp_path / "tokenizer.json").touch()
    assert whole.can_run(ours, tmp_path)
    assert whole.can_run(theirs, tmp_path)
    for other in (contestant("mlx-lm", "bf16"), contestant("mlx-lm", None, "libblas.so"), contestant("transformers")):
        assert not whole.can_run(other, tmp_path)


def test_the_tokens_are_counted_and_a_failure_has_its_last_words(tmp_path, monkeypatch):
    program = "import sys; print(sys.argv[1:], '| 7 generated')"
    monkeypatch.setitem(whole.COMMANDS, OURS, (["-c", program], r"\| (\d+) generated"))
    seconds, tokens = whole.run(contestant(OURS, "fp16"), tmp_path)
    assert (seconds > 0, tokens) == (True, 7)
    monkeypatch.setitem(whole.COMMANDS, OURS, (["-c", "import sys; sys.exit('no such luck')"], "x"))
    with pytest.raises(BenchError, match="mlx-qwen3's command line ended with code 1: no such luck"):
        whole.run(contestant(OURS), tmp_path)
