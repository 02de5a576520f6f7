"""The bar says what a stage counts, whatever the size of its total."""

import pytest

from mlx_qwen3.cli.progress import Bar
from mlx_qwen3.progress import Stage


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (Stage("writing", 500, "bytes"), r"writing 100%  0.000 of 0.000 GB, "),
        (Stage("comparing", 20_000, "steps"), r"comparing 100%  20000 of 20000 steps"),
        (Stage("loading", 3, "layers"), r"loading 100%  3 of 3 layers"),
    ],
    ids=["bytes", "steps", "layers"],
)
def test_a_line_names_the_unit(stage, expected, capsys):
    with Bar(True) as bar:
        bar(stage, stage.total)
    assert capsys.readouterr().err.startswith(expected)
