"""What every contestant gets."""

from checkpoints import VOCABULARY

from mlx_qwen3.bench.prompts import prompt
from mlx_qwen3.files.checkpoint import Checkpoint


def test_prompts_are_the_same_for_everyone_and_differ_between_rows(chat):
    config = Checkpoint(chat).config
    assert prompt(config, 50) == prompt(config, 50)
    assert prompt(config, 50, row=1) != prompt(config, 50)
    assert set(prompt(config, 5000)) <= set(range(VOCABULARY))
