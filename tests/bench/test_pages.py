"""One page in two forms."""

from dataclasses import replace

from mlx_qwen3.bench.pages import Page, repeats, stopped
from mlx_qwen3.table import Line, Table

PAGE = Page("demo", ["5 layers."], [Table("Speed", ["", "x"], [["a", "1"]], "lr")], {"Notes": ["slow"], "None": []})


def test_markdown_has_one_heading_level_for_each_kind():
    assert PAGE.markdown() == (
        "## demo\n\n5 layers.\n\n### Speed\n\n|  | x |\n| --- | ---: |\n| a | 1 |\n\n### Notes\n\n- slow"
    )


def test_for_a_terminal():
    assert PAGE.shown() == [
        Line("demo", "emphasis"),
        Line("5 layers."),
        "",
        PAGE.tables[0],
        "",
        Line("Notes", "emphasis"),
        Line("  slow"),
    ]


def test_a_run_that_was_stopped_says_so_first():
    page = Page("demo", [], [], {}, stopped(False, 2, 5))
    assert page.markdown() == "## demo\n\n**stopped: 2 of 5 rounds are complete**"
    assert page.shown()[1] == Line("stopped: 2 of 5 rounds are complete", "warning")
    assert stopped(True, 5, 5) == ""


def test_the_command_that_made_it_comes_before_what_ran():
    page = replace(PAGE, command="mlx-qwen3 bench demo")
    assert page.markdown().startswith("## demo\n\n```\nmlx-qwen3 bench demo\n```\n\n5 layers.")
    assert page.shown()[:3] == [Line("demo", "emphasis"), Line("$ mlx-qwen3 bench demo"), Line("5 layers.")]


def test_one_repeat_is_not_several():
    assert [repeats(count) for count in (1, 5)] == ["1 repeat", "5 repeats"]
