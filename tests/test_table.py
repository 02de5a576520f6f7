"""Tables as text of any width, with styles, and as Markdown; numbers in one notation."""

import pytest

from mlx_qwen3.table import BAD, DIM, EMPHASIS, WARNING, Line, Table, columns_of, in_one_notation

TABLE = Table("Sizes", ("name", "count", "remark"), [["a", "5", "small"], ["long", "1,000", ""]], "lrl", frozenset({1}))
WIDE = Table(
    "Wide",
    ("tensor", "mean", "std", "verdict"),
    [["layers.0.self_attn.q_proj", "0.1", "12.25", "unusual: std 12.25 above 2"], ["norm", "-1", "3.5", "normal"]],
    "l..l",
    drop=("mean",),
    unusual=frozenset({0}),
)


def test_a_table_as_text():
    assert TABLE.text() == "Sizes\n  name  count  remark\n  a         5  small\n! long  1,000"


def test_a_table_without_title_and_marks_has_no_margin():
    assert Table("", ("name", "n"), [["a", "5"]], "ll").text() == "name  n\na     5"


def test_every_kind_of_row_has_its_style():
    assert [line.style for line in TABLE.lines()] == [EMPHASIS, DIM, "", BAD]
    assert [line.style for line in WIDE.lines()] == [EMPHASIS, DIM, WARNING, ""]


def test_long_notes_are_wrapped():
    table = Table("T", ("x",), [], "l", notes=("word " * 60,))
    lines = table.text().splitlines()
    assert [line[:6] for line in lines[2:]] == ["  word", "    wo", "    wo"]
    assert max(map(len, lines)) <= 118
    assert max(map(len, table.text(40).splitlines())) <= 40


def test_decimal_points_are_below_one_another():
    cells = ["5", "12.25", "-0.5", "-", "3.25 [1.5, 4]"]
    lines = Table("", ("x",), [[cell] for cell in cells], ".").text().splitlines()[1:]
    points = {line.index(".") for line in lines if "." in line}
    assert len(points) == 1
    assert lines[0].index("5") == points.pop() - 1  # where a point would follow


def test_a_narrow_table_drops_columns_and_says_so():
    assert "mean" in WIDE.lines(80)[1].text
    lines = WIDE.lines(66)
    assert lines[1].text.split() == ["tensor", "std", "verdict"]
    assert lines[-1] == Line("  not shown at this width: mean", DIM)


def test_a_narrower_table_folds_its_texts():
    lines = [line.text for line in WIDE.lines(44)]
    assert lines[2:5] == [
        "  layers.0.         12.25  unusual: std",
        "  self_attn.q_proj         12.25 above 2",
        "  norm               3.5   normal",
    ]


def test_without_its_last_column_a_table_has_room_for_the_others():
    lines = [line.text for line in WIDE.lines(34)]
    assert lines[2:4] == ["  layers.0.self_attn.q_proj  12.25", "  norm                        3.5"]


@pytest.mark.parametrize("width", [12, 20, 30, 44, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width):
    for table in (WIDE, TABLE):
        assert max(len(line.text) for line in table.lines(width)) <= width


def test_a_table_that_fits_is_not_changed():
    assert WIDE.text(200) == WIDE.text(None)


def test_a_cell_cannot_change_the_terminal():
    table = Table("", ("a", "b"), [["\x1b[31mred", "x"]], "ll")
    assert table.text(80).splitlines() == ["a            b", "\\x1b[31mred  x"]


def test_a_table_as_markdown():
    rows = "| name | count | remark |\n| --- | ---: | --- |\n| a | 5 | small |\n| long | 1,000 |  |"
    assert TABLE.markdown() == f"### Sizes\n\n{rows}"
    assert Table("", ("x",), [], "r", notes=("so", "too")).markdown() == "| x |\n| ---: |\n\nso\n\ntoo"


@pytest.mark.parametrize(("rows", "align"), [([["a"]], "lr"), ([["a", "b"]], "l"), ([["a", "b", "c"]], "ll")])
def test_a_table_has_a_cell_and_an_alignment_for_every_column(rows, align):
    with pytest.raises(ValueError, match="cells for 2 columns of 'T'"):
        Table("T", ("x", "y"), rows, align)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.00177, 36.7, -5.91], ["0.00", "36.70", "-5.91"]),
        ([0.0213, 0.0456, 1.0], ["0.0213", "0.0456", "1.0000"]),
        ([12345.6, 200.0, 0.0], ["12346", "200", "0"]),
        ([None, float("inf"), float("nan"), -0.0, 3.0], ["-", "inf", "nan", "0", "3.00"]),
        ([1e30, 0.5], ["1.0e+30", "0"]),
        ([1e-9], ["0.000000"]),
        ([], []),
    ],
)
def test_a_column_has_one_notation(values, shown):
    assert in_one_notation(values) == shown


def test_wide_characters_fill_two_columns_and_accents_none():
    assert [columns_of(text) for text in ("abc", "你好", "a你", "e\u0301", "😀", "")] == [3, 4, 3, 1, 2, 0]
    lines = Table("", ("name", "n"), [["你好", "5"], ["cafe\u0301", "12"]], "lr").text().splitlines()
    assert lines == ["name   n", "你好   5", "cafe\u0301  12"]


@pytest.mark.parametrize("width", [20, 33, 40])
def test_wide_text_is_folded_between_its_characters(width):
    text = "模型的输出 mixed with words, 今天天气怎么样我们去公园散步吧"
    table = Table(text, ("text", "n"), [[text, "5"]], "lr", notes=(text,))
    lines = table.text(width).splitlines()
    assert max(map(columns_of, lines)) <= width
    assert "".join("".join(lines).split()).count("今天天气怎么样我们去公园散步吧") >= 2
    assert max(map(columns_of, lines)) >= width - 2  # room is used
