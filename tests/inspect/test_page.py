"""The HTML page: well-formed, self-contained, and nothing in it is taken for HTML."""

import html.parser
import re

from mlx_qwen3.inspect import Options, inspect
from mlx_qwen3.inspect.page import STYLE, _table, page
from mlx_qwen3.inspect.pictures import MARKS
from mlx_qwen3.table import Table


def test_cells_are_escaped_too():
    table = Table("<i>", ("<u>", "x"), [["<b>", "&"]], "ll", notes=("<p>",))
    assert _table(table).count("&lt;") == 5
    assert "&amp;" in _table(table)


def test_columns_are_aligned_by_their_type():
    table = Table("", ("name", "count", "size"), [["a", "1", "1.25"], ["b", "20", "10.5"], ["c", "3", "7"]], "lr.")
    text = _table(table)
    assert '<th class="text">name</th><th>count</th><th>size</th>' in text
    assert re.findall(r"<td[^>]*>(.*?)</td>", text)[2::3] == ["1.25", "10.5 ", "7   "]  # points below one another


def test_rows_that_need_a_look_are_marked():
    table = Table("", ("x",), [["a"], ["b"], ["c"]], "l", frozenset({1}), unusual=frozenset({2}))
    assert re.findall(r"<tr(.*?)>", _table(table)) == ["", "", ' class="marked"', ' class="unusual"']


class Links(html.parser.HTMLParser):
    """Collects whatever a page would load, its pictures, and the tags that are open."""

    def __init__(self):
        super().__init__()
        self.loads, self.open, self.pictures, self.ids = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href") and value[:1] != "#"]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "svg":
            self.pictures.append(dict(attrs)["aria-label"])
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag) if tag not in ("meta", "img") else None

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_self_contained_and_well_formed(four_layers):
    parser = Links()
    parser.feed(page(inspect(four_layers, Options(heads=True, against=str(four_layers))), full=True))
    assert parser.open == []
    assert len(parser.pictures) == 6
    assert parser.loads != []
    assert all(load.startswith("data:image/png;base64,") for load in parser.loads)  # the cells of heat maps
    assert len(set(parser.ids)) == len(parser.ids)
    assert "<script" not in page(inspect(four_layers, Options(length=2)))


def test_the_legend_has_a_mark_for_every_name():
    style = STYLE.read_text(encoding="utf-8")
    assert all(f".mark.{name} " in style for name in MARKS)
