"""One choice: the pieces are the whole."""

import pytest

from mlx_qwen3.engine.logprobs import Logprobs
from mlx_qwen3.engine.reply import Chunk
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.files.hub import DEMO
from mlx_qwen3.server.choices import Choice, Trimmed, visible
from mlx_qwen3.text.tokenizer import Tokenizer


@pytest.mark.parametrize("pieces", [["\n\n", "a\n", "\n", "b\n\n"], ["\na\n\nb\n", "\n"], list("\n\na\n\nb\n\n")])
def test_line_breaks_at_the_ends_go_however_the_text_is_cut(pieces):
    trimmed = Trimmed()
    assert "".join(map(trimmed.feed, pieces)) == "a\n\nb"


def test_tokens_that_may_still_open_a_tag_are_listed_once_they_are_text():
    tokenizer = Tokenizer(Checkpoint(DEMO))
    choice = Choice(0, tokenizer)
    less, b = tokenizer.encode("<b")
    scores = Logprobs(-1.0)
    assert choice.feed(Chunk(less, part="", logprobs=scores)) == []
    [said] = choice.feed(Chunk(b, text="<b", part="answer", logprobs=scores))
    assert [entry.token for entry in said.logprobs.content] == ["<", "b"]
    held = Choice(0, tokenizer)
    held.feed(Chunk(less, part="", logprobs=scores))
    held.feed(Chunk(b, part="tag", logprobs=scores))
    [said] = held.feed(Chunk(b, text="b", part="answer", logprobs=scores))
    assert [entry.token for entry in said.logprobs.content] == ["b"]
    [cut] = Choice(0, tokenizer).feed(Chunk(less, text="<", finish_reason="length", part="", logprobs=scores))
    assert [entry.token for entry in cut.logprobs.content] == ["<"]


def test_a_character_that_the_end_has_cut_is_not_shown():
    assert visible(Chunk(1, text="a\ufffd", finish_reason="length")).text == "a"
    assert visible(Chunk(1, thinking="\ufffd", finish_reason="stop")).thinking == ""
    assert visible(Chunk(1, text="a\ufffd")).text == "a\ufffd"  # the model wrote it
